"""Write files and folders atomically: write to a temporary path, then rename. Standard library only."""

from __future__ import annotations

import errno
import json
import os
import re
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

RENAME_TRIES = 25


@contextmanager
def replacing(target: Path, makes_parents: bool = True) -> Iterator[Path]:
    """Yield a temporary path beside `target` to write a file or folder to. It is renamed to `target` at the end, or
    removed if the block raises.
    """
    if makes_parents:
        target.parent.mkdir(parents=True, exist_ok=True)
    aside = target.with_name(f".{target.name}.{os.getpid()}.tmp")
    old = target.with_name(f".{target.name}.{os.getpid()}.old")
    _remove(aside, old)  # of a killed process that had this one's pid
    try:
        yield aside
        if target.is_dir():  # a folder cannot be renamed over a folder that holds something
            _rename(target, old)
        try:
            _rename(aside, target)
        except OSError:
            if old.exists():
                _rename(old, target)
            raise
    finally:
        _remove(aside, old)


def _rename(source: Path, target: Path) -> None:
    for _ in range(RENAME_TRIES):
        try:
            return os.replace(source, target)
        except PermissionError:  # on Windows, while somebody reads what stands there
            time.sleep(0.02)
    os.replace(source, target)


def _remove(*paths: Path) -> None:
    for path in paths:
        shutil.rmtree(path, ignore_errors=True) if path.is_dir() else path.unlink(missing_ok=True)


def write_json(path: Path, value: dict[str, Any]) -> None:
    with replacing(path) as aside:
        aside.write_text(json.dumps(value, indent=1), encoding="utf-8")


def tidy(folder: Path) -> None:
    """Remove temporary files of killed processes from `folder`. No process may be writing there."""
    for path in folder.glob(".*"):
        if found := re.fullmatch(r"\.(.+)\.\d+\.(tmp|old)", path.name):
            target = path.with_name(found[1])
            if found[2] == "old" and not target.exists():  # killed between the two renames
                os.replace(path, target)
            _remove(path)


def is_disk_full(error: BaseException) -> bool:
    """Return whether the error means a full disk. safetensors has no error class for that, only a message with the
    system's error number, which is different on Windows.
    """
    numbers = (errno.ENOSPC, errno.EDQUOT)
    in_words = any(f"(os error {number})" in str(error) for number in (*numbers, 112))
    return getattr(error, "errno", None) in numbers or in_words
