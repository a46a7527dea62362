"""Measure the overhead and the throughput of the engine: one viewer compared with bare sampling, one real browser, and
up to sixteen viewers whose requests differ and arrive at different times.

    pip install -r benchmarks/requirements.txt        (and Chromium from the system's packages)
    python benchmarks/engine.py
    python benchmarks/engine.py --pinned              the app on one core, Chromium on another

Everything but Chromium runs in this process. The candidates take turns in each round, and medians over the rounds are
printed.
"""

from __future__ import annotations

import argparse
import os
import statistics
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

from measure import find_chromium, print_table

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent))  # so that it runs from a clone without installing

import torch
from playwright.sync_api import Page, sync_playwright

from dp.diffusion.settings import SampleSettings
from dp.serving.engine import Engine
from dp.serving.handle import RunHandle
from dp.serving.scheduler import ScheduledBatch
from dp.ui.app import build_app

CHECKPOINT = "faces-32"
SINGLE = SampleSettings(16, timesteps=50, seed=0)
SAMPLERS, SCHEDULES, LENGTHS = ("ddim", "ddpm", "dpmpp_2m"), ("sigmoid", "cosine", "linear", None), (50, 80, 100, 60)
STAGGER_S = 0.15  # between the arrivals of two viewers
VIEWERS = (2, 4, 8, 16)


class StepTimer:
    """Records the duration and the number of images of each of the engine's steps."""

    def __init__(self, engine: Engine):
        self.seconds: list[float] = []
        self.rows: list[int] = []
        self.started = self.ended = 0.0
        serve = engine._serve

        def timed_serve(batch: ScheduledBatch) -> None:
            start = time.perf_counter()
            serve(batch)
            self.ended = time.perf_counter()
            self.started = self.started or start
            self.seconds.append(self.ended - start)
            self.rows.append(sum(len(state) for _, state in batch))

        engine._serve = timed_serve

    def clear(self) -> None:
        self.seconds.clear()
        self.rows.clear()
        self.started = 0.0


def time_call(call: Callable[[], object]) -> float:
    start = time.perf_counter()
    call()
    return time.perf_counter() - start


def read_frames(handle: RunHandle) -> None:
    for _ in handle:
        pass


def time_in_browser(page: Page, timer: StepTimer) -> float:
    """Return the seconds from the start of the first step to the end of the last one while Chromium draws the run."""
    page.wait_for_selector("#generate", state="visible")
    time.sleep(0.2)  # the previous run's last step ends slightly later than its reader
    timer.clear()
    page.click("#generate")
    for state in ("running", "done"):
        page.wait_for_function(f"document.querySelector('.player').dataset.state === '{state}'", timeout=300_000)
    time.sleep(0.2)
    assert sum(timer.rows) == SINGLE.batch_size * SINGLE.timesteps
    return timer.ended - timer.started


def viewer_settings(i: int) -> SampleSettings:
    """Return the settings that viewer i requests."""
    return SampleSettings(
        4,
        timesteps=LENGTHS[i % len(LENGTHS)],
        sampler=SAMPLERS[i % len(SAMPLERS)],
        noise_schedule=SCHEDULES[i % len(SCHEDULES)],
        seed=i,
    )


def serve_viewers(engine: Engine, timer: StepTimer, viewers: int) -> dict[str, float]:
    """Serve `viewers` that arrive one after the other, each reading its frames in a thread. Return the rate in images x
    steps / s, the number of the engine's steps, and the times in seconds.
    """
    timer.clear()
    first_frame_s: list[float] = []

    def view(i: int) -> None:
        time.sleep(i * STAGGER_S)
        start = time.perf_counter()
        frames = iter(engine.submit(viewer_settings(i), CHECKPOINT))
        next(frames)
        first_frame_s.append(time.perf_counter() - start)
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
        "rate": sum(timer.rows) / seconds,
        "steps": len(timer.rows),
        "median_first_frame": statistics.median(first_frame_s),
        "max_first_frame": max(first_frame_s),
        "longest_step": max(timer.seconds),
    }


def compare_single(engine: Engine, timer: StepTimer, page: Page, rounds: int) -> None:
    """Print the rates of one run: of bare sampling, with one reader, and with one browser."""
    policy = engine.policy(CHECKPOINT)
    candidates: dict[str, Callable[[], float]] = {
        "bare policy.sample": lambda: time_call(lambda: policy.sample(**vars(SINGLE))),
        "engine, one reader": lambda: time_call(lambda: read_frames(engine.submit(SINGLE, CHECKPOINT))),
        "engine, one browser": lambda: time_in_browser(page, timer),
    }
    results = [{name: measure() for name, measure in candidates.items()} for _ in range(rounds)]
    threads = torch.get_num_threads()
    print(f"{SINGLE.batch_size} images in {SINGLE.timesteps} steps, {CHECKPOINT}, {threads} thread(s)\n")
    rows = []
    for name in candidates:
        seconds = statistics.median(result[name] for result in results)
        ratio = statistics.median(result["bare policy.sample"] / result[name] for result in results)
        rows.append((name, SINGLE.batch_size * SINGLE.timesteps / seconds, f"{100 * ratio:.1f} %"))
    print_table(("", "images x steps / s", "relative to bare"), rows)


def compare_viewers(engine: Engine, timer: StepTimer, rounds: int) -> None:
    """Print rates and latencies for each number of viewers, relative to one batch of 64 images."""
    policy, full_batch = engine.policy(CHECKPOINT), SampleSettings(64, timesteps=20, seed=0)
    results = []
    for _ in range(rounds):
        seconds = time_call(lambda: policy.sample(**vars(full_batch)))
        rate = full_batch.batch_size * full_batch.timesteps / seconds
        results.append((rate, {n: serve_viewers(engine, timer, n) for n in VIEWERS}))
    print(f"\nviewers with 4 images each, {STAGGER_S} s apart, mixed samplers and schedules, 50 to 100 steps\n")
    rows = []
    for n in VIEWERS:
        values = {key: statistics.median(by_viewers[n][key] for _, by_viewers in results) for key in results[0][1][n]}
        ratio = statistics.median(by_viewers[n]["rate"] / rate for rate, by_viewers in results)
        unbatched = sum(viewer_settings(i).timesteps for i in range(n))
        row = (n, values["rate"], f"{100 * ratio:.0f} %", f"{values['steps']:.0f} ({unbatched})")
        rows.append((*row, values["median_first_frame"], values["max_first_frame"], values["longest_step"]))
    header = ("viewers", "images x steps / s", "relative to one batch of 64", "engine steps (without batching)")
    print_table((*header, "first frame, median s", "max, s", "longest step, s"), rows)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5, help="(default 5)")
    parser.add_argument(
        "--pinned", action="store_true", help="pin this process to one core and Chromium to another; one viewer only"
    )
    args = parser.parse_args()
    chromium = find_chromium()

    cores = sorted(os.sched_getaffinity(0))
    if args.pinned:
        os.sched_setaffinity(0, {cores[1]})  # inherited by Chromium
    with sync_playwright() as p:
        browser = p.chromium.launch(executable_path=chromium, args=["--no-sandbox", "--disable-gpu"])
        if args.pinned:
            os.sched_setaffinity(0, {cores[0]})
            torch.set_num_threads(1)
        engine = Engine(HERE.parent / "checkpoints")
        timer = StepTimer(engine)
        demo = build_app(engine)
        _, url, _ = demo.launch(prevent_thread_lock=True, quiet=True)
        page = browser.new_page()
        page.goto(f"{url}?images={SINGLE.batch_size}&timesteps={SINGLE.timesteps}&sampler=ddim")
        page.wait_for_function(f"document.querySelector('#timesteps input')?.value === '{SINGLE.timesteps}'")
        page.wait_for_selector("#generate:enabled")
        read_frames(engine.submit(SampleSettings(4, timesteps=4, seed=0), CHECKPOINT))  # warm-up

        compare_single(engine, timer, page, args.rounds)
        page.close()
        if not args.pinned:
            compare_viewers(engine, timer, args.rounds)
        demo.close()


if __name__ == "__main__":
    main()
