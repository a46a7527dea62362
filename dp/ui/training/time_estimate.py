"""Estimate the training time by measuring ten steps on this machine, while nothing else trains there."""

from __future__ import annotations

import asyncio
import json
import tempfile
import threading
import time
from collections.abc import AsyncIterator
from contextlib import aclosing
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image

from dp.data.prepared import IMAGES, npy_writer
from dp.data.report import DatasetReport
from dp.system.environment import runs_dir
from dp.system.text import shown
from dp.training import processes
from dp.training.presets import Settings
from dp.training.run_folder import RunFolder
from dp.ui.training.uploads import uploads_dir

TIMEOUT_S = 600  # of a benchmark
POLL_S = 0.5  # how often `measure` yields
MAX_IMAGES = 64  # that a benchmark trains on
BUSY = "not measured while another run trains"  # the text of an estimate that is worth another attempt

_turn = threading.Lock()  # held by the benchmark that is running: two at once would slow each other down


class Estimate(NamedTuple):
    """The estimated seconds, or None if the benchmark failed, and a text for the page."""

    seconds: float | None
    text: str


async def measure(dataset: Path, settings: Settings) -> AsyncIterator[Estimate | None]:
    """Train ten steps in a process of their own, after the benchmarks that began earlier. Yield None every POLL_S, and
    the estimate at the end, whose text is BUSY if a run trains on the device meanwhile. Closing this generator kills
    the process.
    """
    while not _turn.acquire(blocking=False):
        yield None
        await asyncio.sleep(POLL_S)
    try:
        async with aclosing(_benchmark(dataset, settings)) as estimates:
            async for estimate in estimates:
                yield estimate
    finally:
        _turn.release()


async def _benchmark(dataset: Path, settings: Settings) -> AsyncIterator[Estimate | None]:
    if processes.is_device_busy(runs_dir()):
        yield Estimate(None, BUSY)
        return
    uploads_dir().mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="trial-", dir=uploads_dir(), ignore_cleanup_errors=True) as folder:
        run = RunFolder(folder)
        write_resized(dataset, run.dataset, settings.image_size)
        run.config_file.write_text(json.dumps(settings.config("trial", MAX_IMAGES, time.time())), encoding="utf-8")
        process = processes.benchmark(run)
        output, deadline = asyncio.create_task(asyncio.to_thread(process.communicate)), time.monotonic() + TIMEOUT_S
        is_busy = False
        try:
            while not (await asyncio.wait([output], timeout=POLL_S))[0] and time.monotonic() < deadline:
                yield None
                if is_busy := processes.is_device_busy(runs_dir()):  # a run has started, perhaps from another page
                    break
        finally:
            process.kill()
        stdout, _ = await output
    yield Estimate(None, BUSY) if is_busy else parse_benchmark(stdout, settings)


def parse_benchmark(stdout: str, settings: Settings) -> Estimate:
    """Return the estimate from the output of a benchmark process, whose last line is JSON."""
    try:
        result = json.loads(stdout.splitlines()[-1])
        if "error" in result:
            return Estimate(None, f"not measured: {shown(result['error'], 100)}")
        seconds = settings.steps * result["seconds_per_step"]
        seconds += -(-settings.steps // settings.save_every) * result["seconds_per_save"]
    except (ValueError, IndexError, KeyError, TypeError):
        return Estimate(None, "not measured: the benchmark gave no result")
    return Estimate(seconds, approximate_duration(seconds))


def write_resized(dataset: Path, output_dir: Path, image_size: int) -> None:
    """Write a few images of a dataset at another size. The time of a step does not depend on their content."""
    images = np.load(dataset / IMAGES, mmap_mode="r", allow_pickle=False)[:MAX_IMAGES]
    output_dir.mkdir()
    with npy_writer(output_dir / IMAGES, (image_size, image_size, images.shape[-1])) as append:
        for image in images:
            append(np.asarray(Image.fromarray(image).resize((image_size, image_size))))
    DatasetReport(accepted=[str(number) for number in range(len(images))]).save(output_dir)


def approximate_duration(seconds: float) -> str:
    """Return a rounded duration, such as 'about 40 s', 'about 25 min' or 'about 3.5 h'."""
    if seconds < 90:
        return f"about {max(round(seconds), 1)} s"
    return f"about {round(seconds / 60)} min" if seconds < 5400 else f"about {seconds / 3600:.1f} h"
