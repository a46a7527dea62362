"""Read tar archives, plain or compressed with gzip, bzip2 or xz.

Images are read in the order of their names, but a compressed tar can only be read sequentially. One pass therefore
copies the files that may be images to a temporary file. A plain tar is read in place. The module tarfile parses each
header block; its class TarFile is not used, because it reads extended headers of any length into memory and stops at
the first damaged header.
"""

from __future__ import annotations

import io
import re
import tarfile
from collections.abc import Callable, Iterator
from tarfile import BLOCKSIZE, TarInfo
from typing import BinaryIO, NamedTuple

from dp.data.archives.archive_kinds import COMPRESSIONS, REPACK
from dp.data.archives.decompress import CHUNK_BYTES, DecompressedFile, Truncated
from dp.data.archives.tar_blocks import BlockReader
from dp.data.decode import InvalidImage
from dp.data.limits import Limits

MAX_EXTENDED_BYTES = 1 << 20  # a file with a longer extended header is rejected
EXTENDED_TYPES = (tarfile.XHDTYPE, tarfile.SOLARIS_XHDTYPE, tarfile.GNUTYPE_LONGNAME)
NON_FILE_TYPES = (
    tarfile.XGLTYPE,
    tarfile.GNUTYPE_LONGLINK,
    b"V",
    b"D",
)  # global header, long link target, volume label, dump directory
PAX_RECORD = re.compile(rb"([1-9]\d{0,6}) ([^=]+)=")  # length and keyword; the value and "\n" follow
MAX_HEADERS_PER_ENTRY = 4  # including extended headers


class TarMember(NamedTuple):
    """One file: its content as `size` bytes of `file` from `offset`, or the `problem` that prevents reading it. A
    damaged part of the archive is a member without a name.
    """

    name: str
    size: int = 0
    file: BinaryIO | None = None
    offset: int = 0
    problem: str = ""


Wanted = Callable[[str, int], bool]  # returns whether a file of this name and size may be an image


def iter_members(
    file: BinaryIO, compression: str, limits: Limits, spool: BinaryIO, is_wanted: Wanted
) -> Iterator[TarMember]:
    """Yield the files of the tar archive in `file`, and as many as possible of a damaged one. Raises InvalidImage if
    the archive as a whole is unusable.

    compression: a key of COMPRESSIONS, or "tar" for none. spool: an empty file that receives the wanted files of a
    compressed archive.
    """
    size = file.seek(0, io.SEEK_END)
    file.seek(0)
    if compression in COMPRESSIONS:
        reader = BlockReader(
            io.BufferedReader(DecompressedFile(file, compression, size, limits), CHUNK_BYTES), None, spool
        )
    elif size > limits.zip_bytes:
        raise InvalidImage(f"unpacks to {size:,} bytes, more than {limits.zip_bytes:,}")
    else:
        reader = BlockReader(file, size, None)
    problem = ""
    try:
        yield from _iter_members(reader, limits.zip_entries, is_wanted)
    except Truncated as error:
        problem = str(error)
    except OSError as error:
        raise InvalidImage(
            f"cannot be unpacked ({error.strerror or error}); {REPACK}, which is read in place"
        ) from None
    problem = problem or ("a damaged header" if reader.has_damaged_header else "")
    if problem and not reader.has_valid_header:
        raise InvalidImage(
            f"damaged, or no tar archive{f' in {compression}' * (compression in COMPRESSIONS)} ({problem}); {REPACK}"
        )
    if problem:
        yield TarMember("", problem=f"damaged or truncated ({problem}); only the files before that were read")


def _iter_members(reader: BlockReader, max_entries: int, is_wanted: Wanted) -> Iterator[TarMember]:
    extended: dict[str, str] = {}  # fields for the next file
    headers = entries = 0
    while header := reader.header():
        info, block = header
        if reader.has_damaged_header:
            yield TarMember("", problem="a damaged header; the file after it cannot be read")
        reader.has_damaged_header, reader.has_valid_header = False, True
        headers += 1
        entries += info.type not in (*EXTENDED_TYPES, *NON_FILE_TYPES)
        if entries > max_entries or headers > MAX_HEADERS_PER_ENTRY * max_entries:
            raise InvalidImage(f"more than {max_entries:,} entries; make several archives of it")
        if info.type in EXTENDED_TYPES:
            extended |= _read_extended(info, reader)
        elif info.type in NON_FILE_TYPES:
            reader.skip(info.size)
        else:
            if member := _read_member(info, block, extended, reader, is_wanted):
                yield member
            extended = {}


def _read_extended(info: TarInfo, reader: BlockReader) -> dict[str, str]:
    """Read an extended header and return the fields that it defines for the next file."""
    if info.size > MAX_EXTENDED_BYTES:
        reader.skip(info.size)
        return {"problem": f"an extended header of {info.size:,} bytes, more than {MAX_EXTENDED_BYTES:,}"}
    data = reader.read(info.size)
    if info.type == tarfile.GNUTYPE_LONGNAME:
        return {"path": data.rstrip(b"\0").decode("utf-8", "surrogateescape")}
    fields, at = {}, 0
    while record := PAX_RECORD.match(data, at):
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


def _read_member(
    info: TarInfo, block: bytes, extended: dict[str, str], reader: BlockReader, is_wanted: Wanted
) -> TarMember | None:
    """Read or skip one file. Return None for a folder."""
    name = extended.get("GNU.sparse.name") or extended.get("path") or info.name
    size = int(extended["size"]) if re.fullmatch(r"\d{1,18}", extended.get("size", "")) else info.size
    problem = extended.get("problem") or _problem(info, extended)
    try:
        is_longer = info.type == tarfile.GNUTYPE_SPARSE and block[482]
        while is_longer:  # the map of a sparse file continues in further blocks
            is_longer = reader.read(BLOCKSIZE)[504]
        if info.isdir() or info.issym() or info.islnk() or info.isdev():  # no data follows, whatever the size
            return None if info.isdir() else TarMember(name, problem=problem)
        if problem or not is_wanted(name, size):
            reader.skip(size)
            return None if name.endswith("/") and not size else TarMember(name, size, problem=problem)
        return TarMember(name, size, *reader.extract(size))
    except Truncated as error:
        reader.is_truncated = True
        return TarMember(name, problem=f"damaged or truncated ({error}); nothing after it can be read")


def _problem(info: TarInfo, extended: dict[str, str]) -> str:
    if info.issym() or info.islnk():
        return "a link, which is not followed; pack the image itself"
    if info.isdev():
        return "not a regular file (a pipe or a device)"
    if info.type == tarfile.GNUTYPE_SPARSE or "sparse" in extended:
        return "a sparse file, which is not supported; pack it without --sparse"
    if info.type == b"M":
        return f"one part of a file that is split across archives; {REPACK}"
    return ""


def read(member: TarMember) -> io.BytesIO:
    """Return the content of a member, whose size the caller has checked. Raises InvalidImage."""
    if member.problem or member.file is None:
        raise InvalidImage(member.problem)
    if member.size == 0:
        raise InvalidImage("the file is empty")
    member.file.seek(member.offset)
    return io.BytesIO(member.file.read(member.size))
