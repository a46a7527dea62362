"""Files that are whole or not there: written aside and renamed into place, so that a reader never sees half of one, and
neither a crash nor a full disk takes what stood there before. Standard library only.
"""

from __future__ import annotations

import errno
import json
import os
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

TAIL_BYTES = 64 << 10


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


def write_json(path: Path, value: dict[str, Any]) -> None:
    with replacing(path) as aside:
        aside.write_text(json.dumps(value, indent=1), encoding="utf-8")


def append_line(path: Path, line: str) -> None:
    """One more line, on a line of its own even where a crash has torn the one before."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("ab+") as file:
        if file.tell():
            file.seek(-1, os.SEEK_END)
            torn = file.read(1) != b"\n"
        else:
            torn = False
        file.write((b"\n" if torn else b"") + line.encode() + b"\n")


def tail(path: Path, lines: int) -> str:
    """The last lines of a text file; '' where there is none."""
    try:
        with path.open("rb") as file:
            file.seek(max(0, file.seek(0, os.SEEK_END) - TAIL_BYTES))
            text = file.read().decode("utf-8", "replace")
    except OSError:
        return ""
    return "\n".join(text.splitlines()[-lines:])


def tidy(folder: Path) -> None:
    """Clear away what killed processes have left beside the files of `folder`; nobody may be writing there."""
    for path in folder.glob(".*"):
        if found := re.fullmatch(r"\.(.+)\.\d+\.(tmp|old)", path.name):
            target = path.with_name(found[1])
            if found[2] == "old" and not target.exists():  # killed between the two renames
                os.replace(path, target)
            _remove(path)


def is_disk_full(error: BaseException) -> bool:
    """safetensors has no class of its own for it, only the words."""
    full = (errno.ENOSPC, errno.EDQUOT)
    return getattr(error, "errno", None) in full or any(f"os error {number})" in str(error) for number in full)
