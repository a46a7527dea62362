"""The central directory of a zip: where it lies, and the entries that it lists.

zipfile rejects a whole archive for one name or extra field that it cannot parse; here, every other entry stays.
"""

from __future__ import annotations

import os
import re
import stat
import struct
import zlib
from collections.abc import Iterator
from typing import BinaryIO, NamedTuple

TAIL_BYTES = 1 << 20  # from the end of the file, in which the end record is looked for: a comment or garbage may follow
END, END_64, LOCATOR_64, ENTRY = b"PK\5\6", b"PK\6\6", b"PK\6\7", b"PK\1\2"
ENTRY_BYTES = 46  # of an entry, before its name


class End(NamedTuple):
    """Where the central directory lies, and by how much it lies behind where the end record says."""

    start: int
    length: int
    count: int  # of entries, as claimed
    shift: int  # the bytes of another program before the zip, in a self-extracting one
    is_part: bool


class Entry(NamedTuple):
    """One file, as the central directory describes it. `name` has "/" between folders."""

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
        is_marked = self.attributes & 0x10 or stat.S_ISDIR(self.attributes >> 16)  # as DOS does, as Unix does
        return self.name.endswith("/") or bool(is_marked and self.size == 0)


def find_end(file: BinaryIO) -> End | None:
    """Return the last end record that leads to a central directory; None where there is no such record."""
    found = list(_ends(file))
    return next((end for end in found if end.length), found[0] if found else None)


def _ends(file: BinaryIO) -> Iterator[End]:
    """Yield the end records near the end of the file, the last one first, up to the first that leads to entries."""
    start = max(0, file.seek(0, os.SEEK_END) - TAIL_BYTES)
    file.seek(start)
    tail = file.read(TAIL_BYTES)
    at = tail.rfind(END)
    while at >= 0:
        if len(tail) - at >= 22:
            disk, _, _, count, length, offset, _ = struct.unpack_from("<4H2LH", tail, at + 4)
            stop, is_part = start + at, disk not in (0, 0xFFFF)
            if 0xFFFFFFFF in (length, offset) or count == 0xFFFF:
                stop, count, length, offset = _end_64(file, stop) or (stop, count, length, offset)
            for begin in (stop - length, offset):  # they differ where something precedes or follows the directory
                if begin >= 0 and bytes_at(file, begin, 4) == ENTRY:
                    yield End(begin, stop - begin, count, begin - offset, is_part)
                    return
            if length == count == 0 or is_part:
                yield End(stop, 0, count, 0, is_part)
        at = tail.rfind(END, 0, at)


def _end_64(file: BinaryIO, stop: int) -> tuple[int, int, int, int] | None:
    """Return where a zip64 end record lies, with its count, length and offset, by the locator that ends at `stop`."""
    locator = bytes_at(file, stop - 20, 20)
    if locator.startswith(LOCATOR_64) and len(locator) == 20:
        for at in (struct.unpack_from("<Q", locator, 8)[0], stop - 76):
            record = bytes_at(file, at, 56)
            if record.startswith(END_64) and len(record) == 56:
                return at, *struct.unpack_from("<3Q", record, 32)
    return None


def bytes_at(file: BinaryIO, offset: int, count: int) -> bytes:
    """Return those bytes, as far as the file has them."""
    if not 0 <= offset <= file.seek(0, os.SEEK_END):
        return b""
    file.seek(offset)
    return file.read(count)


def parsed(directory: bytes) -> Iterator[Entry]:
    """Yield the entries of a central directory; where one does not lead to the next, the next is searched for."""
    at = directory.find(ENTRY)
    while 0 <= at <= len(directory) - ENTRY_BYTES:
        _, _, flags, method, _, _, crc, packed, size, *lengths, _, _, attributes, offset = struct.unpack_from(
            "<6H3L5H2L", directory, at + 4
        )
        name_end = at + ENTRY_BYTES + lengths[0]
        name, extra = directory[at + ENTRY_BYTES : name_end], _extra_fields(directory[name_end : name_end + lengths[1]])
        large = iter(struct.unpack(f"<{len(extra[1]) // 8}Q", extra[1][: len(extra[1]) // 8 * 8]) if 1 in extra else ())
        size, packed, offset = (next(large, n) if n == 0xFFFFFFFF else n for n in (size, packed, offset))
        yield Entry(_name(name, flags, extra), offset, packed, size, crc, method, flags, attributes)
        following = at + ENTRY_BYTES + sum(lengths)
        at = following if directory.startswith(ENTRY, following) else directory.find(ENTRY, at + ENTRY_BYTES)


def _extra_fields(data: bytes) -> dict[int, bytes]:
    fields, at = {}, 0
    while len(data) - at >= 4:
        kind, length = struct.unpack_from("<2H", data, at)
        fields.setdefault(kind, data[at + 4 : at + 4 + length])
        at += 4 + length
    return fields


def _name(raw: bytes, flags: int, extra: dict[int, bytes]) -> str:
    """Return a name as text, with "/" between its folders. Many tools write UTF-8 without the flag that says so."""
    unicode_path = extra.get(0x7075, b"")
    if len(unicode_path) > 5 and struct.unpack_from("<BL", unicode_path) == (1, zlib.crc32(raw)):
        raw, flags = unicode_path[5:], 1 << 11
    try:
        return raw.decode("utf-8").replace("\\", "/")
    except UnicodeDecodeError:
        if flags & 1 << 11:
            return raw.decode("utf-8", "surrogateescape").replace("\\", "/")
    # After a byte past ASCII, a backslash may be the second half of a character (Shift-JIS, Big5), and stays.
    return re.sub(rb"(?<![\x80-\xff])\\", b"/", raw).decode("cp437")
