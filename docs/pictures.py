"""The pictures of the documentation, taken from the app itself, as a visitor sees it.

pip install -r tests/requirements.txt
python docs/pictures.py        # writes docs/app.png and docs/compare.png
"""

from __future__ import annotations

import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE.parent), str(HERE.parent / "tests")]

from serving import open_browser, serve, set_run, until

WINDOW = {"viewport": {"width": 1280, "height": 860}, "color_scheme": "light"}


def denoise(page) -> None:
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
    arms = "[...document.querySelectorAll('.player.arm')]"
    page.wait_for_function(f"{arms}.every(p => p.dataset.kept && p.dataset.state === 'done')")


def main() -> None:
    with serve("app.py") as url, open_browser() as browser:
        for name, show in (("app", denoise), ("compare", compare)):
            with browser.new_context(**WINDOW) as context:
                page = context.new_page()
                page.goto(url)
                page.wait_for_selector("#generate")
                page.wait_for_timeout(1500)
                show(page)
                page.mouse.move(0, 0)
                page.wait_for_timeout(1000)
                page.screenshot(path=HERE / f"{name}.png")


if __name__ == "__main__":
    main()
