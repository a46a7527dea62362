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
    """Yield a temporary path beside `target` for a new file or folder. At the end, it is renamed to `target`; if the
    block raises, it is removed.
    """
    if makes_parents:
        target.parent.mkdir(parents=True, exist_ok=True)
    temporary = target.with_name(f".{target.name}.{os.getpid()}.tmp")
    old = target.with_name(f".{target.name}.{os.getpid()}.old")
    _remove(temporary, old)  # left by a killed process with the same pid
    try:
        yield temporary
        if target.is_dir():  # a folder cannot be renamed over a non-empty one
            _rename(target, old)
        try:
            _rename(temporary, target)
        except OSError:
            if old.exists():
                _rename(old, target)
            raise
    finally:
        _remove(temporary, old)


def _rename(source: Path, target: Path) -> None:
    for _ in range(RENAME_TRIES):
        try:
            return os.replace(source, target)
        except PermissionError:  # on Windows, while another process reads the target
            time.sleep(0.02)
    os.replace(source, target)


def _remove(*paths: Path) -> None:
    for path in paths:
        shutil.rmtree(path, ignore_errors=True) if path.is_dir() else path.unlink(missing_ok=True)


def write_json(path: Path, value: dict[str, Any]) -> None:
    """Write a JSON file atomically."""
    with replacing(path) as temporary:
        temporary.write_text(json.dumps(value, indent=1), encoding="utf-8")


def remove_leftovers(folder: Path) -> None:
    """Remove temporary files of killed processes from `folder`. No process may be writing there."""
    for path in folder.glob(".*"):
        if match := re.fullmatch(r"\.(.+)\.\d+\.(tmp|old)", path.name):
            target = path.with_name(match[1])
            if match[2] == "old" and not target.exists():  # killed between the two renames
                os.replace(path, target)
            _remove(path)


def is_disk_full(error: BaseException) -> bool:
    """Return whether an error means that the disk is full. safetensors has no error class for it, only a message with
    the error number of the system, which is 112 on Windows.
    """
    numbers = (errno.ENOSPC, errno.EDQUOT)
    is_in_message = any(f"(os error {number})" in str(error) for number in (*numbers, 112))
    return getattr(error, "errno", None) in numbers or is_in_message
