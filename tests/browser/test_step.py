"""One step of an image on the page: taken apart, and what else the run could become from there."""

from __future__ import annotations

import time

import numpy as np
import pytest
from models import MODEL, PacedEngine, model, models_dir
from pages import canvas_pixels, click, decode, set_run, until

from dp import DiffusionPolicy, SampleSettings
from dp.data.codec import to_uint8
from dp.diffusion.endings import ENDINGS, branch_off, distances
from dp.diffusion.parts import amplify, take_apart
from dp.diffusion.replay import state_at_step
from dp.ui.components.player import endings_sheet
from dp.ui.components.player.player import server_functions
from dp.ui.components.player.step_sheet import PICTURES, notes_on, stretch_of

STEPS, SEED = 12, 3


@pytest.fixture
def inspected(page):
    """Return the page with image 2 of a finished run alone."""
    set_run(page, timesteps=STEPS, seed=SEED, images=3)
    page.click("#generate")
    until(page, f"d.state === 'done' && +d.kept === {STEPS} && step === {STEPS}")
    page.focus(".player")
    page.keyboard.press("Enter")
    page.keyboard.press("ArrowDown")
    until(page, "d.image === '1'")
    return page


def go_to(page, index, panel):
    """Step back to this step with the keys, and wait for what the panel has to say about it."""
    page.focus(".player")
    page.keyboard.press("End")
    for _ in range(STEPS - index):
        page.keyboard.press("ArrowLeft")
    until(page, f"d.{panel} === '{index}'")


def parts_at(index, **settings):
    run = SampleSettings(3, timesteps=STEPS, seed=SEED, **settings)
    return take_apart(model(), state_at_step(model(), run, 1, index, None, None))


def symbols(page, equation):
    return page.locator(f".{equation} .symbol:visible").all_inner_texts()


def number(symbol):
    return float(symbol.split(" · ")[0])


@pytest.mark.browser
def test_a_step_is_taken_apart_with_the_numbers_of_its_plan(inspected):
    page = inspected
    page.click(".apart-toggle")
    go_to(page, 5, "apart")
    parts = parts_at(5, sampler="dpmpp_2m")
    assert symbols(page, "split")[0] == "xₜ" and symbols(page, "mix")[0] == "xₛ"
    split, mix = ([number(symbol) for symbol in symbols(page, name)[1:]] for name in ("split", "mix"))
    assert split == pytest.approx([parts.alpha, parts.sigma], rel=0.03)
    assert mix == pytest.approx(parts.coefficients[:3], rel=0.03) and parts.coefficients[3] == 0
    after = (parts.coefficients[0] * parts.alpha + parts.coefficients[1]) ** 2
    percents = [f"{share:.0%}" for share in (parts.alpha**2, parts.sigma**2, after, 1 - after)]
    assert [text.split()[0] for text in page.locator(".share-words span").all_inner_texts()] == percents
    assert page.locator(".when").all_inner_texts() == ["Before step 5", "After step 5"]
    assert page.inner_text(".notes") == "No fresh noise: DPM-Solver++(2M) adds none."
    stretch = stretch_of(parts.change.abs().max().item())
    for name, picture in {"x_t": parts.x_t, "x0": parts.x0, "noise": parts.noise}.items():
        shown = canvas_pixels(page, f".split [data-part={name}]")
        np.testing.assert_allclose(shown, to_uint8((picture + 1) / 2)[0], atol=1)
    np.testing.assert_array_equal(canvas_pixels(page, ".level.at-start"), canvas_pixels(page, ".split [data-part=x_t]"))
    np.testing.assert_array_equal(canvas_pixels(page, ".level.at-end"), canvas_pixels(page, ".mix [data-part=x_s]"))
    for name, picture in {"x_s": parts.x_s, "change": parts.change * stretch}.items():
        shown = canvas_pixels(page, f".mix [data-part={name}]")
        np.testing.assert_allclose(shown, to_uint8((picture + 1) / 2)[0], atol=1)

    page.click(".amplify")
    assert page.get_attribute(".amplify", "aria-pressed") == "true"
    amplified = amplify(parts.x_t, parts.alpha, parts.sigma)
    for equation in ("split", "mix"):
        shown = canvas_pixels(page, f".{equation} [data-part=x_t]")
        np.testing.assert_allclose(shown, to_uint8((amplified.image + 1) / 2)[0], atol=1)
    assert f"a blur of {amplified.width:.1f} pixels" in page.inner_text(".amplified")
    page.click(".amplify")
    assert page.inner_text(".amplified") == ""

    page.focus(".split [data-part=x0] button")  # with the keyboard, and with the pointer
    assert [term.get_attribute("data-part") for term in page.locator(".term.lit").all()] == ["x0", "x0"]
    page.hover(".mix [data-part=x_t] canvas")
    assert [term.get_attribute("data-part") for term in page.locator(".term.lit").all()] == ["x_t", "x_t"]
    assert "what the model sees" in page.inner_text(".meaning")

    go_to(page, 1, "apart")
    assert page.inner_text(".notes").startswith("No previous prediction: this is the first.")
    go_to(page, STEPS, "apart")
    assert symbols(page, "mix") == ["xₛ", "1.000 · x₀"]
    assert page.locator(".level.at-end span").all_inner_texts()[-2:] == ["100% image", "0% noise"]
    assert f"Step {STEPS} of {STEPS}: xₜ = " in page.inner_text(".apart-summary")
    assert page.inner_text(".apart-summary").endswith("xₛ = 1.000 · x₀")
    page.click(".apart-toggle")
    assert not page.is_visible(".inspector.apart")


def test_the_notes_say_which_terms_are_missing_and_why():
    runs = {
        "ddim": "No fresh noise: DDIM with eta 0 adds none.",
        "dpmpp_2m": "No fresh noise: DPM-Solver++(2M) adds none.",
        "ddpm": "",
        "dpmpp_2m_sde": "",
    }
    for sampler, words in runs.items():
        made_with = {"sampler": sampler, "eta": 0.0}
        first, middle, last = (notes_on(parts_at(i, sampler=sampler), i, made_with) for i in (1, 5, STEPS))
        assert middle == words
        assert first.startswith("No previous prediction: this is the first.") == sampler.startswith("dpmpp")
        assert last.startswith("The last step takes the prediction as the result")


@pytest.mark.parametrize("peak, stretch", [(0.0, 1), (2.0, 1), (1.0, 1), (0.5, 2), (0.3, 2), (0.1, 8), (1e-6, 64)])
def test_a_small_change_is_stretched_by_a_power_of_two(peak, stretch):
    assert stretch_of(peak) == stretch


def endings_at(index):
    run = SampleSettings(3, timesteps=STEPS, seed=SEED, sampler="dpmpp_2m").with_defaults(model().defaults)
    state = branch_off(model(), run, state_at_step(model(), run, 1, index, None, None), ENDINGS)
    *_, last = model().run(state)
    return (last.x0 + 1) / 2


def asked_by_the_page(engine):
    return {function.__name__: function for function in server_functions(engine)}


@pytest.mark.browser
def test_the_endings_of_a_step_are_many_early_and_one_at_the_end(inspected):
    page = inspected
    page.click(".endings-toggle")
    until(page, f"d.endings === '{STEPS}/1'")
    assert "one ending is left" in page.inner_text(".endings-summary")
    assert page.locator(".endings li:visible").all_inner_texts() == ["A"] * 8
    page.locator("#player .scrub").fill("2")  # at once: a step on the way would be asked for, too
    until(page, "d.endings === '3/8'")
    expected = endings_at(3)
    between = distances(expected).sum().item() / 56
    words = f"From step 3 of {STEPS}, all 8 endings are different. On average, two endings are {between:.2f} apart"
    assert words in page.inner_text(".endings-summary")
    assert page.locator(".endings li").all_inner_texts() == list("ABCDEFGH")
    for i, image in enumerate(to_uint8(expected)):
        np.testing.assert_allclose(canvas_pixels(page, f".endings li:nth-child({i + 1})"), image, atol=1)

    asked = len(page.asked)  # what the page knows, it does not ask for again
    page.keyboard.press("End")
    until(page, f"d.endings === '{STEPS}/1'")
    assert len(page.asked) == asked
    assert page.get_attribute(".endings-left canvas", "aria-label") == f"Endings left: 8 at step 3, 1 at step {STEPS}"
    click(page, ".endings-left canvas", 0.999, 0.5)
    click(page, ".endings-left canvas", 0.06, 0.5)
    until(page, "d.endings?.startsWith('1/')")
    page.click(".endings-toggle")
    assert not page.is_visible(".inspector.endings")


def test_a_branch_leaves_nothing_behind_and_one_that_is_too_long_or_fails_says_so(monkeypatch):
    engine = PacedEngine(models_dir(), device="cpu")
    handle = engine.submit(SampleSettings(2, timesteps=6, seed=SEED), MODEL)
    list(handle)
    endings = asked_by_the_page(engine)["endings"]
    asked = {"run": handle.request_id, "row": 1, "index": 2}
    answer = endings(asked)
    assert len(answer["groups"]) == ENDINGS and decode(answer["sheet"]).shape == (32, 32 * ENDINGS, 3)
    until_true(lambda: len(engine._requests) == 1)
    for wrong in (None, {}, {"run": "x"}, asked | {"row": 2}, asked | {"index": 8}, asked | {"index": True}):
        assert endings(wrong) is None
    assert "in 1 to 6, the steps of this run" in endings(asked | {"index": 0})["problem"]
    monkeypatch.setattr(endings_sheet, "MAX_ROW_STEPS", 39)
    assert endings(asked)["problem"] == "8 times 5 steps would take too long: choose one of the last 4 steps"
    assert "groups" in endings(asked | {"index": 3})
    monkeypatch.setattr(endings_sheet, "PATIENCE_S", 0)
    assert "the server is busy" in endings(asked | {"index": 4})["problem"]
    until_true(lambda: len(engine._requests) == 1)


def test_both_sheets_of_a_gray_model_of_another_size(tiny_rin, tmp_path):
    DiffusionPolicy(tiny_rin(channels=1)).save_pretrained(tmp_path / "gray")
    engine = PacedEngine(tmp_path, device="cpu")
    handle = engine.submit(SampleSettings(1, timesteps=3, sampler="ddim", seed=1), "gray")
    list(handle)
    for index in (1, 3):
        asked = {"run": handle.request_id, "row": 0, "index": index}
        for name, count in {"apart": len(PICTURES), "endings": ENDINGS}.items():
            assert decode(asked_by_the_page(engine)[name](asked)["sheet"]).shape == (8, 8 * count, 3)


def until_true(condition):
    deadline = time.monotonic() + 30
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)
