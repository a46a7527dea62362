"""The first view: a recorded run of the model with which the page begins, until somebody starts one."""

from __future__ import annotations

import make
import numpy as np
import pytest
from launching import launched
from models import model
from pages import canvas_pixels, set_run, until

from dp.data.codec import make_grid, to_uint8

STEPS = 6


@pytest.fixture(scope="module")
def url(tmp_path_factory):
    root = tmp_path_factory.mktemp("models")
    model().save_pretrained(root / "small")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(make, "QUALITY", 95)  # the images of an untrained model are all noise
        make.save_recording(model(), {"timesteps": STEPS, "sampler": "ddim"}, root / "small" / "recording.webp")
    with launched(models=root) as address:
        yield address


@pytest.mark.browser
def test_a_recorded_run_plays_until_a_run_begins(page):
    page.wait_for_selector(".player[data-recorded]")
    until(page, f"d.recorded === '{STEPS}/{STEPS}'")
    assert page.inner_text(".player .step") == "Recorded. Press Generate for your own."
    shown, steps = canvas_pixels(page).astype(int), model().stream(16, timesteps=STEPS, sampler="ddim", seed=0)
    images = [make_grid(to_uint8((step.x0 + 1) / 2)) for step in steps]
    # Compression blurs the colors, but not the brightness.
    differences = [np.abs((shown - grid.astype(int)).mean(axis=-1)).mean() for grid in images]
    assert shown.shape == images[0].shape and differences[-1] < 0.6 * differences[0]
    until(page, f"d.recorded === '1/{STEPS}'")  # over and over
    set_run(page, timesteps=3, seed=1, images=2)
    page.focus("#generate")
    page.keyboard.press("Space")  # there is nothing yet that it could play
    until(page, "d.state === 'done' && step === 3 && d.recorded === undefined")
    images = model().sample(2, timesteps=3, sampler="dpmpp_2m", seed=1)
    np.testing.assert_array_equal(canvas_pixels(page), make_grid(to_uint8(images)))


@pytest.mark.browser
def test_with_reduced_motion_only_the_result_is_shown(page):
    page.emulate_media(reduced_motion="reduce")
    page.reload()
    page.wait_for_selector(f".player[data-recorded='{STEPS}/{STEPS}']")
    page.wait_for_timeout(600)
    assert page.get_attribute(".player", "data-recorded") == f"{STEPS}/{STEPS}"
