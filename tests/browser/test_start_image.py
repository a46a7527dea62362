"""Runs that start from an image, keep a part of it, or walk from one seed to another."""

import base64

import numpy as np
import pytest
import torch
from models import model
from pages import canvas_pixels, copied_link, set_run, show_more, until
from PIL import Image

from dp import DiffusionPolicy, SampleSettings
from dp.data.codec import encode_png, make_grid, to_float, to_uint8, to_uint8_tensor
from dp.data.dataset import decode
from dp.diffusion.noise import slerp
from dp.diffusion.schedules import level
from dp.serving.engine import Engine
from dp.ui.components.start_image.start_image import read_start_image

SAMPLERS = ["ddim", "ddpm", "dpmpp_2m", "dpmpp_2m_sde"]


@pytest.fixture
def policy(tiny_rin):
    return DiffusionPolicy(tiny_rin(), timesteps=6)


@pytest.fixture
def picture():
    """Return an image [C,H,W] in [0, 1] whose values are multiples of 1/255."""
    return torch.randint(0, 256, (3, 8, 8), generator=torch.Generator().manual_seed(1)) / 255


@pytest.fixture
def mask():
    mask = torch.zeros(8, 8, dtype=torch.bool)
    mask[:, :5] = True
    return mask


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_strength_1_is_generation_from_noise(policy, picture, sampler):
    from_noise = policy.sample(3, sampler=sampler, seed=4)
    assert torch.equal(policy.sample(3, sampler=sampler, seed=4, start=picture, strength=1.0), from_noise)
    assert not torch.equal(policy.sample(3, sampler=sampler, seed=4, start=picture, strength=0.9), from_noise)


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_a_strength_near_0_returns_the_image(sampler):
    policy = model()
    face = policy.sample(1, timesteps=20, sampler="dpmpp_2m", seed=0)[0]
    images = policy.sample(2, timesteps=5, sampler=sampler, seed=1, start=face, strength=1e-6)
    distance = (to_uint8_tensor(images).int() - to_uint8_tensor(face[None]).int()).abs()
    assert distance.max() <= 1


@pytest.mark.parametrize("scale", [1.0, 0.5])
def test_the_run_starts_from_the_image_with_the_noise_of_its_seed(tiny_rin, picture, scale):
    policy = DiffusionPolicy(tiny_rin(), noise_schedule="cosine", scale=scale)
    steps = list(policy.stream(2, timesteps=5, seed=7, start=picture, strength=0.6))
    assert [round(step.time, 6) for step in steps] == [0.6, 0.48, 0.36, 0.24, 0.12]
    at = level(policy.schedule, torch.tensor([0.6]), scale)
    noise = policy.init_state(SampleSettings(2, seed=7)).x_t
    torch.testing.assert_close(steps[0].x_t, (at.alpha * (picture * 2 - 1) + at.sigma * noise).float())


@pytest.mark.parametrize("strength", [1.0, 0.5])
@pytest.mark.parametrize("sampler", SAMPLERS)
def test_kept_pixels_are_the_noised_image_and_finally_the_image(policy, picture, mask, sampler, strength):
    run = {"timesteps": 8, "sampler": sampler, "seed": 2, "start": picture, "strength": strength}
    steps = list(policy.stream(2, **run, mask=mask))
    images, free = (steps[-1].x0 + 1) / 2, policy.sample(2, **run)
    assert (to_uint8(images)[:, mask.numpy()] == to_uint8(picture[None])[:, mask.numpy()]).all()
    assert not torch.allclose(images[..., ~mask], free[..., ~mask])  # the inpainted part matches the kept part
    if sampler in ("ddim", "dpmpp_2m"):  # the other samplers draw new noise
        noise = policy.init_state(SampleSettings(2, seed=2)).x_t
        for step in steps[1:]:
            at = level(policy.schedule, torch.tensor([step.time]))
            under_noise = (at.alpha * (picture * 2 - 1) + at.sigma * noise).float()
            torch.testing.assert_close(step.x_t[..., mask], under_noise[..., mask], atol=1e-3, rtol=0)


def test_a_start_image_gives_the_same_result_alone_in_a_batch_and_in_the_engine(tiny_rin, picture, mask, tmp_path):
    policy = DiffusionPolicy(tiny_rin())
    policy.save_pretrained(tmp_path / "tiny")
    settings = SampleSettings(5, timesteps=6, sampler="ddpm", seed=3, strength=0.7)
    together = policy.sample(5, timesteps=6, sampler="ddpm", seed=3, strength=0.7, start=picture, mask=mask)
    alone = policy.sample(1, timesteps=6, sampler="ddpm", seed=5, strength=0.7, start=picture, mask=mask)
    torch.testing.assert_close(together[2:3], alone, atol=1e-4, rtol=0)
    engine = Engine(tmp_path, row_budget=2, device="cpu")  # in parts
    others = [engine.submit(SampleSettings(2, timesteps=9, sampler="ddpm", seed=i), "tiny") for i in range(2)]
    handle = engine.submit(settings, "tiny", start=picture, mask=mask)
    list(handle)
    assert abs(handle.frame.x0.astype(int) - to_uint8(together)).max() <= 1
    assert handle.provenance["strength"] == 0.7 and len(handle.provenance["start"]) == 64 and handle.provenance["mask"]
    list(others[0])
    assert others[0].provenance["start"] is None


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_a_walk_begins_and_ends_with_the_images_of_its_seeds(policy, sampler):
    walk = policy.sample(5, sampler=sampler, seed=2, walk_to=9)
    ends = torch.cat([policy.sample(1, sampler=sampler, seed=seed) for seed in (2, 9)])
    torch.testing.assert_close(walk[[0, -1]], ends, atol=1e-4, rtol=0)
    assert not torch.allclose(walk[2], walk[0])


def test_the_noise_of_a_walk_keeps_its_norm_and_turns_by_equal_angles(policy):
    noise = policy.init_state(SampleSettings(5, seed=2, walk_to=9)).x_t.flatten(1)
    for seed, row in ((2, noise[0]), (9, noise[-1])):
        assert torch.equal(policy.init_state(SampleSettings(1, seed=seed)).x_t.flatten(), row)
    ends = noise[[0, -1]].norm(dim=1)
    assert (noise.norm(dim=1) > 0.97 * ends.min()).all() and (noise.norm(dim=1) < 1.03 * ends.max()).all()
    a, b = noise[0].double(), noise[-1].double()
    angle = torch.arccos(a @ b / (a.norm() * b.norm()))
    halves = slerp(a / a.norm(), b / b.norm(), 0.25)
    torch.testing.assert_close(torch.arccos(halves @ a / a.norm()), angle / 4)
    assert torch.equal(slerp(a, a, 0.3), a)


@pytest.mark.parametrize(
    "bad, message",
    [
        ({"strength": 0.0}, "strength must be above 0 and at most 1, got 0.0"),
        ({"strength": 1.5}, "strength must be above 0 and at most 1, got 1.5"),
        ({"strength": float("nan")}, "strength must be above 0 and at most 1, got nan"),
        ({"strength": 0.5}, "needs a start: the image to start from"),
        ({"mask": torch.ones(8, 8, dtype=torch.bool)}, "needs a start: the image to start from"),
        ({"start": torch.zeros(3, 9, 8)}, r"start must be \(2, 3, 8, 8\) or \(3, 8, 8\), got \(3, 9, 8\)"),
        ({"start": torch.zeros(3, 3, 8, 8)}, r"got \(3, 3, 8, 8\)"),
        ({"start": torch.zeros(3, 8, 8), "mask": torch.ones(4, 8)}, r"mask must be .* got \(1, 4, 8\)"),
        ({"walk_to": -1}, "walk_to must be a whole number from 0"),
        ({"walk_to": 3, "batch_size": 1}, "batch_size of an interpolation must be a whole number of at least 2, got 1"),
    ],
)
def test_invalid_input_is_an_error_before_the_first_step(policy, bad, message):
    with pytest.raises(ValueError, match=message):
        policy.stream(**({"batch_size": 2} | bad))


def test_an_image_file_is_a_start_image(policy, tmp_path):
    Image.new("RGB", (40, 30), "teal").save(tmp_path / "mine.png")
    start = to_float(torch.from_numpy(decode(tmp_path / "mine.png", 8, "RGB")[None].copy()))[0]
    assert policy.sample(1, timesteps=2, seed=0, start=start, strength=0.3).shape == (1, 3, 8, 8)


# ----------------------------------------------------------------------------
# On the page


def choose(page, tmp_path):
    """Choose a face of 48 x 64 pixels on the page, and return the square that the page keeps of it."""
    face = torch.linspace(0, 1, 64)[:, None, None] * torch.tensor([1.0, 0.6, 0.2]) * torch.ones(48, 1)
    Image.fromarray((face.numpy() * 255).astype("uint8")).save(tmp_path / "mine.png")
    show_more(page)
    page.locator("#start input[type=file]").set_input_files(tmp_path / "mine.png")
    page.wait_for_selector("#start .start[data-state=chosen]")


PIXEL = "([x, y]) => document.querySelector('#start .mask').getContext('2d').getImageData(x, y, 1, 1).data[3] > 0"


def given(page, mask=False):
    """Return the component's value as the server parses it."""
    uri = "document.querySelector('#start .{}').toDataURL('image/png')"
    value = {"image": page.evaluate(uri.format("image")), "strength": 0.5}
    return read_start_image(value | ({"mask": page.evaluate(uri.format("mask"))} if mask else {}), 32, 3)


def finished(page, steps):
    until(page, f"d.state === 'done' && +d.kept === {steps} && step === {steps}")


@pytest.mark.browser
def test_a_run_of_the_page_starts_from_the_image_and_keeps_painted_areas(shared_page, tmp_path):
    page = shared_page
    policy = model()
    choose(page, tmp_path)
    set_run(page, timesteps=10, seed=6, images=4)
    page.locator("#start .strength").fill("0.5")
    log_snr = level(policy.schedule, torch.tensor([0.5])).log_snr.item()
    page.wait_for_function(f"document.querySelector('#start .start-level').innerText.endsWith('log-SNR {log_snr:.2f}')")
    run = {"timesteps": 10, "sampler": "dpmpp_2m", "seed": 6, "strength": 0.5}
    page.click("#generate")
    finished(page, 10)
    start, *_ = given(page)
    assert start.std() > 0.1  # the image, not blank
    np.testing.assert_allclose(canvas_pixels(page), make_grid(to_uint8(policy.sample(4, **run, start=start))), atol=1)

    page.locator("#start .brush-width").fill("64")
    canvas = page.locator("#start .mask")
    canvas.scroll_into_view_if_needed()
    box = canvas.bounding_box()
    page.mouse.move(box["x"] + 5, box["y"] + 15)
    page.mouse.down()
    page.mouse.move(box["x"] + box["width"] - 5, box["y"] + 15, steps=4)
    page.mouse.up()
    start, mask, _ = given(page, mask=True)
    assert 0.1 < mask.float().mean() < 0.5
    page.evaluate("document.querySelector('.player').dataset.kept = ''")
    page.click("#generate")
    finished(page, 10)
    shown = canvas_pixels(page).reshape(2, 32, 2, 32, 3).transpose(0, 2, 1, 3, 4).reshape(4, 32, 32, 3)
    assert (shown[:, mask.numpy()] == to_uint8(start[None])[0][mask.numpy()]).all()
    expected = to_uint8(policy.sample(4, **run, start=start, mask=mask))
    np.testing.assert_allclose(shown, expected, atol=1)

    # By keyboard: eight pixels of 256 with each arrow, and only what is painted with Shift or space is kept.
    page.click("#start .clear")
    canvas.focus()
    for key in ("ArrowUp", "ArrowUp", "Shift+ArrowRight", "ArrowDown"):
        page.keyboard.press(key)
    assert page.is_visible("#start .brush")
    painted = [page.evaluate(PIXEL, at) for at in ([132, 112], [128, 128 - 16 + 28], [128, 150], [20, 112])]
    assert painted == [True, True, False, False]
    page.keyboard.press(" ")
    assert page.evaluate(PIXEL, [136, 150]) and page.inner_text("#player .step") == "step 10/10 · done"  # not played

    page.click("#start .remove")
    page.wait_for_selector("#start .start[data-state=empty]")
    page.evaluate("document.querySelector('.player').dataset.kept = ''")
    page.click("#generate")
    finished(page, 10)
    from_noise = policy.sample(4, **(run | {"strength": 1.0}))
    np.testing.assert_allclose(canvas_pixels(page), make_grid(to_uint8(from_noise)), atol=1)


@pytest.mark.browser
def test_a_walk_is_shown_as_a_strip_that_plays_and_its_link_restores_it(shared_page):
    page = shared_page
    policy = model()
    set_run(page, timesteps=8, seed=2, images=5)
    show_more(page)
    assert page.input_value("#walk input") == ""  # opening the accordion starts no walk
    page.click("#generate")
    finished(page, 8)
    images = to_uint8(policy.sample(5, timesteps=8, sampler="dpmpp_2m", seed=2))
    np.testing.assert_allclose(canvas_pixels(page), make_grid(images), atol=1)
    page.evaluate("document.querySelector('.player').dataset.kept = ''")
    page.locator("#walk input").fill("9")
    page.locator("#walk input").press("Tab")
    page.click("#generate")
    finished(page, 8)
    images = to_uint8(policy.sample(5, timesteps=8, sampler="dpmpp_2m", seed=2, walk_to=9))
    np.testing.assert_allclose(canvas_pixels(page), make_grid(images), atol=1)
    page.wait_for_function("document.querySelector('.walk canvas').width === 160")
    page.click(".play-walk")
    for row in (0, 2, 4, 3):  # to the last image and back
        until(page, f"d.image === '{row}'")
    page.click(".play-walk")
    link = copied_link(page)
    assert "walk=9" in link and "seed=2" in link
    page.goto(link)
    show_more(page)
    page.wait_for_function("document.querySelector('#walk input')?.value === '9'")


def test_a_malformed_start_image_is_rejected():
    blank = "data:image/png;base64," + base64.b64encode(encode_png(np.zeros((8, 8, 3), np.uint8))).decode()
    large = "data:image/png;base64," + base64.b64encode(encode_png(np.zeros((8, 2000, 3), np.uint8))).decode()
    assert read_start_image(None, 32, 3) == (None, None, 1.0) == read_start_image({}, 32, 3)
    assert read_start_image({"image": blank, "mask": None, "strength": 0.2}, 32, 1)[0].shape == (1, 32, 32)
    for picture in (None, 7, "", "file:///etc/passwd", "data:image/png;base64,%%", blank[:-40], large, ["x"]):
        with pytest.raises(ValueError, match="the start image"):
            read_start_image({"image": picture}, 32, 3)
    with pytest.raises(ValueError, match="the start image"):
        read_start_image([1], 32, 3)
