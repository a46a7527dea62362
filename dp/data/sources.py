"""List the files of a source (a folder, a file, or a zip or tar archive), each with a function that opens it.

The content of a file decides whether it is an archive, not its name. Names in archives are only displayed: their files
are read into memory or copied to an unnamed temporary file, and no file is created or opened under such a name.
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
from dp.data.decode import EXTENSIONS, InvalidImage, check_name, is_ignored, open_file
from dp.data.limits import Limits
from dp.data.report import DatasetReport


class SourceFile(NamedTuple):
    """One file of a source.

    name: for display and for sorting. inner: the path within the folder or archive. size: in bytes, 0 if unknown. open:
    opens the file, or raises InvalidImage. needs_image_name: whether the file is rejected unless its name has the
    extension of an image.
    """

    name: str
    inner: str
    size: int
    open: Callable[[], BinaryIO]
    needs_image_name: bool = True


def iter_files(
    path: Path, name: str, is_one_of_many: bool, limits: Limits, stack: ExitStack, report: DatasetReport
) -> Iterator[SourceFile]:
    """Yield the files of a source. Raises InvalidImage if the source as a whole is unusable.

    name: the source's name for display. is_one_of_many: whether the names of its files begin with that name. stack:
    keeps an archive open for as long as its files are read. report: receives the folders that cannot be opened.
    """
    if os.path.isdir(path):
        root = os.path.realpath(path)
        for file in walk_files(path, report):
            inner = file.relative_to(path).as_posix()
            yield SourceFile(
                f"{name}/{inner}" if is_one_of_many else inner, inner, _size(file), partial(_open_below, root, file)
            )
        return
    kind = "" if is_ignored(name) or _suffix(name) in EXTENSIONS else _kind(path, name)
    if kind in ("", "image"):
        yield SourceFile(name, name, _size(path), partial(open_file, path), not (kind and archive_kinds.stem(name)))
        return
    list_archive = _zip_members if kind == "zip" else partial(_tar_members, compression=kind)
    is_empty = True
    for file in list_archive(stack.enter_context(open_file(path)), name, limits=limits, stack=stack):
        is_empty = False
        yield file
    if is_empty:
        raise InvalidImage("an archive without files")


def _suffix(name: str) -> str:
    return os.path.splitext(name)[1].lower().lstrip(".")


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except OSError:  # opening it will report the reason
        return 0


def _open_below(root: str, path: Path) -> BinaryIO:
    if not Path(os.path.realpath(path)).is_relative_to(root):
        raise InvalidImage("a link that leads out of the folder; copy the image here")
    return open_file(path)


def walk_files(folder: Path, report: DatasetReport) -> Iterator[Path]:
    """Yield all files below `folder`, and the links to folders, which are not followed. Folders that cannot be opened
    are added to the report as rejected.
    """

    def reject(error: OSError) -> None:
        report.rejected.append((Path(error.filename).relative_to(folder).as_posix(), "no permission to open"))

    for here, folders, names in os.walk(folder, onerror=reject):
        yield from (Path(here, name) for name in names)
        yield from (Path(here, name) for name in folders if os.path.islink(Path(here, name)))


# ----------------------------------------------------------------------------
# Archives


def _kind(path: Path, name: str) -> str:
    """Return "zip", "tar", the compression of a tar, "image", or "" for any other content. Raises InvalidImage for an
    unsupported archive.
    """
    with open_file(path) as file:
        kind = archive_kinds.detect_kind(file.read(archive_kinds.HEADER_BYTES))
        may_be_zip = kind == "zip" or not (kind or archive_kinds.is_tar_name(name))
        if may_be_zip and zip_directory.find_directory(
            file
        ):  # other bytes may precede the zip, as in a self-extracting archive
            return "zip"
    if kind in ("tar", "image", *archive_kinds.COMPRESSIONS) and not archive_kinds.is_split_part(name):
        return kind
    if why := archive_kinds.unsupported_reason(name, kind):
        raise InvalidImage(why)
    if not kind and archive_kinds.is_tar_name(name):
        return "tar"  # its first header may be damaged
    if not kind and archive_kinds.stem(name):
        raise InvalidImage(
            f"damaged, or not an archive: its content is neither a zip nor a tar; {archive_kinds.REPACK}"
        )
    return kind


def _zip_members(file: BinaryIO, name: str, limits: Limits, stack: ExitStack) -> Iterator[SourceFile]:
    entries, missing = zip_files.read_entries(file, limits)
    for entry in entries:
        if not entry.is_folder:
            yield _archived_file(name, entry.name, entry.size, partial(zip_files.read, file, entry))
    if missing:
        yield _unreadable(name, f"damaged: {missing:,} entries of its directory cannot be read")


def _tar_members(file: BinaryIO, name: str, compression: str, limits: Limits, stack: ExitStack) -> Iterator[SourceFile]:
    spool: Any = stack.enter_context(tempfile.SpooledTemporaryFile(SPOOL_BYTES))  # noqa: SIM115
    for member in tar_files.iter_members(file, compression, limits, spool, partial(_may_be_image, limits)):
        if member.name:
            yield _archived_file(name, member.name, member.size, partial(tar_files.read, member))
        else:
            yield _unreadable(name, member.problem)


def _may_be_image(limits: Limits, inner: str, size: int) -> bool:
    try:
        check_name(inner)
    except InvalidImage:
        return False
    return size <= limits.file_bytes and not is_ignored(inner)


def _archived_file(archive: str, inner: str, size: int, read: Callable[[], BinaryIO]) -> SourceFile:
    name = inner.removeprefix("./")
    return SourceFile(f"{archive}/{name}", name, size, partial(_open_archived, inner.split("/"), read))


def _open_archived(parts: list[str], read: Callable[[], BinaryIO]) -> BinaryIO:
    if ".." in parts:
        raise InvalidImage("a path with '..', which leads out of the archive")
    if not parts[0] or parts[0].endswith(":"):
        raise InvalidImage("an absolute path, which leads out of the archive")
    return read()


def _unreadable(archive: str, problem: str) -> SourceFile:
    """Return a placeholder for a damaged part of an archive. Opening it fails, which adds the problem to the report."""

    def fail() -> BinaryIO:
        raise InvalidImage(problem)

    return SourceFile(archive, archive, 0, fail, needs_image_name=False)
