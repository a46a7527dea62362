"""From `python app.py` to a served page, from the click to the first frame, and the memory that the app takes.

pip install -r benchmarks/requirements.txt        (and Chromium from the system's packages)
python benchmarks/startup.py
"""

from __future__ import annotations

import argparse
import shutil
import socket
import statistics
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

import psutil
from measure import print_table
from playwright.sync_api import Browser, sync_playwright

ROOT = Path(__file__).resolve().parent.parent
PLAYER = "document.querySelector('.player').dataset"
FRAME, DONE = f"{PLAYER}.state === 'running' && {PLAYER}.step > 0", f"{PLAYER}.state === 'done'"


def measure(browser: Browser) -> dict[str, float]:
    """One start of the app: seconds, and megabytes resident after a first run of the default settings."""
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
            page.wait_for_timeout(1000)  # a visitor reads before the first click
            first = click_to(page, FRAME)
            page.wait_for_function(DONE, timeout=120_000)
            again = click_to(page, FRAME)
            page.wait_for_function(DONE, timeout=120_000)
            resident = psutil.Process(app.pid).memory_info().rss / 1e6
            page.close()
        finally:
            app.terminate()
    return {
        "start to served page, s": served,
        "start to a page that can be used, s": usable,
        "first click to frame, s": first,
        "second click to frame, s": again,
        "resident after two runs, MB": resident,
    }


def is_served(url: str) -> bool:
    try:
        return urllib.request.urlopen(url, timeout=5).status == 200
    except OSError:
        return False


def click_to(page, condition: str) -> float:
    page.wait_for_selector("#generate", state="visible")
    page.wait_for_timeout(500)
    start = time.perf_counter()
    page.click("#generate")
    page.wait_for_function(condition, timeout=60_000, polling=10)
    return time.perf_counter() - start


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5, help="starts of the app (default 5)")
    args = parser.parse_args()
    chromium = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    if chromium is None:
        raise SystemExit("no Chromium on this machine: install the system's package")
    with sync_playwright() as p:
        browser = p.chromium.launch(executable_path=chromium, args=["--no-sandbox", "--disable-gpu"])
        rounds = [measure(browser) for _ in range(args.rounds)]
    rows = []
    for name in rounds[0]:
        values = [measured[name] for measured in rounds]
        rows.append((name, statistics.median(values), min(values), max(values)))
    print_table(("", "median", "least", "most"), rows)


if __name__ == "__main__":
    main()
