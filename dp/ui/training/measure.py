"""How long training will take, by ten steps of it on this machine."""

from __future__ import annotations

import asyncio
import json
import tempfile
import time
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image

from dp import jobs
from dp.data import IMAGES, appending
from dp.findings import Findings, shown
from dp.runs import RunFolder
from dp.ui.training.settings import Settings

PATIENCE_S = 600  # for which a trial may take
PICTURES = 64  # that it trains on


class Measured(NamedTuple):
    """Of one trial: seconds, or None where there are none, and what to say."""

    seconds: float | None
    words: str


async def measured(dataset: Path, settings: Settings) -> Measured:
    """Train ten steps, and reckon from them. The trial's process ends with this, however it ends."""
    with tempfile.TemporaryDirectory(prefix="dp-trial-", ignore_cleanup_errors=True) as folder:
        run = RunFolder(folder)
        resized(dataset, run.dataset, settings.image_size)
        run.config_file.write_text(json.dumps(settings.config("trial", PICTURES, time.time())), encoding="utf-8")
        process = jobs.trial(run)
        try:
            said, _ = await asyncio.wait_for(asyncio.to_thread(process.communicate), PATIENCE_S)
        except asyncio.TimeoutError:
            return Measured(None, "too slow to be measured")
        finally:
            process.kill()
    try:
        found = json.loads(said.splitlines()[-1])
        if "error" in found:
            return Measured(None, f"not measured: {shown(found['error'], 100)}")
        seconds = settings.steps * found["seconds_per_step"]
        seconds += -(-settings.steps // settings.save_every) * found["seconds_per_save"]
    except (ValueError, IndexError, KeyError, TypeError):
        return Measured(None, "not measured: the trial came to nothing")
    return Measured(seconds, duration(seconds))


def resized(dataset: Path, into: Path, image_size: int) -> None:
    """A few pictures of a dataset at another size: how long a step takes does not depend on what they show."""
    images = np.load(dataset / IMAGES, mmap_mode="r", allow_pickle=False)[:PICTURES]
    into.mkdir()
    with appending(into / IMAGES, (image_size, image_size, images.shape[-1])) as append:
        for image in images:
            append(np.asarray(Image.fromarray(image).resize((image_size, image_size))))
    Findings(used=[str(number) for number in range(len(images))]).save(into)


def duration(seconds: float) -> str:
    """'about 40 s', 'about 25 min', 'about 3.5 h'."""
    if seconds < 90:
        return f"about {max(round(seconds), 1)} s"
    return f"about {round(seconds / 60)} min" if seconds < 5400 else f"about {seconds / 3600:.1f} h"
