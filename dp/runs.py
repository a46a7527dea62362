"""The run folder: all that a training run leaves behind, and the only channel between it and whoever watches. Standard
library only.

    metrics.jsonl        one JSON object a line
    samples/000500.png   the EMA's images from the same fixed seeds at every milestone
    checkpoints/000500/  a checkpoint folder, with training-state/ beside the weights for resuming

A milestone is the step it was taken at. Whatever is written is written aside and renamed, so that a reader never sees
half of it.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any


class RunFolder:
    """Paths and atomic writes of one run; the folder is made when something is first written."""

    def __init__(self, path: str | Path):
        self.path = Path(path)

    def checkpoint(self, milestone: int) -> Path:
        return self.path / "checkpoints" / f"{milestone:06d}"

    @property
    def samples(self) -> Path:
        return self.path / "samples"

    def sample(self, milestone: int) -> Path:
        return self.samples / f"{milestone:06d}.png"

    def milestones(self) -> list[int]:
        """The steps at which whole checkpoints stand, rising."""
        return sorted(int(path.name) for path in (self.path / "checkpoints").glob("*") if path.name.isdigit())

    def log(self, record: dict[str, Any]) -> None:
        """One more line of metrics.jsonl."""
        self.path.mkdir(parents=True, exist_ok=True)
        with (self.path / "metrics.jsonl").open("ab+") as file:
            if file.tell():
                file.seek(-1, os.SEEK_END)
                torn = file.read(1) != b"\n"  # by a crash in the middle of a line; the next one starts afresh
            else:
                torn = False
            file.write((b"\n" if torn else b"") + json.dumps(record).encode() + b"\n")


@contextmanager
def replacing(target: Path) -> Iterator[Path]:
    """A path beside `target` to write a file or folder to; renamed into its place at the end, and gone if the writing
    fails.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    aside = target.with_name(f".{target.name}.{os.getpid()}.tmp")
    old = target.with_name(f".{target.name}.{os.getpid()}.old")
    _remove(aside, old)  # of a killed process that had this one's pid
    try:
        yield aside
        if target.is_dir():  # a folder cannot be renamed over a folder that holds something
            os.replace(target, old)
        try:
            os.replace(aside, target)
        except OSError:
            if old.exists():
                os.replace(old, target)
            raise
    finally:
        _remove(aside, old)


def _remove(*paths: Path) -> None:
    for path in paths:
        shutil.rmtree(path, ignore_errors=True) if path.is_dir() else path.unlink(missing_ok=True)
