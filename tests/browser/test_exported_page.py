"""An exported page in Chromium, served by nothing but a server of static files: its images are the library's."""

from __future__ import annotations

import json
import random
import re
import zlib
from hashlib import sha256

import numpy as np
import pytest
import torch
from exported import CLASSES, HOSTILE, NAME, page_folder, served, source_folder
from huggingface_hub import SpaceCard
from pages import CHROMIUM_FLAGS, PATIENCE_S, canvas_pixels, expect_no_trouble, watched

from dp.checkpoints import folder as checkpoint
from dp.data.codec import make_grid, to_uint8
from dp.diffusion.noise import make_streams
from dp.diffusion.policy import DiffusionPolicy
from dp.diffusion.samplers import SAMPLERS
from dp.diffusion.schedules import SCHEDULES
from dp.diffusion.settings import SampleSettings
from dp.ui.components.files import read_scripts
from dp.ui.web import graph
from dp.ui.web.page import embedded

pytestmark = pytest.mark.browser
onnx = pytest.importorskip("onnx")

EACH = "one of each"
PLACE = "some/folder"


@pytest.fixture(scope="module")
def site():
    """The address of the page."""
    with served(page_folder().parents[1]) as address:
        yield f"{address}/{PLACE}/"


@pytest.fixture(scope="module")
def policy():
    return DiffusionPolicy.from_pretrained(source_folder()).eval()


def opened(browser, address, **options):
    """A page in a context of its own, for which there is no network but its own server."""
    context = browser.new_context(**options)
    context.set_default_timeout(PATIENCE_S * 1000)
    origin = "/".join(address.split("/")[:3])
    context.route(lambda url: not url.startswith(origin), lambda route: route.abort())
    page = watched(context.new_page())
    page.goto(address)
    page.wait_for_selector(".player[data-state=recorded]")
    return page


@pytest.fixture(scope="module")
def lent(browser, site):
    page = opened(browser, site)
    yield page
    assert all(url.startswith((site, "blob:", "data:")) for url in page.asked), page.asked
    page.context.close()


@pytest.fixture
def page(lent):
    """The page that these tests share, so that the model is loaded once."""
    yield lent
    expect_no_trouble(lent)


def fill(page, **values):
    """Put values into the controls, as a visitor would."""
    page.evaluate(
        """(values) => {
            document.querySelector('.more').open = true;
            for (const [name, value] of Object.entries(values)) {
                const radio = document.querySelector(`input[name="${name}"][value="${value}"]`);
                const control = radio || document.querySelector(`#${name}`);
                if (typeof value === 'boolean') control.checked = value;
                else if (radio) radio.checked = true;
                else control.value = value;
                control.dispatchEvent(new Event('input', { bubbles: true }));
            }
        }""",
        values,
    )


def drawn(page, **values):
    """Draw with these values of the controls, and return the pixels of the result."""
    fill(page, **({"random": False, "class": "", "walk": "", "schedule": "trained", "difference": 0} | values))
    run = page.get_attribute(".player", "data-run") or ""
    page.click("#generate")
    page.wait_for_selector(f'.player[data-state=done][data-kept]:not([data-run="{run}"])')
    return canvas_pixels(page)


def expected(policy, images, **settings):
    return make_grid(to_uint8(policy.sample(images, **settings)))


def assert_near(own, reference):
    """Fail unless no pixel is further away than one gray level."""
    assert own.shape == reference.shape
    assert np.abs(own.astype(int) - reference).max() <= 1


# ----------------------------------------------------------------------------
# The folder


def about_of(page):
    markup = (page / "index.html").read_text(encoding="utf-8")
    return json.loads(re.search(r'<script type="application/json" id="about">(.*?)</script>', markup)[1])


def test_the_graph_points_into_the_weights_and_holds_nothing_of_this_machine():
    source, page = source_folder(), page_folder()
    content = (page / "model.onnx").read_bytes()
    model = onnx.load_from_string(content)
    external = [tensor for tensor in model.graph.initializer if tensor.data_location == onnx.TensorProto.EXTERNAL]
    weights = checkpoint.load(source)[0].state_dict()
    large = {name for name, value in weights.items() if value.numel() >= graph.MIN_STORED}
    assert {tensor.name.removeprefix("stored.") for tensor in external} == large
    assert {tensor.data_type for tensor in external} == {onnx.TensorProto.FLOAT16}
    assert {item.value for tensor in external for item in tensor.external_data if item.key == "location"} == {
        graph.WEIGHTS
    }
    assert sum(len(tensor.raw_data) for tensor in model.graph.initializer) < 2000
    assert b".py" not in content and b"site-packages" not in content
    assert (page / graph.WEIGHTS).read_bytes() == (source / graph.WEIGHTS).read_bytes()
    # Graphics processors need at most eight buffers: seven outputs of a split and its input.
    assert max(len(node.output) for node in model.graph.node) <= 7


def test_the_page_knows_its_files_and_nothing_of_the_model_is_markup():
    source, page = source_folder(), page_folder()
    about = about_of(page)
    assert about["classes"] == CLASSES and about["card"][0]["text"].startswith("A tiny model, see its page.")
    assert about["sha256"] == sha256((source / graph.WEIGHTS).read_bytes()).hexdigest()
    for name, expected in about["files"].items():
        content = (page / name).read_bytes()
        assert expected == {"bytes": len(content), "crc32": zlib.crc32(content)}
    everything = {path.relative_to(page).as_posix() for path in page.rglob("*") if path.is_file()}
    own = {"index.html", "page.css", "page.js", "runner.js", "offline.js", "README.md"}
    assert everything - about["files"].keys() == own
    for name in own:
        text = (page / name).read_text(encoding="utf-8")
        assert HOSTILE not in text and not re.search(r"(?:src|href|url\(|import|from)\W{0,3}https?://", text), name
    assert re.search("[<>&]", embedded({"a": HOSTILE + "&"})) is None
    card = SpaceCard((page / "README.md").read_text(encoding="utf-8")).data
    assert (card.sdk, card.app_file, card.title) == ("static", "index.html", NAME)
    assert len(card.short_description) <= 60


# ----------------------------------------------------------------------------
# The same images


@pytest.mark.parametrize("count", [16, 48, 100, 192, 3073])
def test_the_noise_is_the_librarys(browser, count):
    """Also where it does not fill the last block of 16, and in later draws of a stream."""
    page = browser.new_page()
    code = read_scripts("shared/plan", "web/noise")
    settings = {"images": 3, "seed": 2**31 - 3, "walkTo": 7}
    script = (
        f"(settings) => {{ {code}; return makeStreams(settings).map((s) => [0, 1].map(() => [...s.draw({count})])); }}"
    )
    for walk_to in (None, 7):
        own = page.evaluate(script, settings | {"walkTo": walk_to})
        streams = make_streams(SampleSettings(3, seed=settings["seed"], walk_to=walk_to))
        reference = [[stream.draw([count]).tolist() for _ in range(2)] for stream in streams]
        np.testing.assert_allclose(own, reference, rtol=0, atol=5e-6)
    page.close()


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_sixteen_images_of_every_sampler_are_the_librarys(page, policy, sampler):
    own = drawn(page, images=16, timesteps=20, sampler=sampler, seed=5, eta=0.3)
    eta = {"eta": 0.3} if sampler == "ddim" else {}
    assert_near(own, expected(policy, 16, timesteps=20, sampler=sampler, seed=5, **eta))
    assert page.inner_text(".run-settings").startswith(f"{NAME} · 20 steps · ")


@pytest.mark.parametrize("guidance", [0, 1, 2.5])
def test_classes_and_guidance_are_the_librarys(page, policy, guidance):
    own = drawn(page, images=5, timesteps=7, sampler="ddpm", seed=1, guidance=guidance, **{"class": EACH})
    labels = [1, 2, 3, 1, 2]
    settings = {"label": labels, "guidance": guidance, "guidance_interval": (0.1, 0.9)}
    assert_near(own, expected(policy, 5, timesteps=7, sampler="ddpm", seed=1, **settings))


def test_a_walk_another_schedule_and_a_time_difference_are_the_librarys(page, policy):
    own = drawn(page, images=6, timesteps=8, sampler="dpmpp_2m", seed=3, walk=9, schedule="cosine", difference=1.5)
    settings = {"walk_to": 9, "noise_schedule": "cosine", "time_difference": 1.5 / 8}
    assert_near(own, expected(policy, 6, timesteps=8, sampler="dpmpp_2m", seed=3, **settings))
    assert page.is_visible(".play-walk")


COMPUTE = """([settings, builds]) => new Promise((resolve) => {
    const about = JSON.parse(document.querySelector('#about').textContent);
    const worker = new Worker('runner.js');
    let frame = null;
    worker.onmessage = ({ data }) => {
        if (data.type === 'frame') frame = data;
        if (['done', 'failed'].includes(data.type)) {
            worker.terminate();
            resolve({ ...data, images: frame && [...frame.x0] });
        }
    };
    worker.postMessage({ type: 'run', id: 'x', model: about, files: about.files, settings, builds });
})"""


def worker_settings(policy, images, **given):
    """The settings that a page gives its worker, for those of the library."""
    s = SampleSettings(images, **given).with_defaults(policy.defaults)
    plain = {"images": images, "timesteps": s.timesteps, "sampler": s.sampler, "eta": s.eta, "seed": s.seed}
    plain |= {"schedule": s.noise_schedule, "scheduleKwargs": dict(s.schedule_kwargs), "walkTo": s.walk_to}
    plain |= {"timeDifference": s.time_difference, "strength": s.strength, "labels": list(s.labels)}
    return plain | {"guidance": s.guidance, "guidanceInterval": list(s.guidance_interval), "start": None, "mask": None}


def computed(page, policy, settings, builds=("wasm",)):
    """The images that the worker makes, uint8 [B,H,W,C]."""
    answer = page.evaluate(COMPUTE, [settings, list(builds)])
    assert answer["type"] == "done", answer
    assert answer["build"] == builds[0]
    side = policy.image_size
    return np.array(answer["images"]).reshape(settings["images"], side, side, policy.channels)


def test_a_start_image_and_a_mask_are_the_librarys(page, policy):
    start, mask = torch.rand(policy.image_shape, generator=torch.Generator().manual_seed(0)), torch.zeros(8, 8)
    mask[2:5, 1:7] = 1
    given = {"timesteps": 6, "sampler": "dpmpp_2m_sde", "seed": 4, "strength": 0.6, "label": 2, "guidance": 3.0}
    settings = worker_settings(policy, 3, **given)
    settings |= {"start": (start * 2 - 1).flatten().tolist(), "mask": mask.flatten().tolist()}
    reference = to_uint8(policy.sample(3, start=start, mask=mask, **given))
    assert_near(computed(page, policy, settings), reference)


def random_settings(draw, policy):
    sampler, images = draw.choice(list(SAMPLERS)), draw.randint(2, 5)
    given = {"timesteps": draw.randint(1, 30), "sampler": sampler, "seed": draw.randrange(2**31 - 9)}
    given |= {"eta": draw.random()} if sampler == "ddim" else {}
    given |= {"noise_schedule": draw.choice(list(SCHEDULES))} if draw.random() < 0.5 else {}
    given |= {"time_difference": draw.uniform(0, 3) / given["timesteps"]} if draw.random() < 0.5 else {}
    given["time_difference"] = min(given.get("time_difference", 0), 1)
    given |= {"walk_to": draw.randrange(2**31)} if draw.random() < 0.3 else {}
    if draw.random() < 0.7:
        labels = [draw.randint(0, policy.num_classes) for _ in range(images)]
        low, high = sorted([draw.random(), draw.random()])
        if any(labels):
            given |= {"label": labels, "guidance": draw.choice([0, 1, draw.uniform(0, 10)])}
            given["guidance_interval"] = (low, high)
    return images, given


@pytest.mark.soak
@pytest.mark.timeout(1800)
def test_fifty_random_settings_are_the_librarys(page, policy):
    draw = random.Random(0)
    for _ in range(50):
        images, given = random_settings(draw, policy)
        reference = to_uint8(policy.sample(images, **given))
        far = np.abs(computed(page, policy, worker_settings(policy, images, **given)).astype(int) - reference).max()
        assert far <= 1, given


@pytest.mark.soak
@pytest.mark.timeout(1800)
def test_a_graphics_processor_draws_the_librarys_images(playwright, browser_path, site, policy):
    """Emulated, by SwiftShader: slow, but the same kernels."""
    flags = [flag for flag in CHROMIUM_FLAGS if flag != "--disable-gpu"]
    flags += ["--enable-unsafe-webgpu", "--use-webgpu-adapter=swiftshader"]
    browser = playwright.chromium.launch(executable_path=browser_path, args=flags)
    page = opened(browser, site)
    given = {"timesteps": 4, "sampler": "ddpm", "seed": 1, "label": [1, 2], "guidance": 2.0}
    own = computed(page, policy, worker_settings(policy, 2, **given), builds=("webgpu",))
    assert_near(own, to_uint8(policy.sample(2, **given)))
    browser.close()
