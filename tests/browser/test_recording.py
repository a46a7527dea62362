"""The first view of each tab: a recorded run, comparison and training run, until the visitor has one."""

from __future__ import annotations

import numpy as np
import pytest
import recordings
from launching import launched
from models import PacedEngine, model
from pages import canvas_pixels, set_run, type_numbers, until
from tiny_runs import make_run

from dp.data.codec import make_grid, to_uint8
from dp.training.trainer import Trainer

STEPS = 20


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    return tmp_path_factory.mktemp("root") / "home"


@pytest.fixture(scope="module")
def url(tmp_path_factory, home):
    root, training = tmp_path_factory.mktemp("models"), tmp_path_factory.mktemp("training")
    model().save_pretrained(root / "small")
    run = make_run(training, train_num_steps=20, save_and_sample_every=10)
    assert Trainer.from_run(run.path).train() == "finished"
    engine = PacedEngine(root, device="cpu")
    with pytest.MonkeyPatch.context() as patch:
        # The images of an untrained model are all noise.
        patch.setattr(recordings.recording, "IMAGE_QUALITY", 95)
        recordings.record_denoising(engine, "small", root / "small")
        recordings.record_comparison(engine, "small", root / "small")
    recordings.record_training(run, "a test's device", root / "small")
    with launched(home, models=root) as address:
        yield address


@pytest.mark.browser
def test_a_recorded_run_plays_until_a_run_begins(page):
    until(page, f"d.state === 'recorded' && step === {STEPS}")
    assert page.inner_text("#player .step") == f"Recorded, step {STEPS}/{STEPS}. Press Generate for your own."
    assert page.inner_text("#player .run-settings").startswith("small · 20 steps · DPM-Solver++(2M)")
    assert page.inner_text("#player .change .reading").startswith("step 20: ")
    shown, steps = canvas_pixels(page).astype(int), model().stream(16, timesteps=STEPS, sampler="dpmpp_2m", seed=0)
    images = [make_grid(to_uint8((step.x0 + 1) / 2)) for step in steps]
    # Compression blurs the colors, but not the brightness.
    differences = [np.abs((shown - grid.astype(int)).mean(axis=-1)).mean() for grid in images]
    assert shown.shape == images[0].shape and differences[-1] < 0.6 * differences[0]
    until(page, "step === 1")  # over and over
    assert page.is_disabled("#player .save") and page.is_disabled("#player .again")  # the server does not know the run
    page.keyboard.press("End")
    page.wait_for_timeout(600)
    until(page, f"step === {STEPS}")
    set_run(page, timesteps=3, seed=1, images=2)
    page.focus("#generate")
    page.keyboard.press("Enter")
    until(page, "d.state === 'done' && step === 3")
    images = model().sample(2, timesteps=3, sampler="dpmpp_2m", seed=1)
    np.testing.assert_array_equal(canvas_pixels(page), make_grid(to_uint8(images)))


@pytest.mark.browser
def test_with_reduced_motion_only_the_result_is_shown(page):
    page.emulate_media(reduced_motion="reduce")
    page.reload()
    page.wait_for_selector("#player .player")
    until(page, f"d.state === 'recorded' && step === {STEPS}")
    page.wait_for_timeout(600)
    assert page.get_attribute("#player .player", "data-step") == str(STEPS)


@pytest.mark.browser
def test_a_recorded_comparison_can_be_played_until_one_begins(page):
    page.get_by_role("tab", name="Compare").click()
    shown = page.locator(".player.variant:visible")
    shown.nth(5).wait_for()
    assert shown.locator(".label").all_inner_texts()[:2] == ["step 5 of 40", "whole 5-step run"]
    page.wait_for_function("document.querySelector('.clock .run-settings').innerText.startsWith('Recorded: small · ')")
    assert page.locator(".clock tbody tr").count() == 6 and page.is_visible(".clock .distances")
    steps = "[...document.querySelectorAll('.player.variant')].filter(p => p.offsetParent).map(p => +p.dataset.step)"
    page.wait_for_function(f"{steps} + '' === '5,5,10,10,20,20'")
    page.locator(".clock .scrub").focus()
    page.keyboard.press("Home")
    page.wait_for_function(f"{steps} + '' === '1,1,1,1,1,1'")
    shown.first.locator(".prediction canvas").click(position={"x": 5, "y": 5})
    page.wait_for_selector(".player.variant[data-image='0']:visible")
    page.keyboard.press("Escape")
    type_numbers(page, "compare-", timesteps=3)
    page.click("#compare")  # of three samplers
    page.wait_for_function(f"{steps} + '' === '3,3,3'")
    page.wait_for_selector("#compare", state="visible")
    assert page.inner_text(".clock .run-settings").startswith("small · 3 steps · ")
    assert page.locator(".clock tbody tr").count() == 3


@pytest.mark.browser
def test_a_recorded_training_run_is_shown_until_there_is_one(page, home):
    page.get_by_role("tab", name="Train").click()
    page.wait_for_selector("#board .run[data-state=recorded][data-samples='2']")
    assert page.inner_text("#board .run .name") == "My cats!"
    assert "on a test's device" in page.inner_text("#board .description")
    assert page.locator("#board .verbs button:visible, #board .open-in:visible").count() == 0
    page.click("#board .animation .play")
    run = make_run(home.parent, name="Mine")
    page.wait_for_selector("#board .run[data-state=new]")
    assert page.inner_text("#board .run .name") == "Mine" and page.is_visible("#board [data-verb=resume]")
    assert page.is_hidden("#board .animation")
    page.click("#board [data-verb=delete]")
    page.click("#board .confirmation .yes")
    page.wait_for_selector("#board .run[data-state=recorded][data-samples='2']")
    assert not run.path.exists()
