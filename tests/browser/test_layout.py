"""The layout of each tab on a phone and on a desktop: everything fits into the width, and controls can be reached."""

import io

import pytest
from conftest import LEFT_EARLY, WINDOWS
from launching import launched
from pages import click, context_for, set_run, settle, show_more, unfold, until, window
from PIL import Image
from test_compare import PLAYERS, compare, until_done

pytestmark = pytest.mark.browser

DESKTOP, PHONE = (param.values[0] for param in WINDOWS)
DENOISE = "#generate, #player .prediction canvas, #player .noisy canvas, #player .play, #player .scrub, #player .live"
DENOISE += ", #player .speed, #player .save, #player .charts, #checkpoint, #images, #timesteps, #seed, #link, #load"
COMPARE = "#compare, #axis, #values, #compare-images, #compare-timesteps, #compare-seed"
COMPARE += ", #clock .scrub, #clock .align-by, #clock .pane, #clock table"
PLANE = (
    "#plane .side.left .world, #plane .side.right .world, #plane .play, #plane .scrub, #plane .follow, #plane .renew"
)
PLANE += ", #plane .variant-settings.left [name=eta], #plane .variant-settings.right [name=difference], #plane .pad"


@pytest.fixture(scope="module")
def url(tmp_path_factory):
    with launched(tmp_path_factory.mktemp("home")) as address:
        yield address


@pytest.fixture
def page(browser, url):
    """Yield the page in a phone's window."""
    with window(browser, url, forgiven=LEFT_EARLY, **PHONE) as page:
        yield page


def resized(page):
    """Resize the page to each window, and yield the window's name."""
    for name, options in (("phone", PHONE), ("desktop", DESKTOP)):
        page.set_viewport_size(options["viewport"])
        page.emulate_media(color_scheme=options["color_scheme"])
        settle(page)
        yield name
        assert page.evaluate("document.documentElement.scrollWidth <= window.innerWidth"), name


def check_reachable(page, selectors):
    """Check that each control is visible, within the window's width and not covered by anything."""
    for selector in selectors.split(", "):
        control = page.locator(f"{selector}:visible")
        control.wait_for()
        control.scroll_into_view_if_needed()
        box = control.bounding_box()
        assert box["x"] >= 0 and box["x"] + box["width"] <= page.viewport_size["width"], selector
        middle = [box["x"] + box["width"] / 2, box["y"] + min(box["height"], 20) / 2]
        on_top = "([selector, [x, y]]) => Boolean(document.elementFromPoint(x, y)?.closest(selector))"
        # Wait: Generate ignores clicks for its first 0.4 s, so that a double click on Stop does not hit it.
        page.wait_for_function(on_top, arg=[selector, middle])


def test_the_denoise_tab_fits_into_both_windows(page):
    assert page.evaluate("document.body.classList.contains('dark')")
    set_run(page, timesteps=5, seed=3)
    page.click("#generate")
    until(page, "d.state === 'done' && +d.kept === 5 && step === 5")
    page.keyboard.press("Home")
    for slider in ("#player .scrub", "#images input[type=range]"):
        assert end_of_track(page.locator(slider)) < 128  # dark, in a dark page
    page.keyboard.press("End")
    for name in resized(page):
        check_reachable(page, DENOISE)
        click(page, ".prediction canvas", 0.75, 0.25)
        until(page, "d.image === '1'")
        check_reachable(page, "#player .strip-steps [aria-current], #player .attention-toggle")
        for panel in ("attention", "apart", "endings"):
            page.click(f"#player .{panel}-toggle")
            page.wait_for_selector(f"#player .inspector.{panel}", state="visible")
            until(page, f"d.{panel}?.startsWith('5')")
            assert page.evaluate("document.documentElement.scrollWidth <= window.innerWidth"), (name, panel)
            page.click(f"#player .{panel}-toggle")
        page.keyboard.press("Escape")
        until(page, "d.image === undefined")
        page.click("#player .save")
        check_reachable(page, "#player .save-menu [data-kind=png], #player .save-menu [data-kind=mp4]")
        page.click("#player .save")
        for chart in (".snr", ".change"):
            click(page, f".chart{chart} canvas", 0.5, 0.5)
            until(page, "step === 3")
            page.focus("#player .player")
            page.keyboard.press("End")
            until(page, "step === 5")


def end_of_track(slider):
    """The brightness of a slider's track near its end, 0 to 255."""
    with Image.open(io.BytesIO(slider.screenshot())) as image:
        return image.convert("L").getpixel((image.width * 9 // 10, image.height // 2))


SHIFTS = """window.shifts = []; new PerformanceObserver((list) => shifts.push(...list.getEntries().map((entry) =>
    [entry.value, ...entry.sources.map(({ node }) => node?.outerHTML?.slice(0, 80))]))
    ).observe({ type: "layout-shift", buffered: true })"""


@pytest.mark.parametrize("options", WINDOWS)
def test_nothing_moves_while_the_page_loads(browser, url, options):
    with context_for(browser, options) as context:
        page = context.new_page()
        page.add_init_script(SHIFTS)
        page.goto(url)
        page.wait_for_selector("#generate")
        page.wait_for_timeout(1000)
        shifts = page.evaluate("shifts")
        assert sum(value for value, *_ in shifts) < 0.02, shifts


def in_view(page, selector):
    box = page.locator(selector).bounding_box()
    return box["y"] > -1 and box["y"] + box["height"] < page.viewport_size["height"] + 1


def test_images_and_generate_stay_in_view_while_the_settings_are_used(page):
    set_run(page, timesteps=2, seed=3)
    page.click("#generate")
    until(page, "d.state === 'done' && +d.kept === 2 && step === 2")
    show_more(page)
    for name in resized(page):
        page.evaluate("scrollTo(0, 0)")
        page.locator("#difference").evaluate("(control) => control.scrollIntoView({block: 'nearest'})")
        assert in_view(page, "#difference") and in_view(page, "#generate"), name
        if name == "desktop":
            assert in_view(page, "#player .prediction canvas")
            continue
        shown, small = (
            page.evaluate(f"document.querySelector('#player {where} canvas').toDataURL()")
            for where in (".prediction", ".mini")
        )
        assert in_view(page, "#player .mini") and small == shown
        page.click("#player .mini")
        assert in_view(page, "#player .prediction canvas")


def tops_and_lefts(page):
    boxes = page.evaluate(f"{PLAYERS}.map(p => [p.getBoundingClientRect().top, p.getBoundingClientRect().left])")
    return [len(set(values)) for values in zip(*boxes)]


def test_the_compare_tab_fits_into_both_windows(page):
    compare(page, "Step k of a long run", timesteps=21, images=1)
    until_done(page, 6)
    for _ in resized(page):
        check_reachable(page, COMPARE)
        assert tops_and_lefts(page) == [2, 3]  # each short run below its long one
    compare(page, "Time difference", images=1, timesteps=2)
    until_done(page, 3)
    for name in resized(page):
        check_reachable(page, COMPARE)
        assert tops_and_lefts(page) == ([2, 2] if name == "phone" else [1, 3])


def test_the_2d_tab_fits_into_both_windows(page):
    assert all(page.get_by_role("tab", name=name).is_visible() for name in ("Denoise", "Compare", "In 2D", "Train"))
    unfold(page.get_by_role("tab", name="In 2D"))
    page.wait_for_selector("#plane .plane[data-state=ready]")
    for name in resized(page):
        check_reachable(page, PLANE)
        if name == "phone":
            left, right = (page.locator(f"#plane .side.{side} .world").bounding_box() for side in ("left", "right"))
            assert left["y"] == right["y"] and left["width"] > 150


def test_the_train_tab_fits_into_both_windows(page):
    unfold(page.get_by_role("tab", name="Train"))
    page.wait_for_selector(".upload")
    for _ in resized(page):
        check_reachable(page, "#intake .upload, #start-training")
