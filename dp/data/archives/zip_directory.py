"""Find and parse the central directory of a zip.

The module zipfile rejects a whole archive because of one name or extra field that it cannot parse. This parser keeps
all other entries.
"""

from __future__ import annotations

import os
import re
import stat
import struct
import zlib
from collections.abc import Iterator
from typing import BinaryIO, NamedTuple

SEARCH_BYTES = 1 << 20  # at the end of the file, to search for the end record, which a comment or garbage may follow
END, END_64, LOCATOR_64, ENTRY = b"PK\5\6", b"PK\6\6", b"PK\6\7", b"PK\1\2"
ENTRY_HEADER_BYTES = 46  # size of an entry without its variable fields


class Directory(NamedTuple):
    """The position of the central directory in the file, from an end record.

    count: the number of entries that the record claims. shift: the number of bytes that precede the zip, as in a
    self-extracting archive. is_part: whether the zip is one part of a split archive.
    """

    start: int
    length: int
    count: int
    shift: int
    is_split_part: bool


class ZipEntry(NamedTuple):
    """One entry of the central directory. `name` has "/" as separator. packed: compressed size in bytes."""

    name: str
    offset: int
    packed: int
    size: int
    crc: int
    method: int
    flags: int
    attributes: int

    @property
    def is_folder(self) -> bool:
        is_marked = self.attributes & 0x10 or stat.S_ISDIR(self.attributes >> 16)  # by the attributes of DOS or of Unix
        return self.name.endswith("/") or bool(is_marked and self.size == 0)


def find_directory(file: BinaryIO) -> Directory | None:
    """Return the directory of the last end record that leads to entries, or of the last one at all, or None."""
    found = list(_find_end_records(file))
    return next((end for end in found if end.length), found[0] if found else None)


def _find_end_records(file: BinaryIO) -> Iterator[Directory]:
    """Yield the directories of the end records, last one first, until one leads to entries."""
    start = max(0, file.seek(0, os.SEEK_END) - SEARCH_BYTES)
    file.seek(start)
    tail = file.read(SEARCH_BYTES)
    at = tail.rfind(END)
    while at >= 0:
        if len(tail) - at >= 22:
            disk, _, _, count, length, offset, _ = struct.unpack_from("<4H2LH", tail, at + 4)
            stop, is_split_part = start + at, disk not in (0, 0xFFFF)
            if 0xFFFFFFFF in (length, offset) or count == 0xFFFF:
                stop, count, length, offset = _find_zip64_end(file, stop) or (stop, count, length, offset)
            for begin in (stop - length, offset):  # these differ if other data precedes or follows the directory
                if begin >= 0 and read_at(file, begin, 4) == ENTRY:
                    yield Directory(begin, stop - begin, count, begin - offset, is_split_part)
                    return
            if length == count == 0 or is_split_part:
                yield Directory(stop, 0, count, 0, is_split_part)
        at = tail.rfind(END, 0, at)


def _find_zip64_end(file: BinaryIO, stop: int) -> tuple[int, int, int, int] | None:
    """Return the position of the zip64 end record, and its count, length and offset, by the locator that ends at
    `stop`.
    """
    locator = read_at(file, stop - 20, 20)
    if locator.startswith(LOCATOR_64) and len(locator) == 20:
        for at in (struct.unpack_from("<Q", locator, 8)[0], stop - 76):
            record = read_at(file, at, 56)
            if record.startswith(END_64) and len(record) == 56:
                return at, *struct.unpack_from("<3Q", record, 32)
    return None


def read_at(file: BinaryIO, offset: int, count: int) -> bytes:
    """Return up to `count` bytes from `offset`, fewer at the end of the file."""
    if not 0 <= offset <= file.seek(0, os.SEEK_END):
        return b""
    file.seek(offset)
    return file.read(count)


def parse_directory(directory: bytes) -> Iterator[ZipEntry]:
    """Yield the entries of a central directory. If the lengths of an entry are wrong, search for the next one."""
    at = directory.find(ENTRY)
    while 0 <= at <= len(directory) - ENTRY_HEADER_BYTES:
        _, _, flags, method, _, _, crc, packed, size, *lengths, _, _, attributes, offset = struct.unpack_from(
            "<6H3L5H2L", directory, at + 4
        )
        name_end = at + ENTRY_HEADER_BYTES + lengths[0]
        name, extra = (
            directory[at + ENTRY_HEADER_BYTES : name_end],
            _extra_fields(directory[name_end : name_end + lengths[1]]),
        )
        large = iter(struct.unpack(f"<{len(extra[1]) // 8}Q", extra[1][: len(extra[1]) // 8 * 8]) if 1 in extra else ())
        size, packed, offset = (next(large, n) if n == 0xFFFFFFFF else n for n in (size, packed, offset))
        yield ZipEntry(_decode_name(name, flags, extra), offset, packed, size, crc, method, flags, attributes)
        following = at + ENTRY_HEADER_BYTES + sum(lengths)
        at = following if directory.startswith(ENTRY, following) else directory.find(ENTRY, at + ENTRY_HEADER_BYTES)


def _extra_fields(data: bytes) -> dict[int, bytes]:
    fields, at = {}, 0
    while len(data) - at >= 4:
        kind, length = struct.unpack_from("<2H", data, at)
        fields.setdefault(kind, data[at + 4 : at + 4 + length])
        at += 4 + length
    return fields


def _decode_name(raw: bytes, flags: int, extra: dict[int, bytes]) -> str:
    """Decode a name, with "/" as separator. Many tools write UTF-8 without setting the flag for it."""
    unicode_path = extra.get(0x7075, b"")
    if len(unicode_path) > 5 and struct.unpack_from("<BL", unicode_path) == (1, zlib.crc32(raw)):
        raw, flags = unicode_path[5:], 1 << 11
    try:
        return raw.decode("utf-8").replace("\\", "/")
    except UnicodeDecodeError:
        if flags & 1 << 11:
            return raw.decode("utf-8", "surrogateescape").replace("\\", "/")
    # After a non-ASCII byte, a backslash may be the second byte of a character (Shift-JIS, Big5), and is kept.
    return re.sub(rb"(?<![\x80-\xff])\\", b"/", raw).decode("cp437")
