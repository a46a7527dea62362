"""An exported page in Chromium, served by nothing but a server of static files: its images are the library's."""

from __future__ import annotations

import gzip
import io
import json
import random
import re
import shutil
import zipfile
import zlib
from hashlib import sha256

import numpy as np
import pytest
import torch
from axe_core_python.sync_playwright import Axe
from exported import CLASSES, HOSTILE, NAME, load_onnx, page_folder, served, source_folder
from huggingface_hub import SpaceCard
from pages import BROWSERS, CHROMIUM_FLAGS, PATIENCE_S, canvas_pixels, expect_no_trouble, watched
from PIL import Image

from dp.checkpoints import folder as checkpoint
from dp.data.codec import make_grid, to_uint8
from dp.diffusion.noise import make_streams
from dp.diffusion.policy import DiffusionPolicy
from dp.diffusion.samplers import SAMPLERS
from dp.diffusion.schedules import SCHEDULES
from dp.diffusion.settings import SampleSettings
from dp.serving.files import read_settings
from dp.ui.components.files import read_scripts
from dp.ui.web import graph
from dp.ui.web.page import embedded

pytestmark = pytest.mark.browser
onnx = load_onnx()

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
    """A page in a context of its own."""
    context = browser.new_context(**options)
    context.set_default_timeout(PATIENCE_S * 1000)
    page = watched(context.new_page())
    page.goto(address)
    page.wait_for_selector(".player[data-state=recorded]")
    return page


@pytest.fixture(scope="module")
def lent(browser, site):
    page = opened(browser, site)
    yield page
    # Nothing is asked of other servers.
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
    start, mask = torch.rand(policy.sample_shape, generator=torch.Generator().manual_seed(0)), torch.zeros(8, 8)
    mask[2:5, 1:7] = 1
    given = {"timesteps": 6, "sampler": "dpmpp_2m_sde", "seed": 4, "strength": 0.6, "label": 2, "guidance": 3.0}
    settings = worker_settings(policy, 3, **given)
    settings |= {"start": (start * 2 - 1).flatten().tolist(), "mask": mask.flatten().tolist()}
    reference = to_uint8(policy.sample(3, start=start, mask=mask, **given))
    assert_near(computed(page, policy, settings), reference)


# ----------------------------------------------------------------------------
# The page


def saved(page, kind):
    """The name and the content of a file that the page saves."""
    page.click(".save")
    with page.expect_download() as download:
        page.click(f'[data-kind="{kind}"]')
    return download.value.suggested_filename, download.value.path().read_bytes()


def test_files_are_the_apps(page, policy):
    own = drawn(page, images=4, timesteps=5, sampler="ddim", seed=8, eta=0.5, guidance=2, **{"class": CLASSES[1]})
    name, content = saved(page, "png")
    assert name == f"{NAME}-8.png"
    np.testing.assert_array_equal(np.asarray(Image.open(io.BytesIO(content))), own)
    made_with = read_settings(content)
    settings = {key: made_with[key] for key in ("timesteps", "sampler", "eta", "seed", "label", "guidance")}
    assert settings == {"timesteps": 5, "sampler": "ddim", "eta": 0.5, "seed": 8, "label": 2, "guidance": 2}
    assert made_with["classes"] == {"2": HOSTILE} and made_with["guidance_interval"] == [0.1, 0.9]
    assert_near(own, expected(policy, 4, **settings, guidance_interval=(0.1, 0.9)))
    assert saved(page, "png4")[0] == name

    name, content = saved(page, "images")
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        assert (name, archive.testzip()) == (f"{NAME}-8-images.zip", None)
        assert archive.namelist() == [f"{NAME}-{seed}.png" for seed in (8, 9, 10, 11)]
        assert read_settings(archive.read(f"{NAME}-10.png"))["seed"] == 10
    with zipfile.ZipFile(io.BytesIO(saved(page, "zip")[1])) as archive:
        assert archive.testzip() is None and len(archive.namelist()) == 11
        assert json.loads(archive.read("settings.json"))["steps_taken"] == 5


def test_a_run_can_be_stopped_scrubbed_and_looked_at(page):
    fill(page, images=64, timesteps=1000, seed=2, random=False)
    run = page.get_attribute(".player", "data-run") or ""
    page.click("#generate")
    begun = "".join(f':not([data-step="{step}"])' for step in range(3))
    page.wait_for_selector(f'.player[data-state=running]:not([data-run="{run}"]){begun}')
    assert not page.is_visible("#generate") and page.is_visible("#stop")
    page.click("#stop")
    page.wait_for_selector(".player[data-state=stopped][data-kept]")
    assert re.fullmatch(r"stopped at \d+/1000", page.inner_text(".step")) and page.is_visible("#generate")
    last = canvas_pixels(page)
    page.focus(".player")
    page.keyboard.press("Home")
    page.wait_for_selector('.player[data-step="1"]')
    assert (canvas_pixels(page) != last).any()
    page.keyboard.press("Enter")
    page.wait_for_selector(".strip-steps button")
    assert canvas_pixels(page).shape[0] == 8
    page.click(".show-all")
    # The next run does not wait for more than the step under way.
    drawn(page, images=2, timesteps=2, seed=3)


def test_the_noise_of_a_run_can_be_drawn_again(page):
    first = drawn(page, images=2, timesteps=3, seed=11, random=True)
    page.click(".again")
    page.wait_for_selector(".before:visible")
    page.wait_for_selector(".player[data-state=done][data-kept]")
    np.testing.assert_array_equal(canvas_pixels(page), first)


def test_what_a_start_image_keeps_stays(page):
    image = io.BytesIO()
    Image.new("RGB", (300, 200), (200, 100, 50)).save(image, "PNG")
    fill(page)
    page.set_input_files("#start .choose input", {"name": "a.png", "mimeType": "image/png", "buffer": image.getvalue()})
    page.wait_for_selector("#start .start[data-state=chosen]")
    page.click("#start .invert")
    own = drawn(page, images=2, timesteps=3, seed=0)
    assert np.abs(own.astype(int) - (200, 100, 50)).max() <= 1
    page.click("#start .remove")


@pytest.mark.parametrize(
    "values, words",
    [
        ({"images": "0"}, "Images must be a whole number from 1 to 64, got 0."),
        ({"timesteps": ""}, "Timesteps must be a whole number from 1 to 1,000, got nothing."),
        ({"seed": "1.5"}, "Seed must be a whole number from 0 to 2,147,483,647, got 1.5."),
        ({"walk": "x"}, "Walk to seed must be a whole number from 0 to 2,147,483,647, got x."),
    ],
)
def test_bad_values_get_a_sentence(page, values, words):
    fill(page, **({"images": 2, "timesteps": 2, "seed": 0, "walk": "", "random": False} | values))
    page.click("#generate")
    assert page.inner_text(".status") == words and page.is_visible("#generate")
    fill(page, images=2, timesteps=2, seed=0, walk="")


def test_a_link_opens_with_the_settings(browser, site, page):
    fill(page, images=3, timesteps=9, sampler="ddim", seed=6, random=False, eta=0.25, schedule="linear", guidance=4)
    fill(page, **{"class": CLASSES[0]})
    page.evaluate("Object.defineProperty(navigator, 'clipboard', {value: undefined, configurable: true})")
    page.click("#link")
    link = page.input_value("#link-field input")
    assert link.startswith(f"{site}?")
    other = opened(browser, link.replace("difference=0", "difference=x"))
    values = {name: other.input_value(f"#{name}") for name in ("images", "timesteps", "seed", "guidance", "class")}
    assert values == {"images": "3", "timesteps": "9", "seed": "6", "guidance": "4", "class": CLASSES[0]}
    assert not other.is_checked("#random") and other.is_checked("[name=schedule][value=linear]")
    words = "Ignored from the link: difference (Time difference must be a number from 0 to 3, got x)"
    assert other.inner_text(".status").startswith(words)
    other.context.close()


def test_names_and_words_are_text(page):
    assert page.inner_text("h1") == NAME
    assert page.inner_text("#class").split("\n") == ["any", *CLASSES, EACH]
    assert "none | at all" in page.inner_text(".card")
    assert page.locator("img").count() == 0


@pytest.mark.parametrize("width, height, theme", [(1280, 900, "light"), (390, 844, "dark")])
def test_the_page_fits_its_window_and_is_accessible(browser, site, width, height, theme):
    page = opened(browser, site, viewport={"width": width, "height": height}, color_scheme=theme)
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
    box = page.locator("#generate").bounding_box()
    assert box["y"] + box["height"] <= height
    page.click(".more summary")
    found = Axe().run(page, options={"resultTypes": ["violations"]})["violations"]
    assert not found, [(each["id"], [node["html"] for node in each["nodes"]]) for each in found]
    expect_no_trouble(page)
    page.context.close()


def test_what_was_loaded_once_works_without_a_connection(browser):
    with served(page_folder().parents[1]) as address:
        page = opened(browser, f"{address}/{PLACE}/")
        page.evaluate("navigator.serviceWorker.ready.then(() => null)")
        page.wait_for_selector("html")
        first = drawn(page, images=2, timesteps=2, seed=1)
    page.reload()
    page.wait_for_selector(".player[data-state=recorded]")
    np.testing.assert_array_equal(drawn(page, images=2, timesteps=2, seed=1), first)
    page.context.close()


# ----------------------------------------------------------------------------
# What can go wrong


@pytest.fixture
def trouble():
    """Responses that replace the server's for some files: an HTTP status, or other bytes."""
    return {}


@pytest.fixture
def other(browser, trouble):
    """A page whose server may have trouble."""
    with served(page_folder().parents[1], trouble) as address:
        page = opened(browser, f"{address}/{PLACE}/", service_workers="block")
        yield page
        page.context.close()


def fails(page):
    """Press Generate, and return the sentence that comes instead of images. The recorded run stays."""
    page.click("#generate")
    page.wait_for_selector(".status.problem:not(:empty)")
    assert page.is_visible("#generate") and page.get_attribute(".player", "data-state") == "recorded"
    assert page.inner_text(".step").startswith("Recorded")
    return page.inner_text(".status")


BROKEN = {
    "truncated": (graph.WEIGHTS, lambda content: content[:-100], "is damaged, with"),
    "altered": (
        graph.WEIGHTS,
        lambda content: content[:-9] + bytes([content[-9] ^ 1]) + content[-8:],
        "is damaged, with",
    ),
    "no runtime": ("runtime/ort-wasm-simd-threaded.wasm.gz", lambda content: 404, "is missing (error 404)"),
    "no graph": ("model.onnx", lambda content: 404, "is missing (error 404)"),
}


@pytest.mark.parametrize("name, change, words", BROKEN.values(), ids=BROKEN)
def test_a_broken_file_gets_a_sentence(other, trouble, name, change, words):
    trouble[name] = change((page_folder() / name).read_bytes())
    assert fails(other).startswith(f"The page's file {name} {words}")


def test_a_file_that_was_broken_is_fetched_again(other, trouble):
    trouble[graph.WEIGHTS] = (page_folder() / graph.WEIGHTS).read_bytes()[:-1]
    fails(other)
    trouble.clear()
    packed = "runtime/ort.wasm.min.mjs.gz"  # a server may unpack what is compressed
    trouble[packed] = gzip.decompress((page_folder() / packed).read_bytes())
    drawn(other, images=2, timesteps=2, seed=1)


def with_runner(trouble, before):
    """Let JavaScript run in the worker before its own."""
    trouble["runner.js"] = before.encode() + (page_folder() / "runner.js").read_bytes()


def test_a_browser_without_webassembly_gets_a_sentence(other, trouble):
    with_runner(trouble, "self.WebAssembly = undefined;")
    assert fails(other).startswith("This browser has no WebAssembly")


def test_a_browser_without_webgpu_gets_a_sentence_if_it_is_asked_for(other, trouble):
    with_runner(trouble, "Object.defineProperty(navigator, 'gpu', { value: undefined });")
    fill(other, device="webgpu")
    assert fails(other).startswith("This browser lets no page use a graphics processor (WebGPU)")
    drawn(other, images=2, timesteps=2, seed=1, device="any")
    assert other.inner_text(".status") == "Computed on your own processor."


def test_a_missing_worker_gets_a_sentence(other, trouble):
    trouble["runner.js"] = 404
    assert fails(other).startswith("The page's file runner.js is missing")


def test_results_unlike_the_librarys_are_not_shown(other, trouble):
    with_runner(trouble, "const random = Math.log; Math.log = (x) => 1.1 * random(x);")
    assert "its results differ from the model's by" in fails(other)


def test_a_graphics_processor_that_fails_is_replaced(other, trouble, policy):
    adapter = "{ requestAdapter: async () => ({}) }"
    with_runner(trouble, f"Object.defineProperty(navigator, 'gpu', {{ value: {adapter} }});")
    own = drawn(other, images=2, timesteps=2, sampler="ddim", seed=1, eta=0)
    assert_near(own, expected(policy, 2, timesteps=2, sampler="ddim", seed=1))


# ----------------------------------------------------------------------------
# Long proofs


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


@pytest.fixture(scope="module")
def gpu_browser(playwright):
    """A browser with an emulated graphics processor, SwiftShader: slow, but with the same kernels."""
    path = next(filter(None, map(shutil.which, BROWSERS)))
    flags = [flag for flag in CHROMIUM_FLAGS if flag != "--disable-gpu"]
    flags += ["--enable-unsafe-webgpu", "--use-webgpu-adapter=swiftshader"]
    browser = playwright.chromium.launch(executable_path=path, args=flags)
    yield browser
    browser.close()


@pytest.mark.soak
@pytest.mark.timeout(1800)
def test_a_graphics_processor_draws_the_librarys_images(gpu_browser, site, policy):
    page = opened(gpu_browser, site)
    given = {"timesteps": 4, "sampler": "ddpm", "seed": 1, "label": [1, 2], "guidance": 2.0}
    own = computed(page, policy, worker_settings(policy, 2, **given), builds=("webgpu",))
    assert_near(own, to_uint8(policy.sample(2, **given)))
    page.context.close()


LOSE = """
const request = GPUAdapter.prototype.requestDevice;
let device = null;
GPUAdapter.prototype.requestDevice = async function (...given) {
  return (device = await request.apply(this, given));
};
const post = self.postMessage.bind(self);
self.postMessage = (message, transfer) => {
  post(message, transfer);
  if (message.type === "frame" && message.index === 2) device.destroy();
};
"""


@pytest.mark.soak
@pytest.mark.timeout(1800)
def test_a_lost_graphics_processor_is_told_and_replaced(gpu_browser, trouble):
    with_runner(trouble, LOSE)
    with served(page_folder().parents[1], trouble) as address:
        page = opened(gpu_browser, f"{address}/{PLACE}/", service_workers="block")
        fill(page, images=2, timesteps=6, sampler="ddim", seed=1, random=False, device="webgpu")
        page.click("#generate")
        page.wait_for_selector(".player[data-state=failed]")
        assert page.inner_text(".status").startswith("The graphics processor was lost")
        assert canvas_pixels(page).any()
        drawn(page, images=2, timesteps=3, seed=1)
        page.context.close()
