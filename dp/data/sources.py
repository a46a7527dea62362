"""List the files in a source, which is a folder, a file, or a zip or tar archive, each with a function that opens it.

The content of a file decides whether it is an archive, not its name. Names from outside are only shown: the files in an
archive are read into memory or copied to an unnamed temporary file, and nothing is written or opened under their names.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

from dp.data.archives import archive_kinds, tar_files, zip_directory, zip_files
from dp.data.archives.tar_blocks import SPOOL_BYTES
from dp.data.dataset import Report, files_below
from dp.data.decode import EXTENSIONS, Refused, check_name, open_file
from dp.data.limits import Limits

SYSTEM_FILES = ("__macosx", "thumbs.db", "desktop.ini")  # beside the hidden ones, whose names begin with a dot


class Found(NamedTuple):
    """One file: the name to show, that within its folder or archive, its bytes as far as is known, and how to get at
    them.
    """

    name: str
    inner: str
    size: int
    open: Callable[[], BinaryIO]
    is_named: bool = True  # whether its name must be that of an image


def files_of(
    path: Path, name: str, is_one_of_many: bool, limits: Limits, opened: ExitStack, report: Report
) -> Iterator[Found]:
    """Yield the files in a source. Raises Refused where the source as a whole cannot be used."""
    if os.path.isdir(path):
        root = os.path.realpath(path)
        for file in files_below(path, report):
            inner = file.relative_to(path).as_posix()
            yield Found(
                f"{name}/{inner}" if is_one_of_many else inner, inner, _size(file), partial(_open_below, root, file)
            )
        return
    kind = "" if is_left_aside(name) or _suffix(name) in EXTENSIONS else _kind(path, name)
    if kind in ("", "image"):
        yield Found(name, name, _size(path), partial(open_file, path), not (kind and archive_kinds.stem(name)))
        return
    inside = _in_zip if kind == "zip" else partial(_in_tar, packing=kind)
    is_empty = True
    for found in inside(opened.enter_context(open_file(path)), name, limits=limits, opened=opened):
        is_empty = False
        yield found
    if is_empty:
        raise Refused("an archive without files")


def is_left_aside(name: str) -> bool:
    parts = [part for part in name.lower().split("/") if part.strip(".")]
    return any(part.startswith(".") or part in SYSTEM_FILES for part in parts)


def _suffix(name: str) -> str:
    return os.path.splitext(name)[1].lower().lstrip(".")


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except OSError:  # told with its reason when it is to be opened
        return 0


def _open_below(root: str, path: Path) -> BinaryIO:
    if not Path(os.path.realpath(path)).is_relative_to(root):
        raise Refused("a link that leads out of the folder; copy the picture here")
    return open_file(path)


# ----------------------------------------------------------------------------
# Archives


def _kind(path: Path, name: str) -> str:
    """Return "zip", "tar", a compression that a tar may have, "image", or "" for what is none of these. Raises Refused
    for an archive that is not read.
    """
    with open_file(path) as file:
        kind = archive_kinds.kind_of(file.read(archive_kinds.HEAD_BYTES))
        may_be_zip = kind == "zip" or not (kind or archive_kinds.is_tar_name(name))
        if may_be_zip and zip_directory.find_end(file):  # other bytes may precede a zip, as in a self-extracting one
            return "zip"
    if kind in ("tar", "image", *archive_kinds.PACKED) and not archive_kinds.is_part(name):
        return kind
    if why := archive_kinds.why_not_read(name, kind):
        raise Refused(why)
    if not kind and archive_kinds.is_tar_name(name):
        return "tar"  # whose first header may be damaged
    if not kind and archive_kinds.stem(name):
        raise Refused(f"damaged, or not an archive: its content is neither a zip nor a tar; {archive_kinds.REPACK}")
    return kind


def _in_zip(file: BinaryIO, name: str, limits: Limits, opened: ExitStack) -> Iterator[Found]:
    entries, missing = zip_files.entries_of(file, limits)
    for entry in entries:
        if not entry.is_folder:
            yield _found(name, entry.name, entry.size, partial(zip_files.read, file, entry))
    if missing:
        yield _unreadable(name, f"damaged: {missing:,} entries of its list of files cannot be read")


def _in_tar(file: BinaryIO, name: str, packing: str, limits: Limits, opened: ExitStack) -> Iterator[Found]:
    spool: Any = opened.enter_context(tempfile.SpooledTemporaryFile(SPOOL_BYTES))  # noqa: SIM115
    for member in tar_files.members_of(file, packing, limits, spool, partial(_may_be_image, limits)):
        if member.name:
            yield _found(name, member.name, member.size, partial(tar_files.read, member))
        else:
            yield _unreadable(name, member.problem)


def _may_be_image(limits: Limits, inner: str, size: int) -> bool:
    try:
        check_name(inner)
    except Refused:
        return False
    return size <= limits.file_bytes and not is_left_aside(inner)


def _found(archive: str, inner: str, size: int, read: Callable[[], BinaryIO]) -> Found:
    shown = inner.removeprefix("./")
    return Found(f"{archive}/{shown}", shown, size, partial(_open_inside, inner.split("/"), read))


def _open_inside(parts: list[str], read: Callable[[], BinaryIO]) -> BinaryIO:
    if ".." in parts:
        raise Refused("a name with '..', which leads out of the archive")
    if not parts[0] or parts[0].endswith(":"):
        raise Refused("an absolute name, which leads out of the archive")
    return read()


def _unreadable(archive: str, problem: str) -> Found:
    """Return an entry that only adds a line about its archive to the report."""

    def refuse() -> BinaryIO:
        raise Refused(problem)

    return Found(archive, archive, 0, refuse, is_named=False)
