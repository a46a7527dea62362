"""The player: all steps of a run stay on the page, where they can be stepped through, scrubbed and played."""

import hashlib
import io
import json
import math
import re
import time
import zipfile
from pathlib import Path

import av
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from models import MODEL, PacedEngine, model, models_dir
from pages import (
    canvas_pixels,
    click,
    close_toasts,
    copied_link,
    decode,
    hearing_late,
    set_run,
    show_more,
    type_numbers,
    until,
)
from PIL import Image

from dp.data.codec import encode_png, make_grid, read_png_text, to_uint8
from dp.diffusion.replay import state_at_step
from dp.diffusion.settings import SampleSettings
from dp.networks.attention import read_attention
from dp.ui.components.player.player import server_functions
from dp.ui.streaming import curve_of

STEPS, SEED = 40, 3
OVERLAY = "document.querySelector('.prediction .overlay').toDataURL('image/png')"


@pytest.fixture(scope="module")
def steps():
    """Return the steps of the tests' run, from the library."""
    policy = model()
    return list(policy.stream(4, timesteps=STEPS, sampler="dpmpp_2m", seed=SEED))


def start(page, timesteps=STEPS, images=4):
    set_run(page, timesteps=timesteps, seed=SEED, images=images)
    page.click("#generate")


def finished(page):
    """Start a run, and wait until it has ended and the page has all its frames."""
    start(page)
    until(page, f"d.state === 'done' && +d.kept === {STEPS} && step === {STEPS}")
    page.finished_run = page.get_attribute(".player", "data-run")


@pytest.fixture
def page(shared_page):
    return shared_page


@pytest.fixture
def kept(page):
    """Return the page at the end of a finished run, which the tests that only read it share."""
    if getattr(page, "finished_run", "") != page.get_attribute(".player", "data-run"):
        finished(page)
    page.focus(".player")
    if page.evaluate("document.querySelector('.player').classList.contains('playing')"):
        page.keyboard.press("Space")
    page.keyboard.press("Escape")
    page.keyboard.press("End")
    until(page, f"d.image === undefined && step === {STEPS}")
    return page


def distance(shown, images):
    """Return the mean distance in gray levels; live and recorded frames are JPEG."""
    return np.abs(shown.astype(int) - make_grid(to_uint8((images + 1) / 2)).astype(int)).mean()


@pytest.mark.browser
def test_the_page_follows_the_run_until_someone_scrubs_back_and_again_when_they_return(page):
    start(page, timesteps=1000)
    until(page, "step > 20")
    there = int(page.get_attribute(".player", "data-step"))
    until(page, f"step > {there}")
    assert page.get_attribute(".live", "aria-pressed") == "true"
    page.focus(".player")
    page.keyboard.press("Home")
    until(page, f"d.follow === 'false' && step <= {there}")  # the page decides which step it receives first
    held = page.get_attribute(".player", "data-step")
    page.wait_for_function("/live at \\d+/.test(document.querySelector('.player .step').innerText)")
    time.sleep(0.5)
    assert page.get_attribute(".player", "data-step") == held
    page.click(".live")
    until(page, f"d.follow === 'true' && step > {there}")
    page.click("#stop")
    until(page, "d.state === 'stopped'")


@pytest.mark.browser
def test_a_page_that_draws_too_slowly_still_ends_with_the_last_image(page, steps):
    page.evaluate(
        """() => {
            window.quickly = window.requestAnimationFrame;
            window.requestAnimationFrame = (draw) => setTimeout(() => draw?.(performance.now()), 1500);
        }"""
    )
    finished(page)
    page.evaluate("() => { window.requestAnimationFrame = window.quickly; }")
    np.testing.assert_array_equal(canvas_pixels(page), make_grid(to_uint8((steps[-1].x0 + 1) / 2)))


@pytest.mark.browser
def test_arrow_keys_step_through_every_step_of_the_run_and_both_panes_move_together(kept, steps):
    kept.focus(".player")
    for back in range(1, 4):
        kept.keyboard.press("ArrowLeft")
        until(kept, f"step === {STEPS - back}")
    step = steps[STEPS - 4]
    assert step.index == STEPS - 3
    assert kept.inner_text(".player .step") == f"step {STEPS - 3}/{STEPS}"
    assert f"t {step.time:.3f} · log-SNR {step.log_snr:.2f}" in kept.inner_text(".player .noise-level")
    assert distance(canvas_pixels(kept, ".prediction"), step.x0) < 10
    noisy = canvas_pixels(kept, ".noisy")
    assert min(steps, key=lambda other: distance(noisy, other.x_t)) is step
    kept.keyboard.press("Home")
    until(kept, "step === 1")
    kept.keyboard.press("ArrowLeft")  # there is no earlier step
    kept.keyboard.press("ArrowRight")
    until(kept, "step === 2")
    kept.keyboard.press("End")
    until(kept, f"step === {STEPS}")
    np.testing.assert_array_equal(canvas_pixels(kept), make_grid(to_uint8((steps[-1].x0 + 1) / 2)))


@pytest.mark.browser
def test_the_keys_act_on_the_player_from_anywhere_but_a_control_that_uses_them(kept):
    run = kept.get_attribute(".player", "data-run")
    kept.evaluate("document.activeElement.blur()")
    kept.keyboard.press("Home")
    until(kept, "step === 1")
    for control in ("#generate", "#link", ".play"):
        step = int(kept.get_attribute(".player", "data-step"))
        kept.focus(control)
        kept.keyboard.press("ArrowRight")
        until(kept, f"step === {step + 1}")
    kept.focus("#generate")
    kept.keyboard.press("Space")
    until(kept, "p.classList.contains('playing')")
    kept.keyboard.press("Space")
    until(kept, "!p.classList.contains('playing')")
    step = kept.get_attribute(".player", "data-step")
    for control, key in (("#seed input[type=number]", "Home"), ("#sampler input:checked", "Space")):
        kept.focus(control)
        kept.keyboard.press(key)
    assert kept.get_attribute(".player", "data-step") == step and "playing" not in kept.get_attribute(
        ".player", "class"
    )
    assert kept.get_attribute(".player", "data-run") == run  # Generate was not pressed
    kept.evaluate("document.activeElement.blur()")
    kept.keyboard.press("?")
    assert "Space\nplay, pause" in kept.inner_text(".player .key-list")
    kept.mouse.click(5, 5)
    kept.wait_for_selector(".player .key-list", state="hidden")


@pytest.mark.browser
def test_a_run_of_one_image_can_be_looked_at(page):
    start(page, timesteps=6, images=1)
    until(page, "d.state === 'done' && +d.kept === 6")
    click(page, ".prediction canvas", 0.5, 0.5)
    page.wait_for_selector(".strip-steps li")
    assert page.is_visible(".attention-toggle")
    page.keyboard.press("Escape")
    until(page, "d.image === undefined")
    assert page.evaluate("document.activeElement.classList.contains('player')")  # Generate gave it the focus
    page.get_by_label("Random seed").check()
    assert f"seed={SEED}" in copied_link(page)  # that of the run which is shown
    page.get_by_label("Random seed").uncheck()


@pytest.mark.browser
def test_again_keeps_the_noise_and_shows_the_result_before(page):
    start(page, timesteps=3, images=1)
    until(page, "d.state === 'done' && +d.kept === 3")
    before = canvas_pixels(page)
    type_numbers(page, seed=9)  # not drawn yet
    page.get_by_label("Random seed").check()
    page.locator("#sampler").get_by_label("DDIM", exact=True).check()
    page.get_by_role("button", name="Again, same noise").click()
    page.wait_for_function("document.querySelector('.difference').textContent")
    after = to_uint8(model().sample(1, timesteps=3, sampler="ddim", seed=SEED))[0]
    np.testing.assert_allclose(canvas_pixels(page), after, atol=1)
    far = float(re.match(r"RMS difference to it: ([\d.]+) ", page.inner_text(".difference"))[1])
    assert far > 0 and abs(far - np.sqrt(np.mean(((before - after.astype(float)) / 255) ** 2))) < 2e-3
    assert page.input_value("#seed input") == str(SEED) and page.get_by_label("Random seed").is_checked()
    page.click(".before")
    page.wait_for_selector(".prediction .overlay")
    np.testing.assert_array_equal(decode(page.evaluate(OVERLAY)), before)
    assert page.inner_text(".prediction-title") == "The previous result"
    page.get_by_role("button", name="New noise").click()
    until(page, "d.state === 'done' && +d.kept === 3 && p.querySelector('.before').hidden")
    assert page.input_value("#seed input") != str(SEED)
    page.locator("#sampler").get_by_label("DPM-Solver++(2M)", exact=True).check()  # the page is shared


@pytest.mark.soak
@pytest.mark.browser
def test_a_run_whose_first_messages_arrive_together_is_a_new_run(page, steps):
    with hearing_late(page):
        page.get_by_role("tab", name="Denoise").click()
        finished(page)
        np.testing.assert_array_equal(canvas_pixels(page), make_grid(to_uint8((steps[-1].x0 + 1) / 2)))
        start(page, timesteps=12, images=2)
        until(page, "d.state === 'done' && +d.kept === 12 && step === 12")
        assert page.inner_text(".player .step") == "step 12/12 · done"
        start(page, timesteps=1000)
        page.click("#stop")
        until(page, "d.state === 'stopped'")
        page.wait_for_selector("#generate", state="visible")


@pytest.mark.browser
def test_scrubbing_sends_no_requests(kept):
    asked = []
    kept.on("request", lambda request: request.url.startswith("data:") or asked.append(request.url))
    for value in range(STEPS - 1, 0, -3):
        kept.locator(".scrub").fill(str(value))
        until(kept, f"step === {value + 1}")
    assert [url for url in asked if "heartbeat" not in url] == []


@pytest.mark.browser
def test_play_runs_from_the_beginning_to_the_end_and_space_pauses_it(kept):
    kept.select_option(".speed", "2")
    kept.evaluate(
        """() => { window.seen = []; const p = document.querySelector('.player');
        new MutationObserver(() => window.seen.push(+p.dataset.step)).observe(p, {attributes: true}); }"""
    )
    kept.click(".play")
    until(kept, f"step === {STEPS} && !p.classList.contains('playing')")
    seen = kept.evaluate("window.seen.filter((step, i, all) => step !== all[i - 1])")
    seen = seen[seen[0] == STEPS :]  # the step shown before
    assert seen == sorted(seen) and seen[0] < 5 and len(seen) > 10
    kept.select_option(".speed", "0.5")
    kept.focus(".player")
    kept.keyboard.press("Space")
    until(kept, "p.classList.contains('playing') && step > 2 && step < 20")
    kept.keyboard.press("Space")
    until(kept, "!p.classList.contains('playing')")
    assert 2 < int(kept.get_attribute(".player", "data-step")) < STEPS


@pytest.mark.browser
def test_a_tile_becomes_a_large_lossless_view_with_its_own_strip(kept, steps):
    click(kept, ".prediction canvas", 0.75, 0.25)  # the second of four
    until(kept, "d.image === '1'")
    kept.wait_for_selector(".strip-steps li")
    kept.focus(".player")
    kept.keyboard.press("ArrowLeft")
    until(kept, f"step === {STEPS - 1}")
    step = steps[STEPS - 2]
    np.testing.assert_array_equal(canvas_pixels(kept, ".prediction"), to_uint8((step.x0 + 1) / 2)[1])
    np.testing.assert_array_equal(canvas_pixels(kept, ".noisy"), to_uint8((step.x_t + 1) / 2)[1])
    assert "(image 2)" in kept.inner_text(".charts")
    assert kept.get_attribute(".strip-steps [aria-current]", "data-step") == "36"
    kept.get_by_label("Step 1", exact=True).press("Enter")
    until(kept, "step === 1 && p.querySelector('.strip-steps [aria-current]').dataset.step === '1'")
    kept.keyboard.press("Escape")
    until(kept, "d.image === undefined && p.querySelector('.prediction canvas').width === 64")
    assert not kept.is_visible(".strip")


@pytest.mark.browser
def test_the_chart_of_the_signal_names_the_other_schedules_and_its_ends(kept):
    assert kept.inner_text("#player .others") == "Faint: other schedules (linear, cosine)."
    label = kept.get_attribute("#player .snr canvas", "aria-label")
    assert re.fullmatch(rf"log-SNR: at step 1, log-SNR −[\d.]+; at step {STEPS}, log-SNR [\d.]+", label), label


@pytest.mark.browser
def test_a_click_on_a_chart_goes_to_that_step(kept):
    for chart in (".snr", ".change"):
        click(kept, f".chart{chart} canvas", 0.57, 0.5)  # the middle of the axis, right of its labels
        until(kept, f"Math.abs(step - {STEPS / 2}) < 2")
        reading = kept.inner_text(f".chart{chart} .reading")
        assert re.fullmatch(r"step (19|20|21): (log-SNR [−\d.]+|[\d.]+ RMS)", reading), reading
        kept.focus(".player")
        kept.keyboard.press("End")
        until(kept, f"step === {STEPS}")


def expect_groups(page):
    """Expect a picture for each group of latents: bright where they read most, as in the library."""
    settings = SampleSettings(4, timesteps=STEPS, sampler="dpmpp_2m", seed=SEED)
    weights = read_attention(model(), state_at_step(model(), settings, 1, STEPS - 1, None, None))[0, 0]  # [M,N]
    groups = page.evaluate(
        """() => [...document.querySelectorAll('.groups li:not(.stale)')].map((item) => {
            const [canvas, caption] = item.children;
            const picture = document.querySelector('.prediction canvas').getContext('2d');
            const read = (pen) => Array.from(pen.getImageData(0, 0, canvas.width, canvas.height).data);
            return [caption.innerText, read(canvas.getContext('2d')), read(picture)];
        })"""
    )
    assert len(groups) == 4
    sizes = [int(text.removesuffix(" latents")) for text, *_ in groups]
    assert sum(sizes) == 8 and sizes == sorted(sizes, reverse=True)
    alone = [lit(*pictures) for size, (_, *pictures) in zip(sizes, groups) if size == 1]
    peaks = weights / weights.max(dim=1, keepdim=True).values
    expected = 1 - 0.85 * (1 - peaks)  # [M,64]
    assert alone
    for shown in alone:  # of one of the latents, in the patches that are not black
        seen = ~shown.isnan()
        assert (expected - shown)[:, seen].abs().amax(dim=1).min() < 0.02


def lit(shown, picture):
    """Return how bright each of 64 patches is, relative to the picture; NaN where the picture is too dark to tell."""
    pixels, full = (torch.tensor(part, dtype=torch.float).view(-1, 4)[:, :3].sum(dim=1) for part in (shown, picture))
    side = math.isqrt(len(full))
    sums = [F.avg_pool2d(part.view(1, 1, side, side), side // 8).flatten() for part in (pixels, full)]
    return torch.where(sums[1] > 100, sums[0] / sums[1], torch.nan)


@pytest.mark.browser
def test_the_page_highlights_what_the_selected_latent_attends_to(kept):
    """As in the library, for an image of a finished run: the patch with the highest attention is not darkened."""
    click(kept, ".prediction canvas", 0.75, 0.25)  # the second
    kept.wait_for_selector(".strip-steps li")
    kept.click(".attention-toggle")
    until(kept, f"d.attention === '{STEPS}/1/0'")
    kept.focus(".player")
    kept.keyboard.press("ArrowLeft")
    until(kept, f"d.attention === '{STEPS - 1}/1/0'")
    expect_groups(kept)
    kept.locator(".attention .block").fill("2")
    kept.locator(".attention .latent").fill("7")
    until(kept, f"d.attention === '{STEPS - 1}/2/7'")
    policy = model()
    settings = SampleSettings(4, timesteps=STEPS, sampler="dpmpp_2m", seed=SEED)
    weights = read_attention(policy, state_at_step(policy, settings, 1, STEPS - 1, None, None))[0, 1, 6]
    dark = kept.evaluate(
        """Array.from(document.querySelector('.noisy .overlay').getContext('2d').getImageData(0, 0, 8, 8).data)
        .filter((_, i) => i % 4 === 3)"""
    )
    expected = 0.85 * 255 * (1 - weights / weights.max())
    assert (torch.tensor(dark) - expected).abs().max() < 3 and dark[weights.argmax()] == 0
    peak = f"{100 * weights.max().item():.1f}% of its attention is on the brightest patch"
    assert peak in kept.inner_text(".attention-summary")
    kept.keyboard.press("Escape")
    until(kept, "d.attention === undefined")
    assert kept.locator(".player .overlay").count() == 0 and not kept.is_visible(".attention-summary")


# ----------------------------------------------------------------------------
# Files, settings and links


def saved(page, kind):
    """Return the bytes of the file that the player saves as `kind`."""
    with page.expect_download(timeout=60_000) as download:
        page.click(".save")
        page.click(f".save-menu [data-kind={kind}]")
    page.wait_for_function("document.querySelector('.player .step').innerText.startsWith('saved ')")
    return Path(download.value.path()).read_bytes()


def pngs(archive):
    """Return the images in a ZIP by name."""
    with zipfile.ZipFile(io.BytesIO(archive)) as file:
        names = [name for name in file.namelist() if name.endswith(".png")]
        return {name: np.asarray(Image.open(io.BytesIO(file.read(name)))) for name in names}


@pytest.mark.browser
def test_every_export_holds_the_frames_of_the_run(kept, steps):
    x0 = [to_uint8((step.x0 + 1) / 2) for step in steps]
    np.testing.assert_array_equal(np.asarray(Image.open(io.BytesIO(saved(kept, "png")))), make_grid(x0[-1]))

    singles = pngs(saved(kept, "images"))
    assert list(singles) == [f"{MODEL}-{SEED + i}.png" for i in range(4)]
    np.testing.assert_array_equal(np.stack(list(singles.values())), x0[-1])

    every = pngs(saved(kept, "zip"))
    assert len(every) == 2 * STEPS
    for step, images in zip(steps, x0):
        np.testing.assert_array_equal(every[f"x0/{step.index:06d}.png"], make_grid(images))
        np.testing.assert_array_equal(every[f"x_t/{step.index:06d}.png"], make_grid(to_uint8((step.x_t + 1) / 2)))

    large = np.asarray(Image.open(io.BytesIO(saved(kept, "png4"))))
    np.testing.assert_array_equal(large, make_grid(x0[-1]).repeat(4, 0).repeat(4, 1))

    click(kept, ".prediction canvas", 0.75, 0.25)  # the strip is that of the image that is looked at
    until(kept, "d.image === '1'")
    data = saved(kept, "strip")
    assert json.loads(read_png_text(data)["dp"])["seed"] == SEED + 1
    np.testing.assert_array_equal(np.asarray(Image.open(io.BytesIO(data)))[::4, -128::4], x0[-1][1])
    kept.keyboard.press("Escape")
    until(kept, "d.image === undefined")
    strip = np.asarray(Image.open(io.BytesIO(saved(kept, "strip"))))
    assert strip.shape[0] == 128 and strip.shape[1] == 10 * 130 - 2
    np.testing.assert_array_equal(strip[::4, -128::4], x0[-1][0])
    np.testing.assert_array_equal(strip[::4, :128:4], x0[0][0])

    with Image.open(io.BytesIO(saved(kept, "gif"))) as gif:
        assert gif.n_frames == STEPS
        for i in (0, STEPS // 2, STEPS - 1):
            gif.seek(i)
            shown = np.asarray(gif.convert("RGB"))
            factor = shown.shape[0] // 64
            error = shown[::factor, -64 * factor :: factor].astype(int) - make_grid(x0[i]).astype(int)
            assert np.abs(error).mean() < 20  # noise compresses badly

    with av.open(io.BytesIO(saved(kept, "mp4"))) as film:
        shown = [frame.to_ndarray(format="rgb24") for frame in film.decode(video=0)]
    assert len(shown) == STEPS
    for frame, images in zip(shown, x0):
        factor = frame.shape[0] // 64
        assert np.abs(frame[::factor, -64 * factor :: factor].astype(int) - make_grid(images).astype(int)).mean() < 20


def upload(page, path):
    with page.expect_file_chooser() as chooser:
        page.click("#load")
    chooser.value.set_files(path)


def controls_of(page):
    """Return the values of the page's controls."""
    show_more(page)
    values = {key: page.input_value(f"#{key} input[type=number]") for key in ("images", "timesteps", "seed")}
    if page.is_visible("#eta"):
        values["eta"] = page.input_value("#eta input[type=number]")
    values["random"] = page.get_by_label("Random seed").is_checked()
    for group in ("sampler", "schedule"):
        values[group] = page.locator(f"#{group} input:checked").input_value()
    return values


def choose_others(page):
    set_run(page, timesteps=12, seed=SEED, images=2)
    page.get_by_label("DDIM").check()
    show_more(page)
    page.get_by_label("cosine", exact=True).check()
    for control, value in (("difference", "1.5"), ("eta", "0.4")):
        box = page.locator(f"#{control} input[type=number]")
        box.fill(value)
        box.press("Tab")
    page.click("#generate")
    until(page, "d.state === 'done' && +d.kept === 12 && step === 12")
    return controls_of(page)


def set_to(page, chosen):
    """Wait until the controls have these values; Gradio sets them one after the other."""
    deadline = time.monotonic() + 60
    while controls_of(page) != chosen:
        assert time.monotonic() < deadline, (controls_of(page), chosen)
        time.sleep(0.1)


def generate_again(page):
    """Run the page's settings, and return the images."""
    before = page.get_attribute(".player", "data-run")
    page.click("#generate")
    until(page, f"d.run !== '{before}' && d.state === 'done' && step === 12")
    return canvas_pixels(page)


@pytest.mark.browser
def test_a_png_and_a_link_restore_the_controls_and_the_pixels_and_invalid_ones_change_nothing(page, url, tmp_path):
    chosen, picture = choose_others(page), canvas_pixels(page)
    png = saved(page, "png")
    made_with = json.loads(read_png_text(png)["dp"])
    assert [made_with[key] for key in ("sampler", "noise_schedule", "timesteps", "eta")] == ["ddim", "cosine", 12, 0.4]
    assert made_with["sha256"] == hashlib.sha256((models_dir() / MODEL / "model.safetensors").read_bytes()).hexdigest()
    assert read_png_text(png)["parameters"].startswith(
        f"{MODEL} ({made_with['sha256'][:12]}), 2 images from seed {SEED}"
    )

    page.goto(f"{url}/?timesteps=99999&sampler=<b>x&difference={'9' * 400}&seed=5")
    page.get_by_text("Ignored from the link: timesteps (Timesteps must be").wait_for()
    assert page.get_by_text("difference (Time difference must be").count() == 1
    page.wait_for_function("document.querySelector('#seed input').value === '5'")
    page.wait_for_selector("#generate.suggested")  # and no run begins by itself
    before = controls_of(page)
    assert before["timesteps"] == "20" and before != chosen
    (tmp_path / "other.png").write_bytes(encode_png(np.zeros((8, 8, 3), np.uint8)))
    upload(page, tmp_path / "other.png")
    page.get_by_text("this PNG has no settings").wait_for()
    assert controls_of(page) == before
    close_toasts(page)

    (tmp_path / "mine.png").write_bytes(png)
    upload(page, tmp_path / "mine.png")
    set_to(page, chosen)
    np.testing.assert_array_equal(generate_again(page), picture)

    # A link draws its run when it is opened; a page that is loaded again shows its last run, and not the link's.
    link = copied_link(page)
    page.locator("#random input").check()
    page.goto(link)
    page.wait_for_selector(".player")
    until(page, "d.state === 'done' && step === 12 && +d.kept === 12")
    np.testing.assert_array_equal(canvas_pixels(page), picture)
    set_to(page, chosen)
    type_numbers(page, timesteps=3)
    page.click("#generate")
    until(page, "d.state === 'done' && step === 3 && +d.kept === 3")
    page.reload()
    page.wait_for_selector(".player")
    until(page, "d.state === 'done' && step === 3 && +d.kept === 3")
    set_to(page, chosen | {"timesteps": "3"})

    page.goto(f"{url}/?images=9&timesteps=90&seed=5")  # a longer run takes a click
    page.wait_for_selector("#generate.suggested")
    assert page.get_attribute(".player", "data-state") == "idle"


# ----------------------------------------------------------------------------
# The player's server functions


@pytest.fixture(scope="module")
def ended():
    engine = PacedEngine(models_dir(), device="cpu")
    handle = engine.submit(SampleSettings(3, timesteps=20, seed=0), MODEL)
    list(handle)
    return engine, handle


def test_the_recorded_frames_are_sent_in_chunks(ended):
    engine, handle = ended
    frames, *_ = server_functions(engine)
    first = frames({"run": handle.request_id, "start": 0})
    second = frames({"run": handle.request_id, "start": len(first["frames"])})
    assert first["total"] == 20
    assert [frame["index"] for frame in first["frames"] + second["frames"]] == list(range(1, 21))
    assert first["frames"][0]["moved"] == [0, 0, 0] and min(first["frames"][1]["moved"]) > 0


def test_the_curves_of_other_schedules_are_those_of_their_runs(ended):
    others = curve_of(ended[1])["others"]
    assert list(others) == ["linear", "cosine"]
    for name, curve in others.items():
        levels = [step.log_snr for step in model().stream(1, timesteps=20, noise_schedule=name, seed=0)]
        assert [step for step, _ in curve] == list(range(1, 21))
        assert np.abs(np.array(curve)[:, 1] - levels).max() < 0.006  # rounded


def test_arbitrary_requests_do_no_harm(ended):
    engine, handle = ended
    frames, closeup, attention, branches, best, candidates, map_of, apart, endings, save = server_functions(engine)
    run = handle.request_id
    for asked in (None, [], "x", {}, {"run": run}, {"run": "x", "start": 0, "row": 0}, {"run": [run], "start": 0}):
        assert frames(asked) is None and closeup(asked) is None
        assert attention(asked) is None and branches(asked) is None and apart(asked) is None
        assert endings(asked) is None
        assert best(asked) is None and (asked == {"run": run} or candidates(asked) is None)
        assert "problem" in save(asked)
        assert asked == {"run": run} or map_of(asked) is None
    for wrong in (-1, 20, 1.5, "0", None, True, 10**30):
        assert frames({"run": run, "start": wrong}) is None
    for wrong in (-1, 3, 1.5, "0", None, True):
        assert closeup({"run": run, "row": wrong}) is None
        assert attention({"run": run, "row": wrong, "index": 1}) is None
        assert best({"run": run, "row": wrong, "index": 1}) is None
        assert wrong is None or candidates({"run": run, "row": wrong}) is None
        assert attention({"run": run, "row": 0, "index": 21 if wrong == 3 else wrong}) is None
    assert "problem" in attention({"run": run, "row": 0, "index": 0})
