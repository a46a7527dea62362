"""Measure the time from `python app.py` to a served page and from the click to the first frame, and the memory of the
app.

    pip install -r benchmarks/requirements.txt        (and Chromium from the system's packages)
    python benchmarks/startup.py
"""

from __future__ import annotations

import argparse
import socket
import statistics
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

import psutil
from measure import find_chromium, print_table
from playwright.sync_api import Browser, Page, sync_playwright

ROOT = Path(__file__).resolve().parent.parent
PLAYER = "document.querySelector('.player').dataset"
FRAME, DONE = f"{PLAYER}.state === 'running' && {PLAYER}.step > 0", f"{PLAYER}.state === 'done'"


def measure(browser: Browser) -> dict[str, float]:
    """Start the app and make two runs with the default settings. Return its times in seconds and memory in MB."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    url, start = f"http://127.0.0.1:{port}", time.perf_counter()
    with subprocess.Popen([sys.executable, "app.py", "--port", str(port)], cwd=ROOT, stdout=subprocess.DEVNULL) as app:
        try:
            while not is_served(url):
                time.sleep(0.02)
            served = time.perf_counter() - start
            page = browser.new_page()
            page.goto(url)
            page.wait_for_selector("#generate:enabled")
            usable = time.perf_counter() - start
            page.wait_for_timeout(1000)  # a visitor reads the page before the first click
            first = time_click(page, FRAME)
            page.wait_for_function(DONE, timeout=120_000)
            second = time_click(page, FRAME)
            page.wait_for_function(DONE, timeout=120_000)
            resident = psutil.Process(app.pid).memory_info().rss / 1e6
            page.close()
        finally:
            app.terminate()
    return {
        "start to served page, s": served,
        "start to usable page, s": usable,
        "first click to frame, s": first,
        "second click to frame, s": second,
        "RSS after two runs, MB": resident,
    }


def is_served(url: str) -> bool:
    try:
        return urllib.request.urlopen(url, timeout=5).status == 200
    except OSError:
        return False


def time_click(page: Page, condition: str) -> float:
    """Click Generate and return the seconds until `condition`, a JavaScript expression, is true."""
    page.wait_for_selector("#generate", state="visible")
    page.wait_for_timeout(500)
    start = time.perf_counter()
    page.click("#generate")
    page.wait_for_function(condition, timeout=60_000, polling=10)
    return time.perf_counter() - start


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5, help="times that the app is started (default 5)")
    args = parser.parse_args()
    chromium = find_chromium()
    with sync_playwright() as p:
        browser = p.chromium.launch(executable_path=chromium, args=["--no-sandbox", "--disable-gpu"])
        rounds = [measure(browser) for _ in range(args.rounds)]
    rows = []
    for name in rounds[0]:
        values = [measured[name] for measured in rounds]
        rows.append((name, statistics.median(values), min(values), max(values)))
    print_table(("", "median", "min", "max"), rows)


if __name__ == "__main__":
    main()
