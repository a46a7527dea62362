"""Zip archives, read by their central directory alone.

zipfile rejects every file whose local header spells its name differently from the central directory: with backslashes,
in another encoding, in another case. Of a local header only the lengths are used here. What an archive claims is
checked before anything is unpacked, and no file unpacks to more bytes than the directory claims.
"""

from __future__ import annotations

import io
import os
import stat
import struct
import zlib
from itertools import pairwise
from typing import BinaryIO

from dp.data.archives.archive_kinds import REPACK
from dp.data.archives.zip_directory import Entry, bytes_at, find_end, parsed
from dp.data.decode import Refused
from dp.data.limits import Limits

CHUNK = 1 << 16
DIRECTORY_BYTES = 64 << 20  # of the central directory, which is read at once
OVERLAPS = 2  # one damaged entry overlaps at most the two beside it
DEFLATE_RATIO = 1032  # the most that a byte of deflate can stand for
LOCAL, LOCAL_BYTES = b"PK\3\4", 30
STORED, DEFLATED = 0, 8
METHODS = {1: "Shrink", 6: "Implode", 9: "Deflate64", 12: "bzip2", 14: "LZMA", 93: "Zstandard", 95: "xz", 98: "PPMd"}
LOCKED = "protected by a password; make an archive without one"


def entries_of(file: BinaryIO, limits: Limits) -> tuple[list[Entry], int]:
    """Return the entries of a zip, and how many more its end record claims. Raises Refused for the zip as a whole."""
    end = find_end(file)
    if end is None:
        raise Refused("a damaged zip, or not a whole one: its list of files is missing; download or copy it again")
    if end.is_part:
        raise Refused(f"one part of a split zip, which is not read; join the parts, and {REPACK}")
    if end.length > DIRECTORY_BYTES:
        raise Refused(f"a zip whose list of entries is too long: {end.length:,} bytes, more than {DIRECTORY_BYTES:,}")
    entries = []
    for entry in parsed(bytes_at(file, end.start, end.length)):
        entries.append(entry)
        if len(entries) > limits.zip_entries:
            raise Refused(f"more than {limits.zip_entries:,} entries; make several archives of it")
    entries = _shifted(entries, file, end.shift)
    _check_claims(entries, file.seek(0, os.SEEK_END), limits)
    return entries, max(0, end.count - len(entries))


def _shifted(entries: list[Entry], file: BinaryIO, shift: int) -> list[Entry]:
    """Return the entries with their true offsets: bytes before the zip shift all of them, unless the program that put
    them there has adjusted the offsets.
    """
    if not shift or any(bytes_at(file, entry.offset, 4) == LOCAL for entry in entries[:2]):
        return entries
    return [entry._replace(offset=entry.offset + shift) for entry in entries]


def _check_claims(entries: list[Entry], archive_size: int, limits: Limits) -> None:
    """Raises Refused where the entries together claim more than the limits allow. An entry whose claims cannot be true
    is not counted: `read` rejects it.
    """
    entries = [entry for entry in entries if _is_possible(entry, archive_size)]
    by_offset = sorted(entries, key=lambda entry: entry.offset)
    overlaps = sum(one.offset + LOCAL_BYTES + one.packed > other.offset for one, other in pairwise(by_offset))
    if overlaps > OVERLAPS:
        raise Refused("a zip bomb: its entries lie over one another")
    unpacked = sum(entry.size for entry in entries)
    if unpacked > limits.zip_ratio * archive_size:
        raise Refused(
            f"a zip bomb, it seems: it unpacks to {unpacked // archive_size:,} times its size, more than"
            f" {limits.zip_ratio:,}; if these are real images, save them as PNG or JPEG"
        )
    if unpacked > limits.zip_bytes:
        raise Refused(f"unpacks to {unpacked:,} bytes, more than {limits.zip_bytes:,}")


def _is_possible(entry: Entry, archive_size: int) -> bool:
    most = {STORED: entry.packed, DEFLATED: entry.packed * DEFLATE_RATIO}.get(entry.method, 0)
    return entry.size <= most and entry.offset + LOCAL_BYTES + entry.packed <= archive_size


def read(file: BinaryIO, entry: Entry) -> io.BytesIO:
    """Return all bytes of an entry; the caller has checked `entry.size`. Raises Refused with the reason."""
    kind = stat.S_IFMT(entry.attributes >> 16)  # Unix's; zero where the zip was made elsewhere
    if kind == stat.S_IFLNK:
        raise Refused("a link, which is not followed; zip the image itself")
    if kind not in (0, stat.S_IFREG):
        raise Refused("not an ordinary file, but a pipe, a device or the like")
    if entry.flags & 1:
        raise Refused(LOCKED)
    if entry.method not in (STORED, DEFLATED):
        method = METHODS.get(entry.method, f"method {entry.method}")
        raise Refused(f"compressed with {method}, which is not read; {REPACK} with ordinary (deflate) compression")
    if entry.size == 0:
        raise Refused("the file is empty")
    if not _is_possible(entry, file.seek(0, os.SEEK_END)):
        raise Refused(f"damaged inside the zip: {entry.size:,} bytes cannot come out of what is there")
    header = bytes_at(file, entry.offset, LOCAL_BYTES)
    if not header.startswith(LOCAL) or len(header) < LOCAL_BYTES:
        raise Refused("damaged inside the zip: the file is not where the list of files says")
    file.seek(sum(struct.unpack_from("<2H", header, 26)), os.SEEK_CUR)
    try:
        data = _unpacked(file, entry)
    except (OSError, zlib.error) as error:
        raise Refused(f"damaged inside the zip: {error}") from None
    if len(data) != entry.size or zlib.crc32(data) != entry.crc:
        is_locked = header[6] & 1 == 1  # by the local header alone
        wrong = "Bad CRC" if len(data) == entry.size else f"not the {entry.size:,} bytes that the list of files claims"
        raise Refused(LOCKED if is_locked else f"damaged inside the zip: {wrong}")
    return io.BytesIO(data)


def _unpacked(file: BinaryIO, entry: Entry) -> bytes:
    """Return the data that begins at the file's position, cut one byte past `entry.size` if there is more."""
    if entry.method == STORED:
        return file.read(entry.size)
    inflate, pieces, left, missing = zlib.decompressobj(-15), [], entry.packed, entry.size + 1
    while left and missing and not inflate.eof and (packed := file.read(min(CHUNK, left))):
        pieces.append(inflate.decompress(packed, missing))
        left -= len(packed)
        missing -= len(pieces[-1])
    return b"".join(pieces)
