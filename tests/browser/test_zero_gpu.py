"""The app on ZeroGPU: with a GPU, without one, and when it loses the GPU. Tests that also apply to the engine are in
test_app, which runs on both.
"""

import base64
import json
import os
import signal
import time

import numpy as np
import pytest
import torch
from gradio_client import Client
from gradio_client.exceptions import AppError
from models import MODEL, PacedEngine, model, models_dir
from pages import canvas_pixels, close_toasts, copied_link, decode, serve, set_run, show_more, type_numbers, until
from PIL import Image
from test_compare import PLAYERS, compare, shown, until_players
from test_player import upload
from test_start_image import choose, given
from zerogpu import ANSWERS, DeviceAPI

from dp import SampleSettings
from dp.data.codec import make_grid, to_uint8
from dp.serving.files import export
from dp.serving.handle import SampleRequest
from dp.ui.auth.permission import ON_ZERO_GPU
from dp.ui.sampling.page_values import MAX_IMAGES, MAX_TIMESTEPS, SAMPLERS
from dp.ui.sampling.variants import MAX_VARIANTS
from dp.ui.zero_gpu import ANONYMOUS_S, seconds_needed, waiting_message

# By this header the platform identifies a visitor; without it, all visitors share the app's quota.
PARTS = ({"alg": "HS256"}, {"user": "ann"}, {})
VISITOR = {"X-IP-Token": ".".join(base64.urlsafe_b64encode(json.dumps(p).encode()).decode().rstrip("=") for p in PARTS)}
SAID = {
    "quota": "You have exceeded your ZeroGPU quota (10s requested vs. 5s left). Try again in 1:02:00.",
    "too long": "The requested GPU duration (10s) is larger than the maximum allowed",
    "too many runs": "You have exceeded your ZeroGPU runs limit.",
    "no GPU": "No GPU was available",
    "expired": "this page has been open too long to request a GPU: reload it",
    "trouble": "no GPU is available: RuntimeError: ZeroGPU API /schedule error: 500 (Internal Server Error)",
    "queue timeout": "No GPU was available after 60s. "
    "Create a free account to get a higher priority in ZeroGPU queues.",
}
LONG_SECOND = ("3", "1000", "5")  # timesteps of a comparison whose second run lasts longer than any test
TAKEN_AWAY = "the GPU was released before the run finished: try again, or use fewer images or timesteps"


@pytest.fixture(scope="module")
def api():
    if torch.version.cuda is None:
        pytest.skip("the spaces package runs its ZeroGPU half only beside a CUDA build of PyTorch")
    with DeviceAPI() as api:
        yield api


@pytest.fixture(scope="module")
def url(api):
    with serve("tests/helpers/zerogpu.py", CPU_CORES="1", **api.environment) as address:
        yield address
    assert api.log[0] == "/startup-report" and {"/schedule", "/allow", "/release"} <= set(api.log)


@pytest.fixture(autouse=True)
def lends(request):
    """Wait until the previous test's GPUs are released."""
    if "url" in request.fixturenames:
        request.getfixturevalue("api").answer = "lent"


@pytest.fixture
def page(shared_page):
    shared_page.set_extra_http_headers(VISITOR)
    return shared_page


@pytest.fixture(scope="module")
def policy():
    return model()


def until_said(page, words, player="#player"):
    page.wait_for_function(
        "([at, words]) => document.querySelector(at + ' .step').textContent === words", arg=[player, words]
    )


def until_released(api, since, seconds=150):
    """Wait until every GPU granted after the first `since` requests is released and its worker has ended."""
    deadline = time.monotonic() + seconds
    while api.log[since:].count("/release") < max(api.log[since:].count("/schedule"), 1):
        assert time.monotonic() < deadline, api.log[since:]
        time.sleep(0.05)


def test_every_platform_error_is_tested():
    assert SAID.keys() == ANSWERS.keys() - {"lent", "queue", "long queue"}


# ----------------------------------------------------------------------------
# No GPU


@pytest.mark.browser
def test_a_missing_gpu_is_shown_in_the_players_status_line_and_the_next_run_works(page, api, policy):
    set_run(page, timesteps=10, seed=3, images=1)
    page.click("#generate")
    until(page, "d.state === 'done' && step === 10")
    before = canvas_pixels(page)
    # An answer to the request and one of the queue; test_an_api_client_gets_the_same_errors_and_images has them all.
    for answer in ("quota", "queue timeout"):
        words = SAID[answer]
        api.answer = answer
        page.click("#generate")
        until_said(page, words)
        page.wait_for_selector("#generate", state="visible")
        assert page.get_attribute("#player .player", "data-state") == "failed"
        assert page.get_attribute("#player .player", "aria-busy") == "false" and not page.is_visible("#stop")
        toast = page.locator(".toast-body").filter(has_text=words).first
        toast.wait_for()
        assert toast.locator("a").count() == 0  # only our own markup
        close_toasts(page)
        page.wait_for_timeout(300)
        assert page.inner_text("#player .step") == words  # and nothing replaces it
        np.testing.assert_array_equal(canvas_pixels(page), before)
    assert {asked["token"] for asked in api.asked[-2:]} == {VISITOR["X-IP-Token"]}
    for answer, steps in (("queue", 12), ("lent", 11)):
        api.answer = answer
        set_run(page, timesteps=steps, seed=4, images=1)
        close_toasts(page)  # the platform says when a queue has ended
        page.click("#generate")
        until(page, f"d.state === 'done' && step === {steps}")
        images = policy.sample(1, timesteps=steps, sampler="dpmpp_2m", seed=4)
        np.testing.assert_allclose(canvas_pixels(page), make_grid(to_uint8(images)), atol=1)


@pytest.mark.browser
def test_a_comparison_without_a_gpu_shows_why_and_the_next_one_works(page, api, policy):
    lines = f"{PLAYERS}.map(p => p.querySelector('.step').textContent)"
    api.answer = "quota"
    compare(page, "Sampler", timesteps=10, images=2)
    there = [SAID["quota"], *["did not finish"] * 2]
    page.wait_for_function(f"words => String({lines}) === String(words)", arg=there)
    until_players(page, "players.every(p => p.dataset.state === 'failed' && p.getAttribute('aria-busy') === 'false')")
    page.wait_for_selector("#compare", state="visible")
    assert not page.is_visible("#compare-stop")
    api.answer = "lent"
    type_numbers(page, "compare-", seed=6)
    page.click("#compare")
    until_players(page, "players.length === 3 && players.every(p => p.dataset.state === 'done')")
    for (_, sampler), picture in zip(SAMPLERS[:3], shown(page)[1], strict=True):
        images = policy.sample(2, timesteps=10, sampler=sampler, seed=6)
        np.testing.assert_allclose(picture, make_grid(to_uint8(images)), atol=1)
    assert page.locator("#clock tbody tr").count() == 3


def test_an_api_client_gets_the_same_errors_and_images(url, api, policy):
    client = Client(url, verbose=False, headers=VISITOR)
    for answer, words in SAID.items():
        api.answer = answer
        with pytest.raises(AppError) as error:
            client.predict(images=1, timesteps=2, api_name="/stream")
        assert words.split(" Try again")[0] in str(error.value) and "<" not in str(error.value)
    with pytest.raises(AppError):
        client.predict(images=1, timesteps=2, api_name="/sample")
    api.answer = "lent"
    last = client.predict(images=2, timesteps=40, seed=8, api_name="/stream")
    file, settings = client.predict(images=2, timesteps=40, seed=8, api_name="/sample")
    assert last["state"] == settings["state"] == "done"
    images = to_uint8(policy.sample(2, timesteps=40, sampler="dpmpp_2m", seed=8))
    for src, image in zip(last["images"], images, strict=True):
        np.testing.assert_allclose(decode(src), image, atol=1)
    with Image.open(file) as grid:
        np.testing.assert_allclose(np.asarray(grid), make_grid(images), atol=1)


# ----------------------------------------------------------------------------
# Losing and releasing the GPU


@pytest.mark.browser
def test_losing_the_gpu_ends_the_run_with_an_error_and_keeps_its_frames(page, api):
    set_run(page, timesteps=1000, seed=1)
    page.click("#generate")
    until(page, "step >= 20 && d.state === 'running'")
    os.kill(api.workers[-1], signal.SIGKILL)
    until_said(page, TAKEN_AWAY)
    page.wait_for_selector("#generate", state="visible")
    page.focus("#player .player")
    page.keyboard.press("Home")
    until(page, "step === 1")

    compare(page, "Timesteps", values=LONG_SECOND, seed=2, images=2)
    until_players(
        page, "players.length === 3 && +players[1].dataset.step >= 5 && players[1].dataset.state === 'running'"
    )
    os.kill(api.workers[-1], signal.SIGKILL)
    until_players(page, "String(players.map(p => p.dataset.state)) === 'done,failed,failed'")
    lines = page.evaluate(f"{PLAYERS}.map(p => p.querySelector('.step').textContent)")
    assert lines[1:] == [TAKEN_AWAY, "did not finish"]
    page.wait_for_selector("#compare", state="visible")


@pytest.mark.browser
def test_stop_releases_the_gpu(page, api):
    set_run(page, timesteps=1000, seed=1)
    since = len(api.log)
    page.click("#generate")
    until(page, "step >= 5 && d.state === 'running'")
    page.click("#stop")
    until_released(api, since)
    until(page, "d.state === 'stopped'")
    page.wait_for_selector("#generate", state="visible")

    since = len(api.log)
    compare(page, "Timesteps", values=LONG_SECOND, images=2)
    until_players(
        page, "players.length === 3 && +players[1].dataset.step >= 5 && players[1].dataset.state === 'running'"
    )
    page.click("#compare-stop")
    until_released(api, since)
    until_players(page, "String(players.map(p => p.dataset.state)) === 'done,stopped,stopped'")
    lines = page.evaluate(f"{PLAYERS}.map(p => p.querySelector('.step').textContent)")
    assert lines[1].startswith("stopped at ") and lines[2] == "stopped before the first step"
    page.wait_for_selector("#compare", state="visible")


@pytest.mark.browser
def test_stop_while_waiting_releases_the_gpu_as_soon_as_it_arrives(page, api):
    api.answer = "long queue"
    since = len(api.log)
    set_run(page, timesteps=1000, seed=1)
    page.click("#generate")
    while "/schedule" not in api.log[since:]:
        page.wait_for_timeout(20)
    page.click("#stop")
    until_said(page, "stopped before the first step")
    page.wait_for_selector("#generate", state="visible")
    assert "/release" not in api.log[since:]
    api.served.set()
    until_released(api, since)


# ----------------------------------------------------------------------------
# The requested seconds


def test_every_visitor_may_request_the_largest_run():
    largest = SampleRequest(MODEL, SampleSettings(MAX_IMAGES, timesteps=MAX_TIMESTEPS))
    assert seconds_needed([largest]) <= ANONYMOUS_S and "signed in" not in waiting_message([largest])
    assert seconds_needed([SampleRequest(MODEL, SampleSettings(4, timesteps=20))]) == 10
    message = waiting_message([largest] * MAX_VARIANTS)
    assert message.startswith(f"waiting for a GPU, to be used for at most {seconds_needed([largest] * MAX_VARIANTS)} s")
    assert f"more than the {ANONYMOUS_S} that visitors get without signing in" in message


@pytest.mark.browser
def test_the_requested_seconds_are_shown_first(page, api):
    api.answer = "queue timeout"
    compare(page, "Sampler", timesteps=1000, images=64)
    run = SampleRequest(MODEL, SampleSettings(64, timesteps=1000))
    until_said(page, waiting_message([run] * 3), ".player.variant")
    until_said(page, SAID["queue timeout"], ".player.variant")
    page.wait_for_selector("#compare", state="visible")
    assert api.asked[-1]["durationSeconds"] == str(seconds_needed([run] * 3))


# ----------------------------------------------------------------------------
# The rest of the app


@pytest.mark.browser
def test_the_train_tab_explains_that_training_is_not_available(page):
    page.get_by_role("tab", name="Train").click()
    assert ON_ZERO_GPU.replace("**", "") in page.inner_text("#refused")
    assert not page.is_visible("#train") and not page.is_visible("#start-training")


@pytest.mark.browser
def test_features_that_need_a_finished_run_are_hidden_and_the_rest_works(page, policy, tmp_path):
    run = SampleSettings(4, timesteps=6, sampler="ddim", seed=11)
    handle = PacedEngine(models_dir(), device="cpu").submit(run, MODEL)  # made on another machine
    frame = list(handle)[-1]
    _, png = export([frame], handle.provenance, "png")
    (tmp_path / "faces.png").write_bytes(png)
    upload(page, tmp_path / "faces.png")
    page.wait_for_function("document.querySelector('#seed input').value === '11'")
    page.click("#generate")
    until_said(page, "step 6/6 · done")
    until(page, "d.state === 'done' && step === 6")
    np.testing.assert_allclose(canvas_pixels(page), make_grid(frame.x0), atol=1)
    page.focus("#player .player")
    page.keyboard.press("Enter")
    until(page, "d.image === '0'")
    for panel in ("attention", "apart", "endings"):
        assert not page.is_visible(f"#player .{panel}-toggle")
    page.keyboard.press("Escape")

    choose(page, tmp_path)
    page.locator("#start .strength").fill("0.5")
    show_more(page)
    page.locator("#walk input").fill("9")
    page.locator("#walk input").press("Tab")
    page.evaluate("document.querySelector('#player .step').textContent = ''")
    page.click("#generate")
    until_said(page, "step 6/6 · done")
    until(page, "d.state === 'done' && step === 6")
    start, *_ = given(page)
    images = policy.sample(4, timesteps=6, sampler="ddim", seed=11, walk_to=9, start=start, strength=0.5)
    np.testing.assert_allclose(canvas_pixels(page), make_grid(to_uint8(images)), atol=1)
    page.wait_for_function("document.querySelector('.walk canvas').width === 128")
    link = copied_link(page)
    assert "walk=9" in link and "seed=11" in link


@pytest.mark.browser
def test_a_page_that_is_left_or_a_client_that_cancels_releases_the_gpu(page, url, api):
    since = len(api.log)
    set_run(page, timesteps=1000, seed=11)
    link = copied_link(page)
    page.click("#generate")
    until(page, "step >= 5 && d.state === 'running'")
    page.goto(link)
    until_released(api, since)
    page.wait_for_function("document.querySelector('#seed input')?.value === '11'")

    since = len(api.log)
    job = Client(url, verbose=False).submit(images=4, timesteps=1000, seed=1, api_name="/stream")
    next(iter(job))
    job.cancel()
    until_released(api, since)
