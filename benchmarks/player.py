"""The player with a long run: how long the page is busy while someone scrubs, what the tab holds, what came over the
wire.

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
from playwright.sync_api import CDPSession

sys.path[:0] = [str(Path(__file__).resolve().parent.parent / name) for name in ("", "tests/helpers")]

from pages import open_browser, serve, set_run, until

# Tasks of the page's thread that take 50 ms or more; the browser reports no shorter ones.
LONG_TASKS = """() => {
    window.tasks = [];
    new PerformanceObserver((list) => window.tasks.push(...list.getEntries().map((entry) => entry.duration)))
        .observe({ type: "longtask" });
}"""


def tab() -> psutil.Process:
    """The browser's process that holds the page: of its renderers the largest."""
    children = psutil.Process().children(recursive=True)
    return max((p for p in children if "--type=renderer" in p.cmdline()), key=lambda p: p.memory_info().rss)


def memory(network: CDPSession) -> tuple[float, float, float]:
    """MB that the tab holds, with all that it shares with the browser's other processes; those that are its own, as
    the browser's task manager counts; and all of it again once what has been let go of has been collected.
    """
    before = tab().memory_full_info()
    network.send("HeapProfiler.collectGarbage")
    time.sleep(1.5)
    return before.rss / 1e6, before.uss / 1e6, tab().memory_info().rss / 1e6


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, value in dict(timesteps=1000, images=16, scrubs=300).items():
        parser.add_argument(f"--{name}", type=int, default=value, help=f"default {value}")
    args = parser.parse_args()
    with serve("app.py") as url, open_browser() as browser:
        page, received = browser.new_page(), [0]
        network = page.context.new_cdp_session(page)
        network.send("Network.enable")
        network.send("HeapProfiler.enable")
        for event in ("Network.dataReceived", "Network.eventSourceMessageReceived"):
            network.on(event, lambda said: received.__setitem__(0, received[0] + said.get("encodedDataLength", 0)))
        page.goto(url)
        page.wait_for_selector("#generate")
        page.wait_for_timeout(2000)
        set_run(page, timesteps=args.timesteps, seed=0, images=args.images)
        rows = [("the page itself", received[0] / 1e6, *memory(network), "", "")]

        page.evaluate(LONG_TASKS)
        before = received[0]
        page.click("#generate")
        until(page, "d.state === 'done' && +d.kept > 0", seconds=600)
        page.wait_for_timeout(1000)
        tasks = page.evaluate("window.tasks.splice(0)")
        busy = len(tasks), max(tasks, default=0)
        rows.append(("the run, live and recalled", (received[0] - before) / 1e6, *memory(network), *busy))

        before, kept = received[0], int(page.get_attribute(".scrub", "max"))
        for i in range(args.scrubs):  # to and fro, as fast as a hand moves a slider
            page.locator(".scrub").fill(str(abs((i * 7) % (2 * kept) - kept)))
            page.wait_for_timeout(10)
        tasks = page.evaluate("window.tasks.splice(0)")
        busy = len(tasks), max(tasks, default=0)
        rows.append((f"scrubbing {args.scrubs} times", (received[0] - before) / 1e6, *memory(network), *busy))
    print(f"{args.timesteps} steps of {args.images} images; {kept + 1} of the steps are kept\n")
    head = ("while", "received, MB", "the tab, MB", "its own, MB", "collected, MB", "tasks over 50 ms", "longest, ms")
    print_table(head, rows)


if __name__ == "__main__":
    main()
