"""The guided questions: each is answered by a real run of the bundled models."""

import pytest
from launching import launched
from pages import ROOT

from dp.serving.engine import Engine
from dp.ui.questions import QUESTIONS, available, texts

pytestmark = pytest.mark.browser


@pytest.fixture(scope="module")
def url():
    with launched(models=ROOT / "checkpoints") as address:
        yield address


def ask(page, key):
    page.locator(f".questions button[data-key={key}]").click()
    page.wait_for_function("text => document.querySelector('.answer-text').innerText === text", arg=texts()[key][1])
    page.wait_for_selector(".pointed-at")


def close(page):
    page.get_by_role("button", name="Close the answer").click()
    assert page.locator(".pointed-at").count() == 0


def test_every_question_has_its_words_and_settings_that_its_model_takes():
    assert texts().keys() == QUESTIONS.keys()
    names = [entry.name for entry in Engine(ROOT / "checkpoints").checkpoints()]
    assert list(available(names, can_replay=True)) == list(texts())
    assert not any(QUESTIONS[key].needs_replay for key in available(names, can_replay=False))
    assert "decided" not in available(["creatures-32"], can_replay=True)


def test_a_question_draws_goes_to_its_moment_and_offers_the_next(page):
    ask(page, "decided")
    page.wait_for_function("document.querySelector('#player .player').dataset.step === '12'")
    assert page.locator("#checkpoint input").input_value() == "faces-32"
    assert page.locator("#player .possible-each.pointed-at").is_visible()
    assert page.locator("#player .minds [aria-current]").inner_text() == "12\n✓"
    assert page.locator(".questions").is_hidden() and page.locator("#guide").bounding_box()["y"] < 200
    page.get_by_role("button", name="Next: What do the latents look at?").click()
    page.wait_for_function("document.querySelector('#player .player').dataset.attention === '18/1/0'")
    page.wait_for_selector("#player .groups.pointed-at")
    assert page.locator("#player .groups span").all_inner_texts() == [f"{n} latents" for n in (22, 4, 4, 2)]
    names = "spans => spans.map(span => span.dataset.name)"
    assert page.locator("#player .groups span").evaluate_all(names) == ["background", "eye", "body", "hair"]
    assert not page.locator("#player .possible").is_visible()
    close(page)
    assert page.locator(".questions").is_visible()


def test_another_question_ends_the_one_under_way(page):
    page.locator(".questions button[data-key=memorize]").click()
    page.get_by_role("button", name="Close the answer").click()
    ask(page, "step")
    page.wait_for_function("document.querySelector('#player .player').dataset.apart === '3'")
    assert page.locator("#player .inspector.apart.pointed-at").is_visible()
    shares = page.locator("#player .share-words span").all_inner_texts()
    assert shares == ["28% image", "72% noise", "77% image", "23% noise"]
    assert "from 28% image to 77%" in page.locator(".answer-text").inner_text()
    close(page)


def test_another_model_is_beside_the_copies_until_the_answer_is_closed(page):
    ask(page, "memorize")
    picture = page.locator("#player .part:has(.pairs) .beside img")
    picture.wait_for()
    assert picture.evaluate("image => image.decode().then(() => [image.naturalWidth, image.naturalHeight])") == [
        768,
        128,
    ]
    distances = [float(text) for text in page.locator("#player .pairs span").all_inner_texts()]
    copies = page.locator("#player .pairs .copy").count()
    assert sum(distance < 0.03 for distance in distances) == copies > len(distances) / 2  # as the answer says
    close(page)
    assert page.locator(".beside").count() == 0


def test_a_question_about_a_comparison(page):
    ask(page, "guidance")
    labels = "[...document.querySelectorAll('.player.variant:not([hidden]) .label')].map(l => l.textContent).join()"
    assert page.evaluate(labels) == ",".join(f"guidance {value}" for value in QUESTIONS["guidance"].values)
    assert page.locator("#compare-class input").input_value() == "R"
    close(page)


def test_a_question_in_two_dimensions(page):
    ask(page, "schedule")
    titles = page.locator("#plane .side figcaption").all_inner_texts()
    assert titles == ["DDIM · 10 steps · sigmoid", "DDIM · 10 steps · sigmoid, mostly noise"]
    close(page)
