"""Measure the player with a long run: how long the page's main thread is busy during scrubbing, the memory of the tab,
and the bytes received.

    pip install -r tests/requirements.txt -r benchmarks/requirements.txt
    python benchmarks/player.py --timesteps 1000 --images 16
"""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path

import psutil
from measure import print_table
from playwright.sync_api import CDPSession, sync_playwright

sys.path[:0] = [str(Path(__file__).resolve().parent.parent / name) for name in ("", "tests/helpers")]

from pages import open_browser, serve, set_run, until

# Records the tasks of the page's main thread that take 50 ms or more; the browser does not report shorter ones.
LONG_TASKS = """() => {
    window.tasks = [];
    new PerformanceObserver((list) => window.tasks.push(...list.getEntries().map((entry) => entry.duration)))
        .observe({ type: "longtask" });
}"""


def tab_process() -> psutil.Process:
    """Return the renderer process of the page: the largest of the browser's renderers."""
    children = psutil.Process().children(recursive=True)
    return max((p for p in children if "--type=renderer" in p.cmdline()), key=lambda p: p.memory_info().rss)


def tab_memory(cdp: CDPSession) -> tuple[float, float, float]:
    """Return the memory of the tab in MB: RSS (which includes pages shared with the browser's other processes), USS
    (which excludes them), and RSS after a forced garbage collection.
    """
    before = tab_process().memory_full_info()
    cdp.send("HeapProfiler.collectGarbage")
    time.sleep(1.5)
    return before.rss / 1e6, before.uss / 1e6, tab_process().memory_info().rss / 1e6


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, value in dict(timesteps=1000, images=16, scrubs=300).items():
        parser.add_argument(f"--{name}", type=int, default=value, help=f"(default {value})")
    args = parser.parse_args()
    with serve("app.py") as url, sync_playwright() as playwright, open_browser(playwright) as browser:
        page, received = browser.new_page(), [0]
        cdp = page.context.new_cdp_session(page)
        cdp.send("Network.enable")
        cdp.send("HeapProfiler.enable")
        for event in ("Network.dataReceived", "Network.eventSourceMessageReceived"):
            cdp.on(event, lambda data: received.__setitem__(0, received[0] + data.get("encodedDataLength", 0)))
        page.goto(url)
        page.wait_for_selector("#generate")
        page.wait_for_timeout(2000)
        set_run(page, timesteps=args.timesteps, seed=0, images=args.images)
        rows = [("page load", received[0] / 1e6, *tab_memory(cdp), "", "")]

        page.evaluate(LONG_TASKS)
        before = received[0]
        page.click("#generate")
        until(page, "d.state === 'done' && +d.kept > 0", seconds=600)
        page.wait_for_timeout(1000)
        tasks = page.evaluate("window.tasks.splice(0)")
        busy = len(tasks), max(tasks, default=0)
        rows.append(("run, then loading of its kept steps", (received[0] - before) / 1e6, *tab_memory(cdp), *busy))

        before, kept = received[0], int(page.get_attribute(".scrub", "max"))
        for i in range(args.scrubs):  # back and forth, as fast as a hand moves a slider
            page.locator(".scrub").fill(str(abs((i * 7) % (2 * kept) - kept)))
            page.wait_for_timeout(10)
        tasks = page.evaluate("window.tasks.splice(0)")
        busy = len(tasks), max(tasks, default=0)
        rows.append((f"scrubbing {args.scrubs} times", (received[0] - before) / 1e6, *tab_memory(cdp), *busy))
    print(f"{args.timesteps} steps of {args.images} images; {kept + 1} steps kept\n")
    memory = ("tab RSS, MB", "tab USS, MB", "RSS after GC, MB")
    print_table(("phase", "received, MB", *memory, "tasks over 50 ms", "longest task, ms"), rows)


if __name__ == "__main__":
    main()
