"""The real app, on the engine and on ZeroGPU, in Chromium and over its API."""

import re
import time
from urllib.error import HTTPError, URLError
from urllib.request import Request, urlopen

import numpy as np
import pytest
from gradio_client import Client
from gradio_client.exceptions import AppError
from models import MODEL, model
from pages import ROOT, canvas_pixels, decode, set_run, unfold
from PIL import Image

from dp.data.codec import make_grid, to_uint8

RECORD = """() => {
    const player = document.querySelector('.player');
    window.observer?.disconnect();
    window.seen = [];
    window.observer = new MutationObserver(() => seen.push([player.dataset.state, +(player.dataset.step || 0)]));
    window.observer.observe(player, {attributes: true, attributeFilter: ['data-step', 'data-state']});
}"""


@pytest.fixture(scope="module")
def client(url):
    return Client(url, verbose=False)


@pytest.fixture
def page(shared_page):
    """Yield a page that records the player's status lines; any console error fails the test."""
    shared_page.evaluate(RECORD)
    yield shared_page
    assert shared_page.trouble == []


def read(file):
    """Return an image file as pixels [H,W,C]."""
    with Image.open(file) as image:
        return np.asarray(image)


def wait_for(page, condition, seconds=150):
    """Wait until the JavaScript `condition` is true for the player `p` and the `step` that it shows."""
    look = "const p = document.querySelector('.player'); const step = +(p.dataset.step || 0)"
    page.wait_for_function(f"(() => {{ {look}; return {condition}; }})()", timeout=seconds * 1000)


@pytest.mark.browser
def test_generate_ends_with_exactly_the_images_of_sample(page):
    set_run(page, timesteps=200, seed=7, images=2)
    page.click("#generate")
    wait_for(page, "p.dataset.state === 'done'")
    steps = [step for state, step in page.evaluate("window.seen") if state in ("running", "done") and step]
    assert steps == sorted(steps) and steps[-1] == 200 and len(set(steps)) > 1
    assert page.inner_text(".player .step") == "step 200/200 · done"
    assert re.search(r"t 0\.005 · log-SNR -?\d", page.inner_text(".player .noise-level"))
    assert page.is_visible("#generate") and not page.is_visible("#stop")

    images = model().sample(2, timesteps=200, sampler="dpmpp_2m", seed=7)
    np.testing.assert_array_equal(canvas_pixels(page), make_grid(to_uint8(images)))


@pytest.mark.browser
def test_stop_keeps_the_frame_and_shows_its_step(page):
    set_run(page, timesteps=1000, seed=1)
    page.click("#generate")
    wait_for(page, "step >= 5")
    page.click("#stop")
    wait_for(page, "p.dataset.state === 'stopped'")
    index = int(re.fullmatch(r"stopped at (\d+)/1000", page.inner_text(".player .step"))[1])
    assert 5 <= index < 1000
    assert canvas_pixels(page).std() > 10  # not blank
    page.wait_for_selector("#generate", state="visible")
    time.sleep(0.5)
    assert page.inner_text(".player .step") == f"stopped at {index}/1000"  # and no later frame appears


@pytest.mark.browser
def test_the_seed_is_shown_before_the_run_starts(page):
    set_run(page, timesteps=1000, seed=0)
    page.get_by_label("Random seed").check()
    page.click("#generate")
    page.wait_for_function("+document.querySelector('#seed input').value > 0")
    wait_for(page, "step > 0 && p.dataset.state === 'running'")
    page.click("#stop")
    wait_for(page, "p.dataset.state === 'stopped'")


@pytest.mark.browser
def test_a_seed_typed_during_a_run_stays(page):
    set_run(page, timesteps=1000, seed=1)
    page.click("#generate")
    wait_for(page, "step > 0")
    set_run(page, timesteps=1000, seed=23)
    page.click("#stop")
    wait_for(page, "p.dataset.state === 'stopped'")
    page.wait_for_selector("#generate", state="visible")
    assert page.input_value("#seed input") == "23"


@pytest.mark.browser
def test_a_double_click_starts_a_run_and_does_not_stop_it(page):
    set_run(page, timesteps=200, seed=1)
    page.click("#generate")
    page.locator("#stop").hover()
    page.mouse.down(click_count=2)  # a slow double click, whose second half meets Stop
    page.mouse.up(click_count=2)
    wait_for(page, "p.dataset.state === 'done'")
    assert {state for state, _ in page.evaluate("window.seen")} <= {"waiting", "running", "done"}


@pytest.mark.browser
def test_a_click_at_the_very_end_of_a_run_starts_the_next(page):
    set_run(page, timesteps=5, seed=1)
    page.evaluate(
        """() => {
            const [player, button] = [document.querySelector('.player'), document.querySelector('#generate')];
            const whenIdle = new MutationObserver(() => {
                if (player.getAttribute('aria-busy') === 'true') return;
                window.ended = player.dataset.run;
                whenIdle.disconnect();
                button.click();
            });
            whenIdle.observe(player, {attributeFilter: ['aria-busy']});
        }"""
    )
    page.click("#generate")
    wait_for(page, "window.ended && p.dataset.run !== window.ended && p.dataset.state === 'done'")


@pytest.mark.browser
def test_the_keyboard_starts_and_stops_a_run_without_losing_the_focus(page):
    set_run(page, timesteps=1000, seed=1)
    page.focus("#generate")
    page.keyboard.press("Enter")
    wait_for(page, "step >= 3")
    page.wait_for_function("document.activeElement.classList.contains('player')")
    page.focus("#stop")
    page.keyboard.press("Enter")
    wait_for(page, "p.dataset.state === 'stopped'")
    page.wait_for_function("document.activeElement.id === 'generate'")
    assert page.inner_text(".player .announcement") == page.inner_text(".player .step")


@pytest.mark.browser
def test_technical_words_have_a_definition_where_the_pointer_rests(page):
    page.wait_for_function("document.querySelectorAll('abbr').length && !document.querySelector('abbr:not([title])')")
    words = page.evaluate("[...document.querySelectorAll('abbr, [data-testid=block-info][title]')].map((e) => e.title)")
    assert {title.partition(":")[0] for title in words} >= {"Seed", "x₀", "Log-SNR", "Latent"}


@pytest.mark.browser
def test_a_typed_number_is_never_replaced_silently(page, capsys):
    set_run(page, timesteps=5000, seed=1.5)
    assert page.input_value("#timesteps input[type=number]") == "1000"
    assert page.inner_text("#timesteps .limit-note") == "Timesteps must be from 1 to 1000: 5000 became 1000."
    page.click("#generate")
    page.locator(".toast-body", has_text="Seed must be a whole number from 0 to 2147483647, got 1.5").wait_for()
    set_run(page, timesteps=2.5, seed=1)
    assert page.locator(".limit-note").count() == 0
    page.click("#generate")
    page.locator(".toast-body", has_text="Timesteps must be a whole number from 1 to 1000, got 2.5").wait_for()
    page.set_input_files("input[type=file][accept='.png']", {"name": "a.png", "mimeType": "", "buffer": b"no image"})
    page.locator(".toast-body", has_text="this is not a readable PNG: choose one").wait_for()
    assert page.evaluate("window.seen") == []  # and nothing runs
    assert capsys.readouterr().err == ""  # no traceback in the server's log


GOOD = [MODEL, 2, 3, "ddim", "trained", 0, 5, 0.0]


@pytest.mark.parametrize(
    "position, value, words",
    [
        (0, "../secrets", "no checkpoint '../secrets'"),
        (0, [MODEL], "no checkpoint ['small-32']"),
        (1, -1, "Images must be a whole number from 1 to 64, got -1"),
        (1, 65, "Images"),
        (2, 0, "Timesteps must be a whole number from 1 to 1000, got 0"),
        (2, 2.5, "Timesteps"),
        (2, "many", "Timesteps"),
        (3, "euler", "unknown sampler 'euler'; choose one of: ddim, ddpm, dpmpp_2m, dpmpp_2m_sde"),
        (4, "quadratic", "unknown noise schedule 'quadratic'"),
        (5, 4, "Time difference must be a number from 0 to 3"),
        (6, -3, "Seed"),
        (6, "seven", "Seed"),
        (7, 2, "eta must be a number from 0 to 1, got 2"),
    ],
)
@pytest.mark.parametrize("endpoint", ["/sample", "/stream"])
def test_an_invalid_setting_is_a_clear_error(client, endpoint, position, value, words, capsys):
    values = list(GOOD)
    values[position] = value
    with pytest.raises(AppError) as error:
        client.predict(*values, api_name=endpoint)
    assert words in str(error.value) and "Traceback" not in str(error.value)
    assert capsys.readouterr().err == ""  # the log of the server, which runs in this process


@pytest.mark.parametrize("sampler", ["ddim", "ddpm", "dpmpp_2m"])
@pytest.mark.parametrize("schedule", ["trained", "linear", "cosine"])
def test_every_sampler_and_schedule_matches_the_library(client, sampler, schedule):
    file, made_with = client.predict(MODEL, 2, 6, sampler, schedule, 1.5, 3, api_name="/sample")
    images = model().sample(
        2,
        timesteps=6,
        sampler=sampler,
        noise_schedule=None if schedule == "trained" else schedule,
        time_difference=1.5 / 6,
        seed=3,
    )
    assert made_with["seed"] == 3 and made_with["state"] == "done" and made_with["timesteps"] == 6
    np.testing.assert_array_equal(read(file), make_grid(to_uint8(images)))


def test_stream_yields_steps_and_ends_with_the_single_images(client):
    job = client.submit(checkpoint=MODEL, images=2, timesteps=400, seed=8, api_name="/stream")
    values = [value for value in job if "index" in value]
    assert len(values) > 1 and [value["state"] for value in values[:-1]] == ["running"] * (len(values) - 1)
    indices = [value["index"] for value in values]
    assert indices == sorted(set(indices)) and indices[-1] == 400
    last = values[-1]
    assert last["state"] == "done" and last["seed"] == 8
    images = to_uint8(model().sample(2, timesteps=400, sampler="dpmpp_2m", seed=8))
    for src, image in zip(last["images"], images, strict=True):
        np.testing.assert_array_equal(decode(src), image)


def test_every_api_parameter_has_a_default(client):
    file, made_with = client.predict(api_name="/sample")
    assert read(file).shape == (32, 32, 3) and made_with["checkpoint"] == MODEL and made_with["batch_size"] == 1
    again, _ = client.predict(seed=made_with["seed"], api_name="/sample")
    np.testing.assert_array_equal(read(again), read(file))


def test_the_readmes_client_code_runs(url, capsys):
    _, code = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(encoding="utf-8"), re.S)
    there = {}
    exec(code.replace("http://127.0.0.1:7860", url), there)
    assert read(there["file"]).shape == (64, 64, 3) and there["settings"]["seed"] == 7
    assert capsys.readouterr().out.splitlines()[-1] == "done 50"


def test_the_endpoints_and_their_parameters_are_documented_under_stable_names(client):
    endpoints = client.view_api(return_format="dict")["named_endpoints"]
    assert endpoints.keys() == {"/sample", "/stream"}
    for endpoint in endpoints.values():
        parameters = {p["parameter_name"]: p["parameter_default"] for p in endpoint["parameters"]}
        assert parameters == {
            "checkpoint": MODEL,
            "images": 1,
            "timesteps": 20,
            "sampler": "dpmpp_2m",
            "noise_schedule": "trained",
            "time_difference": 0.0,
            "seed": None,
            "eta": 0.0,
            "label": "",
            "guidance": None,
        }


def test_runs_side_by_side_do_not_wait_for_each_other(client, url):
    other = Client(url, verbose=False)
    slow = client.submit(MODEL, 1, 1000, "ddim", "trained", 0, 1, api_name="/stream")
    _, quick = other.predict(*GOOD, api_name="/sample")
    assert quick["state"] == "done" and not slow.done()
    slow.cancel()


def test_an_upload_above_the_limit_is_rejected_and_one_below_it_accepted(url):
    body = b'--edge\r\nContent-Disposition: form-data; name="files"; filename="a.png"\r\n\r\n'
    for megabytes, status in ((17, 413), (15, 200)):
        content = body + bytes(megabytes << 20) + b"\r\n--edge--\r\n"
        request = Request(f"{url}/gradio_api/upload", content, {"content-type": "multipart/form-data; boundary=edge"})
        try:
            with urlopen(request) as answer:
                assert answer.status == status
        except HTTPError as error:
            with error:
                assert error.code == status
        except URLError:  # rejected before it was sent completely
            assert status == 413


def test_the_page_is_sent_compressed_and_events_are_not(url):
    """Gradio's page holds the scripts of all components: a megabyte of text."""

    def headers_of(path, accepted):
        with urlopen(Request(url + path, headers={"Accept-Encoding": accepted})) as answer:
            is_stream = answer.headers["Content-Type"].startswith("text/event-stream")
            return answer.headers.get("Content-Encoding"), 0 if is_stream else len(answer.read())

    _, plain = headers_of("/", "identity")
    encoding, packed = headers_of("/", "gzip")
    assert encoding == "gzip" and packed < plain / 3
    assert headers_of("/gradio_api/queue/data?session_hash=x", "gzip") == (None, 0)


@pytest.mark.browser
def test_the_page_contacts_only_its_own_server(page, url):
    """Since it was opened, in all tests above."""
    set_run(page, timesteps=3, seed=1)
    page.click("#generate")
    wait_for(page, "p.dataset.state === 'done'")
    for tab in ("Compare", "Train"):
        unfold(page.get_by_role("tab", name=tab))
    assert len(page.asked) > 10
    assert [where for where in page.asked if not where.startswith((url, "data:", "blob:"))] == []
