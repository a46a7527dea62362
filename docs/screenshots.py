"""Take the documentation's screenshots: app.png, compare.png, plane.png and train.png of the app, and web.png of an
exported page. train.png shows a training run on the given folder, which takes some minutes.

    pip install -r tests/requirements.txt -r requirements-web.txt
    python checkpoints/make.py draw faces-32 images/faces
    python docs/screenshots.py images/faces
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE.parent), str(HERE.parent / "tests" / "helpers")]

from exported import served
from pages import open_browser, serve, set_run, until
from playwright.sync_api import sync_playwright

WINDOW = {"viewport": {"width": 1280, "height": 860}, "color_scheme": "light"}


def denoise(page) -> None:
    page.locator("#class input").click()
    page.get_by_role("option", name="one of each", exact=True).click()
    set_run(page, timesteps=20, seed=7, images=16)
    page.click("#generate")
    until(page, "d.state === 'done' && +d.kept === 20")
    page.locator("#player .scrub").fill("9")
    until(page, "step === 10")


def compare(page) -> None:
    page.get_by_role("tab", name="Compare").click()
    page.locator("#compare-random input").uncheck()
    page.locator("#compare-seed input").fill("7")
    page.locator("#axis input").click()
    page.get_by_role("option", name="Step k of a long run").click()
    page.wait_for_timeout(1500)
    page.click("#compare")
    variants = "[...document.querySelectorAll('.player.variant')]"
    page.wait_for_function(f"{variants}.every(p => p.dataset.kept && p.dataset.state === 'done')")
    page.wait_for_selector("#compare", state="visible")  # the long run has ended, too


def plane(page) -> None:
    page.get_by_role("tab", name="In 2D").click()
    page.wait_for_selector("#plane .plane[data-state=ready]")
    page.get_by_role("button", name="Five steps cut corners").click()
    page.wait_for_selector("#plane .viewer.playing")
    page.wait_for_selector("#plane .viewer:not(.playing)")


def train(page) -> None:
    page.get_by_role("tab", name="Train").click()
    page.locator("#intake .folder").set_input_files(sys.argv[1])
    page.wait_for_selector("#intake .upload[data-state=checked]")
    page.click("#start-training")
    page.wait_for_selector("#board .run[data-state=finished]", timeout=3_600_000)


def exported(browser) -> None:
    with tempfile.TemporaryDirectory() as home:
        command = [sys.executable, "-m", "dp", "export-web", "faces-32", f"{home}/page"]
        subprocess.run(command, cwd=HERE.parent, check=True)
        with served(Path(home)) as url, browser.new_context(**WINDOW) as context:
            page = context.new_page()
            page.goto(f"{url}/page/?seed=7&images=16&timesteps=20")
            page.wait_for_selector(".player[data-state=recorded]")
            page.click("#generate")
            page.wait_for_selector('.player[data-state=done][data-kept="20"]')  # `until` would need eval
            page.locator("#player .scrub").fill("9")
            page.wait_for_selector('.player[data-step="10"]')
            page.mouse.move(0, 0)
            page.screenshot(path=HERE / "web.png")


def main() -> None:
    with (
        tempfile.TemporaryDirectory() as home,
        serve("app.py", DP_HOME=home) as url,
        sync_playwright() as playwright,
        open_browser(playwright) as browser,
    ):
        for name, show in (("app", denoise), ("compare", compare), ("plane", plane), ("train", train)):
            with browser.new_context(**WINDOW) as context:
                page = context.new_page()
                page.goto(url)
                page.wait_for_selector("#generate")
                page.wait_for_timeout(1500)
                show(page)
                page.mouse.move(0, 0)
                page.evaluate(
                    "for (const part of [window, ...document.querySelectorAll('.settings')]) part.scrollTo(0, 0)"
                )
                page.wait_for_timeout(1000)
                page.screenshot(path=HERE / f"{name}.png")
        exported(browser)


if __name__ == "__main__":
    main()
