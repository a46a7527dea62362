"""What people upload or name, as files: a folder, a file, an archive -> the files in it, each with a way to its bytes.
Names from outside are only ever shown: nothing is written or opened under them.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import BinaryIO, NamedTuple

from dp.archives import is_archive, members_of
from dp.data import Report, files_below
from dp.decoder import Refused, open_file
from dp.limits import Limits

SYSTEM_FILES = ("__macosx", "thumbs.db", "desktop.ini")  # beside the hidden ones, whose names begin with a dot


class Found(NamedTuple):
    """A file: the name to show, its name within the folder or archive, its size in bytes if known, how to read it."""

    name: str
    inner: str
    size: int
    open: Callable[[], BinaryIO]


def files_of(
    path: Path, name: str, is_one_of_many: bool, limits: Limits, archives: ExitStack, report: Report
) -> Iterator[Found]:
    """Yield the files of a source. Raises Refused, perhaps after some of them, where the source is damaged."""
    if os.path.isdir(path):
        root = os.path.realpath(path)
        for file in files_below(path, report):
            inner = file.relative_to(path).as_posix()
            yield Found(
                f"{name}/{inner}" if is_one_of_many else inner, inner, _size(file), partial(_open_below, root, file)
            )
    elif is_archive(name):
        for member in members_of(path, name, limits, archives):
            yield Found(f"{name}/{member.name}", member.name, member.size, member.open)
    else:
        yield Found(name, name, _size(path), partial(open_file, path))


def is_left_aside(name: str) -> bool:
    parts = [part for part in re.split(r"[/\\]", name.lower()) if part.strip(".")]
    return any(part.startswith(".") or part in SYSTEM_FILES for part in parts)


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except OSError:  # told with its reason when it is to be opened
        return 0


def _open_below(root: str, path: Path) -> BinaryIO:
    if not Path(os.path.realpath(path)).is_relative_to(root):
        raise Refused("a link that leads out of the folder; copy the picture here")
    return open_file(path)
