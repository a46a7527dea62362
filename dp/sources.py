"""What people bring -- a folder, a file, a zip -> the files in it, each with a way to its bytes. Names from outside are
for showing: an entry of a zip is read into memory, and nothing is ever written or opened under its name.

zipfile yields no byte more of an entry than the directory claims, so it is enough to bound the claims. What it does not
bound is seen to here: how long the directory is, entries that share their bytes, and packings that unpack without a
limit (all but deflate).
"""

from __future__ import annotations

import io
import os
import re
import stat
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, fields
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import BinaryIO, NamedTuple
from zipfile import ZIP_DEFLATED, ZIP_STORED, ZipFile, ZipInfo

from dp.data import Report, files_below
from dp.decoder import MAX_PIXELS, Refused, open_file

SYSTEM_FILES = ("__macosx", "thumbs.db", "desktop.ini")  # beside the hidden ones, whose names begin with a dot
PILLOW_PIXELS = 178_956_970  # of one picture, at which Pillow stops by itself
DIRECTORY_BYTES = 64 << 20  # of the list of entries at the end of a zip, which zipfile reads at once
ENTRY_SIGNATURE = b"PK\1\2"  # before each entry of that list
HEADER_BYTES = 30  # the least that stands before each entry's own bytes


@dataclass(frozen=True)
class Limits:
    """How much is taken, at most; larger files are refused one by one, all else as a whole."""

    files: int = 100_000  # looked at in all, those inside zips included
    file_bytes: int = 256 << 20  # of one picture file
    total_bytes: int = 50 << 30  # of all of them
    pixels: int = MAX_PIXELS  # of one picture
    zip_entries: int = 100_000
    zip_bytes: int = 20 << 30  # that one zip unpacks to
    zip_ratio: int = 200  # of these bytes to the zip's own

    def __post_init__(self):
        for limit in fields(self):
            value = getattr(self, limit.name)
            if not isinstance(value, int) or value < 1:
                raise ValueError(f"{limit.name} must be a whole number of at least 1, got {value!r}")
        if self.pixels > PILLOW_PIXELS:
            raise ValueError(f"pixels must be at most {PILLOW_PIXELS:,}, got {self.pixels:,}")

    @classmethod
    def of_environment(cls) -> Limits:
        """Those that whoever hosts has set: DP_MAX_FILES and so on, a variable for each. Raises ValueError."""
        names = {limit.name: f"DP_MAX_{limit.name.upper()}" for limit in fields(cls)}
        said = {limit: os.environ[name] for limit, name in names.items() if name in os.environ}
        try:
            return cls(**{limit: int(text) if text.isdecimal() else text for limit, text in said.items()})
        except ValueError as error:
            raise ValueError(f"of the environment's DP_MAX_... variables: {error}") from None


class Found(NamedTuple):
    """One file: the name to show, that within its folder or zip, bytes as far as is known, and how to get at them."""

    name: str
    inner: str
    size: int
    open: Callable[[], BinaryIO]


def files_of(
    path: Path, name: str, is_one_of_many: bool, limits: Limits, zips: ExitStack, report: Report
) -> Iterator[Found]:
    """The files that a source holds. Raises Refused where the source as a whole cannot be used."""
    if os.path.isdir(path):
        root = os.path.realpath(path)
        for file in files_below(path, report):
            inner = file.relative_to(path).as_posix()
            yield Found(
                f"{name}/{inner}" if is_one_of_many else inner, inner, _size(file), partial(_open_below, root, file)
            )
    elif name.lower().endswith(".zip"):
        opened = zips.enter_context(_open_zip(path, limits))
        for entry in opened.infolist():
            inner = entry.orig_filename
            if not inner.endswith(("/", "\\")):
                yield Found(f"{name}/{inner}", inner, entry.file_size, partial(_read_entry, opened, entry))
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


# ----------------------------------------------------------------------------
# Zips


class _Counted(io.BufferedReader):
    """A zip file whose directory is counted while it is read: zipfile makes an object of every entry, and only then
    could it be asked how many there are. What the file itself says of their number need not be true.
    """

    max_entries: float = float("inf")
    entries = 0

    def read(self, size: int | None = -1) -> bytes:
        if size is not None and size > DIRECTORY_BYTES:
            raise Refused("its list of entries is too long")
        data = super().read(size)
        if self.max_entries < float("inf"):
            self.entries += data.count(ENTRY_SIGNATURE)
            if self.entries > self.max_entries:
                raise Refused(f"more than {self.max_entries:,} entries; make several zips of it")
        return data


@contextmanager
def _open_zip(path: Path, limits: Limits) -> Iterator[ZipFile]:
    """The zip at `path`, once its directory has been found honest. Raises Refused with the reason."""
    with _Counted(open_file(path).detach()) as file:
        file.max_entries = limits.zip_entries
        try:
            archive = ZipFile(file)
        except Refused:
            raise
        except UnicodeDecodeError:
            raise Refused("a name in it is damaged; zip the folder anew") from None
        except Exception as error:  # zipfile answers a damaged directory with many exceptions
            raise Refused(f"a damaged zip, or none at all: {error}") from None
        file.max_entries = float("inf")
        with archive:
            entries = sorted(archive.infolist(), key=lambda entry: entry.header_offset)
            for entry, following in pairwise(entries):
                if entry.header_offset + HEADER_BYTES + entry.compress_size > following.header_offset:
                    raise Refused("a zip bomb: its entries lie over one another")
            unpacked, packed = sum(entry.file_size for entry in entries), path.stat().st_size
            if unpacked > limits.zip_ratio * packed:
                raise Refused(
                    f"a zip bomb, it seems: it unpacks to {unpacked // packed:,} times its size, more than"
                    f" {limits.zip_ratio:,}; if these are real pictures, save them as PNG or JPEG"
                )
            if unpacked > limits.zip_bytes:
                raise Refused(f"unpacks to {unpacked:,} bytes, more than {limits.zip_bytes:,}")
            yield archive


def _read_entry(archive: ZipFile, entry: ZipInfo) -> io.BytesIO:
    """All of an entry's bytes; the caller has looked at `entry.file_size`. Raises Refused with the reason."""
    kind = stat.S_IFMT(entry.external_attr >> 16)  # Unix's; zero where the zip was made elsewhere
    parts = re.split(r"[/\\]", entry.orig_filename)
    if ".." in parts:
        raise Refused("a name with '..', which leads out of the zip")
    if not parts[0] or parts[0].endswith(":"):
        raise Refused("an absolute name, which leads out of the zip")
    if kind == stat.S_IFLNK:
        raise Refused("a link, which is not followed; zip the picture itself")
    if kind not in (0, stat.S_IFREG):
        raise Refused("not an ordinary file, but a pipe, a device or the like")
    if entry.flag_bits & 1:
        raise Refused("locked with a password; make a zip without one")
    if entry.compress_type not in (ZIP_STORED, ZIP_DEFLATED):
        raise Refused("packed in a way that is not read here; make an ordinary zip")
    if entry.file_size == 0:
        raise Refused("the file is empty")
    try:
        with archive.open(entry) as file:
            data = file.read(entry.file_size + 1)
    except Exception as error:  # zlib's, zipfile's and the system's
        raise Refused(f"damaged inside the zip: {error}") from None
    if len(data) != entry.file_size:
        raise Refused(f"damaged inside the zip: {len(data):,} bytes where {entry.file_size:,} are claimed")
    return io.BytesIO(data)
