"""Tar archives, plain or compressed with gzip, bzip2 or xz, read once from front to back.

A compressed tar cannot be read out of order, and images are read in the order of their names: one pass copies the files
that may be images to a temporary file. A plain tar is read in place. tarfile parses each header block; its TarFile is
not used, because it reads extended headers of any length into memory and stops at the first damaged header.
"""

from __future__ import annotations

import io
import re
import tarfile
from collections.abc import Callable, Iterator
from tarfile import BLOCKSIZE, TarInfo
from typing import BinaryIO, NamedTuple

from dp.data.archives.archive_kinds import PACKED, REPACK
from dp.data.archives.decompress import CHUNK, CutOff, Unpacked
from dp.data.archives.tar_blocks import BlockReader
from dp.data.decode import Refused
from dp.data.limits import Limits

EXTENDED_BYTES = 1 << 20  # of an extended header that is parsed; a longer one costs its file
EXTENDED = (tarfile.XHDTYPE, tarfile.SOLARIS_XHDTYPE, tarfile.GNUTYPE_LONGNAME)
NO_FILE = (tarfile.XGLTYPE, tarfile.GNUTYPE_LONGLINK, b"V", b"D")  # global header, target of a link, label, dump
RECORD = re.compile(rb"([1-9]\d{0,6}) ([^=]+)=")  # of a pax header: length, keyword; the value and "\n" follow
HEADERS_PER_ENTRY = 4  # extended headers included


class Member(NamedTuple):
    """One file: where its bytes are, or why they cannot be read. A damaged part of the archive has an empty name."""

    name: str
    size: int = 0
    file: BinaryIO | None = None
    offset: int = 0
    problem: str = ""


Wanted = Callable[[str, int], bool]  # whether a file of this name and size may be an image


def members_of(file: BinaryIO, packing: str, limits: Limits, spool: BinaryIO, is_wanted: Wanted) -> Iterator[Member]:
    """Yield the files of the tar archive in `file`; of a damaged one, as many as can be read. Raises Refused where the
    archive as a whole cannot be used.

    packing: a key of PACKED, or "tar" for none. spool: an empty file, which receives the files that are wanted.
    """
    size = file.seek(0, io.SEEK_END)
    file.seek(0)
    if packing in PACKED:
        reader = BlockReader(io.BufferedReader(Unpacked(file, packing, size, limits), CHUNK), None, spool)
    elif size > limits.zip_bytes:
        raise Refused(f"unpacks to {size:,} bytes, more than {limits.zip_bytes:,}")
    else:
        reader = BlockReader(file, size, None)
    problem = ""
    try:
        yield from _members(reader, limits.zip_entries, is_wanted)
    except CutOff as error:
        problem = str(error)
    except OSError as error:
        raise Refused(f"cannot be unpacked ({error.strerror or error}); {REPACK}, which is read in place") from None
    problem = problem or ("a damaged header" if reader.is_lost else "")
    if problem and not reader.has_begun:
        raise Refused(f"damaged, or no tar archive{f' in {packing}' * (packing in PACKED)} ({problem}); {REPACK}")
    if problem:
        yield Member("", problem=f"damaged or cut off ({problem}); only what precedes that was read")


def _members(reader: BlockReader, most: int, is_wanted: Wanted) -> Iterator[Member]:
    extended: dict[str, str] = {}  # fields of the file whose header follows
    headers = entries = 0
    while header := reader.header():
        info, block = header
        if reader.is_lost:
            yield Member("", problem="a damaged header: the file behind it cannot be read")
        reader.is_lost, reader.has_begun = False, True
        headers += 1
        entries += info.type not in (*EXTENDED, *NO_FILE)
        if entries > most or headers > HEADERS_PER_ENTRY * most:
            raise Refused(f"more than {most:,} entries; make several archives of it")
        if info.type in EXTENDED:
            extended |= _extended(info, reader)
        elif info.type in NO_FILE:
            reader.skip(info.size)
        else:
            if member := _member(info, block, extended, reader, is_wanted):
                yield member
            extended = {}


def _extended(info: TarInfo, reader: BlockReader) -> dict[str, str]:
    """Read an extended header; return the fields that it sets for the next file."""
    if info.size > EXTENDED_BYTES:
        reader.skip(info.size)
        return {"problem": f"an extended header of {info.size:,} bytes, more than {EXTENDED_BYTES:,}"}
    data = reader.read(info.size)
    if info.type == tarfile.GNUTYPE_LONGNAME:
        return {"path": data.rstrip(b"\0").decode("utf-8", "surrogateescape")}
    fields, at = {}, 0
    while record := RECORD.match(data, at):
        end = at + int(record[1])
        if not record.end() < end <= len(data):
            break
        key = record[2].decode("utf-8", "replace")
        if key.startswith("GNU.sparse."):
            fields["sparse"] = "yes"
        if key in ("path", "size", "GNU.sparse.name"):
            fields[key] = data[record.end() : end - 1].decode("utf-8", "surrogateescape")
        at = end
    return fields


def _member(
    info: TarInfo, block: bytes, extended: dict[str, str], reader: BlockReader, is_wanted: Wanted
) -> Member | None:
    """Read one file, or skip it; return None for a folder."""
    name = extended.get("GNU.sparse.name") or extended.get("path") or info.name
    size = int(extended["size"]) if re.fullmatch(r"\d{1,18}", extended.get("size", "")) else info.size
    problem = extended.get("problem") or _problem(info, extended)
    try:
        is_longer = info.type == tarfile.GNUTYPE_SPARSE and block[482]
        while is_longer:  # the map of a sparse file continues in blocks of its own
            is_longer = reader.read(BLOCKSIZE)[504]
        if info.isdir() or info.issym() or info.islnk() or info.isdev():  # no data follows, whatever the size
            return None if info.isdir() else Member(name, problem=problem)
        if problem or not is_wanted(name, size):
            reader.skip(size)
            return None if name.endswith("/") and not size else Member(name, size, problem=problem)
        return Member(name, size, *reader.keep(size))
    except CutOff as error:
        reader.is_over = True
        return Member(name, problem=f"damaged or cut off ({error}); nothing behind it can be read")


def _problem(info: TarInfo, extended: dict[str, str]) -> str:
    if info.issym() or info.islnk():
        return "a link, which is not followed; pack the image itself"
    if info.isdev():
        return "not an ordinary file, but a pipe, a device or the like"
    if info.type == tarfile.GNUTYPE_SPARSE or "sparse" in extended:
        return "a sparse file, which is not read; pack it without --sparse"
    if info.type == b"M":
        return f"one part of a file that is split over several archives; {REPACK}"
    return ""


def read(member: Member) -> io.BytesIO:
    """Return all bytes of a member; the caller has checked `member.size`. Raises Refused with the reason."""
    if member.problem or member.file is None:
        raise Refused(member.problem)
    if member.size == 0:
        raise Refused("the file is empty")
    member.file.seek(member.offset)
    return io.BytesIO(member.file.read(member.size))
