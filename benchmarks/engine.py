"""What the engine costs, and what it gives: one viewer beside bare sampling, one real browser, and up to sixteen
viewers who ask for different things at different times.

    pip install -r benchmarks/requirements.txt        (and Chromium from the system's packages)
    python benchmarks/engine.py
    python benchmarks/engine.py --pinned              one core for the app, another for Chromium

All in this one process but Chromium; one after the other in each round, medians of the rounds.
"""

from __future__ import annotations

import argparse
import os
import shutil
import statistics
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

from measure import print_table

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent))  # so that it runs from a clone without installing

import torch
from playwright.sync_api import Page, sync_playwright

from dp.diffusion.settings import SampleSettings
from dp.serving.engine import Engine
from dp.serving.handle import RunHandle
from dp.ui.app import build_app

CHECKPOINT = "faces-32"
ONE = SampleSettings(16, timesteps=50, seed=0)
SAMPLERS, SCHEDULES, LENGTHS = ("ddim", "ddpm", "dpmpp_2m"), ("sigmoid", "cosine", "linear", None), (50, 80, 100, 60)
STAGGER = 0.15  # seconds between two viewers
VIEWERS = (2, 4, 8, 16)


class Ticks:
    """The ticks of an engine from now on: seconds and rows of each."""

    def __init__(self, engine: Engine):
        self.seconds: list[float] = []
        self.rows: list[int] = []
        self.began = self.ended = 0.0
        tick = engine._serve

        def timed(turn) -> None:
            start = time.perf_counter()
            tick(turn)
            self.ended = time.perf_counter()
            self.began = self.began or start
            self.seconds.append(self.ended - start)
            self.rows.append(sum(len(rows) for _, rows in turn))

        engine._serve = timed

    def clear(self) -> None:
        self.seconds.clear()
        self.rows.clear()
        self.began = 0.0


def timed(run: Callable[[], object]) -> float:
    start = time.perf_counter()
    run()
    return time.perf_counter() - start


def watch(handle: RunHandle) -> None:
    for _ in handle:
        pass


def in_browser(page: Page, ticks: Ticks) -> float:
    """Seconds from the first tick's beginning to the last one's end while Chromium draws the run."""
    page.wait_for_selector("#generate", state="visible")
    time.sleep(0.2)  # the last tick of the run before returns a moment after its reader
    ticks.clear()
    page.click("#generate")
    for state in ("running", "done"):
        page.wait_for_function(f"document.querySelector('.player').dataset.state === '{state}'", timeout=300_000)
    time.sleep(0.2)
    assert sum(ticks.rows) == ONE.batch_size * ONE.timesteps
    return ticks.ended - ticks.began


def settings_of(i: int) -> SampleSettings:
    """What viewer i asks for."""
    return SampleSettings(
        4,
        timesteps=LENGTHS[i % len(LENGTHS)],
        sampler=SAMPLERS[i % len(SAMPLERS)],
        noise_schedule=SCHEDULES[i % len(SCHEDULES)],
        seed=i,
    )


def many(engine: Engine, ticks: Ticks, viewers: int) -> dict[str, float]:
    """`viewers` arrive one after the other; each reads its frames in a thread."""
    ticks.clear()
    waits: list[float] = []

    def view(i: int) -> None:
        time.sleep(i * STAGGER)
        start = time.perf_counter()
        frames = iter(engine.submit(settings_of(i), CHECKPOINT))
        next(frames)
        waits.append(time.perf_counter() - start)
        for _ in frames:
            pass

    threads = [threading.Thread(target=view, args=(i,)) for i in range(viewers)]
    start = time.perf_counter()
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    seconds = time.perf_counter() - start
    return {
        "rate": sum(ticks.rows) / seconds,
        "calls": len(ticks.rows),
        "first": statistics.median(waits),
        "worst": max(waits),
        "tick": max(ticks.seconds),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--pinned", action="store_true", help="this process on one core, Chromium on another")
    args = parser.parse_args()
    chromium = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    if chromium is None:
        raise SystemExit("no Chromium on this machine: install the system's package")

    cores = sorted(os.sched_getaffinity(0))
    if args.pinned:
        os.sched_setaffinity(0, {cores[1]})  # what Chromium inherits
    with sync_playwright() as p:
        browser = p.chromium.launch(executable_path=chromium, args=["--no-sandbox", "--disable-gpu"])
        if args.pinned:
            os.sched_setaffinity(0, {cores[0]})
            torch.set_num_threads(1)
        engine = Engine(HERE.parent / "checkpoints")
        ticks, policy = Ticks(engine), engine.policy(CHECKPOINT)
        demo = build_app(engine)
        _, url, _ = demo.launch(prevent_thread_lock=True, quiet=True)
        page = browser.new_page()
        page.goto(f"{url}?images={ONE.batch_size}&timesteps={ONE.timesteps}&sampler=ddim")
        page.wait_for_function(f"document.querySelector('#timesteps input')?.value === '{ONE.timesteps}'")
        page.wait_for_selector("#generate:enabled")
        watch(engine.submit(SampleSettings(4, timesteps=4, seed=0), CHECKPOINT))  # everybody is warm

        contenders: dict[str, Callable[[], float]] = {
            "bare policy.sample": lambda: timed(lambda: policy.sample(**vars(ONE))),
            "engine, one reader": lambda: timed(lambda: watch(engine.submit(ONE, CHECKPOINT))),
            "engine, one browser watching": lambda: in_browser(page, ticks),
        }
        rounds = [{name: run() for name, run in contenders.items()} for _ in range(args.rounds)]
        print(f"{ONE.batch_size} images in {ONE.timesteps} steps, {CHECKPOINT}, {torch.get_num_threads()} thread(s)\n")
        rows = []
        for name in contenders:
            seconds = statistics.median(r[name] for r in rounds)
            ratio = statistics.median(r["bare policy.sample"] / r[name] for r in rounds)
            rows.append((name, ONE.batch_size * ONE.timesteps / seconds, f"{100 * ratio:.1f} %"))
        print_table(("", "images x steps / s", "of bare"), rows)
        page.close()
        if args.pinned:
            return

        full = SampleSettings(64, timesteps=20, seed=0)
        groups = []
        for _ in range(args.rounds):
            batch = full.batch_size * full.timesteps / timed(lambda: policy.sample(**vars(full)))
            groups.append((batch, {n: many(engine, ticks, n) for n in VIEWERS}))
        print(f"\nviewers of 4 images each, {STAGGER} s apart, mixed samplers, schedules and lengths of 50 to 100\n")
        rows = []
        for n in VIEWERS:
            values = {key: statistics.median(group[n][key] for _, group in groups) for key in groups[0][1][n]}
            share = statistics.median(group[n]["rate"] / batch for batch, group in groups)
            alone = sum(settings_of(i).timesteps for i in range(n))
            row = (n, values["rate"], f"{100 * share:.0f} %", f"{values['calls']:.0f} for {alone}")
            rows.append((*row, values["first"], values["worst"], values["tick"]))
        head = ("viewers", "images x steps / s", "of one batch of 64", "network calls, for calls alone")
        print_table((*head, "first frame, s", "worst", "longest tick, s"), rows)
        demo.close()


if __name__ == "__main__":
    main()
