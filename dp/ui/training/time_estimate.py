"""How long training will take, by ten steps of it on this machine."""

from __future__ import annotations

import asyncio
import json
import tempfile
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image

from dp.data.dataset import IMAGES, npy_writer
from dp.data.report import DatasetReport
from dp.system.text import shown
from dp.training import processes
from dp.training.presets import Settings
from dp.training.run_folder import RunFolder
from dp.ui.training.uploads import drafts

PATIENCE_S = 600  # for which a trial may take
BEAT_S = 0.5
PICTURES = 64  # that it trains on


class Measured(NamedTuple):
    """The result of one trial: the seconds, None if it failed, and the words for them."""

    seconds: float | None
    words: str


async def measured(dataset: Path, settings: Settings) -> AsyncIterator[Measured | None]:
    """Train ten steps, and reckon from them: None every now and then, at which whoever listens may stop listening, and
    last the result. The trial's process ends with this, however it ends.
    """
    drafts().mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="trial-", dir=drafts(), ignore_cleanup_errors=True) as folder:
        run = RunFolder(folder)
        resized(dataset, run.dataset, settings.image_size)
        run.config_file.write_text(json.dumps(settings.config("trial", PICTURES, time.time())), encoding="utf-8")
        process = processes.benchmark(run)
        talking, deadline = asyncio.create_task(asyncio.to_thread(process.communicate)), time.monotonic() + PATIENCE_S
        try:
            while not (await asyncio.wait([talking], timeout=BEAT_S))[0] and time.monotonic() < deadline:
                yield None
        finally:
            process.kill()
        said, _ = await talking
    yield reckoned(said, settings)


def reckoned(said: str, settings: Settings) -> Measured:
    """From what a trial's process has said."""
    try:
        found = json.loads(said.splitlines()[-1])
        if "error" in found:
            return Measured(None, f"not measured: {shown(found['error'], 100)}")
        seconds = settings.steps * found["seconds_per_step"]
        seconds += -(-settings.steps // settings.save_every) * found["seconds_per_save"]
    except (ValueError, IndexError, KeyError, TypeError):
        return Measured(None, "not measured: the benchmark gave no result")
    return Measured(seconds, duration(seconds))


def resized(dataset: Path, into: Path, image_size: int) -> None:
    """A few pictures of a dataset at another size: how long a step takes does not depend on what they show."""
    images = np.load(dataset / IMAGES, mmap_mode="r", allow_pickle=False)[:PICTURES]
    into.mkdir()
    with npy_writer(into / IMAGES, (image_size, image_size, images.shape[-1])) as append:
        for image in images:
            append(np.asarray(Image.fromarray(image).resize((image_size, image_size))))
    DatasetReport(accepted=[str(number) for number in range(len(images))]).save(into)


def duration(seconds: float) -> str:
    """'about 40 s', 'about 25 min', 'about 3.5 h'."""
    if seconds < 90:
        return f"about {max(round(seconds), 1)} s"
    return f"about {round(seconds / 60)} min" if seconds < 5400 else f"about {seconds / 3600:.1f} h"
