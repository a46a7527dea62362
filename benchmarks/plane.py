"""Measure the In 2D tab: the tasks of the page's main thread and the frames per second, with field, trails and density
shown on both sides. On a busy machine a task waits for a processor, so its processor time is given as well.

    pip install -r tests/requirements.txt -r benchmarks/requirements.txt
    python benchmarks/plane.py --particles 500 --timesteps 50
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from measure import print_table
from playwright.sync_api import Browser, Page, sync_playwright

sys.path[:0] = [str(Path(__file__).resolve().parent.parent / name) for name in ("", "tests/helpers")]

from pages import open_browser, serve

COUNT_FRAMES = """() => {
    window.frames_seen = 0;
    const count = () => { window.frames_seen += 1; requestAnimationFrame(count); };
    count();
}"""
SCRUB = """async (count) => {
    const scrub = document.querySelector("#plane .scrub");
    for (let i = 0; i < count; i++) {
        scrub.value = (scrub.max * ((i * 37) % 100)) / 100;
        scrub.dispatchEvent(new Event("input", { bubbles: true }));
        await new Promise(requestAnimationFrame);
    }
}"""
TASK = "ThreadControllerImpl::RunTask"


@contextmanager
def measured(browser: Browser, page: Page, phase: str, rows: list[tuple]) -> Iterator[None]:
    """Add a row about the tasks and the frames of the phase."""
    page.evaluate("window.frames_seen = 0")
    browser.start_tracing(page=page, categories=["toplevel"])
    yield
    frames = page.evaluate("window.frames_seen")
    events = json.loads(browser.stop_tracing())["traceEvents"]
    names = {(e["pid"], e["tid"]): e["args"]["name"] for e in events if e["name"] == "thread_name"}
    tasks = [e for e in events if e["name"] == TASK and names.get((e["pid"], e["tid"])) == "CrRendererMain"]
    wall, busy = ([e.get(key, 0) / 1000 for e in tasks] for key in ("dur", "tdur"))
    seconds = (max(e["ts"] for e in tasks) - min(e["ts"] for e in tasks)) / 1e6
    over = sum(ms > 50 for ms in wall), sum(ms > 50 for ms in busy)
    rows.append((phase, frames / seconds, over[0], max(wall), over[1], max(busy)))


def settled(page: Page) -> None:
    page.wait_for_selector("#plane .viewer[aria-busy=false]")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, value in dict(particles=500, timesteps=50, scrubs=300).items():
        parser.add_argument(f"--{name}", type=int, default=value, help=f"(default {value})")
    args = parser.parse_args()
    rows: list[tuple] = []
    with serve("app.py") as url, sync_playwright() as playwright, open_browser(playwright) as browser:
        page = browser.new_page(viewport={"width": 1280, "height": 900})
        page.goto(url)
        page.wait_for_selector("#generate")
        page.wait_for_timeout(3000)
        page.get_by_role("tab", name="In 2D").click()
        page.wait_for_selector("#plane .plane[data-state=ready]")
        page.click("#plane [data-shows=field]")
        for side in ("Left", "Right"):
            page.get_by_role("group", name=side).get_by_label("Timesteps").fill(str(args.timesteps))
        page.locator("#plane .particles").fill(str(args.particles))
        page.wait_for_timeout(8000)  # until the first replay is over
        page.evaluate(COUNT_FRAMES)
        with measured(browser, page, "computing both runs", rows):
            page.click("#plane .renew")
            settled(page)
        with measured(browser, page, "playing them", rows):
            page.wait_for_selector("#plane .viewer:not(.playing)")
        with measured(browser, page, f"scrubbing {args.scrubs} times", rows):
            page.evaluate(SCRUB, args.scrubs)
    print(f"{args.particles} particles, {args.timesteps} steps, two runs\n")
    over, longest = "tasks over 50 ms", "longest, ms"
    print_table(("phase", "frames/s", over, longest, f"{over} of CPU time", f"{longest} of CPU time"), rows)


if __name__ == "__main__":
    main()
