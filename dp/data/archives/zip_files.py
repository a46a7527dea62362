"""Read zip archives by their central directory.

The module zipfile rejects files whose name in the local header differs from the central directory, for example in
encoding or in the separator. Here, only the lengths in the local header are used. The sizes that an archive claims are
checked before decompression, and no file is decompressed to more bytes than claimed.
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
from dp.data.archives.zip_directory import ZipEntry, find_directory, parse_directory, read_at
from dp.data.decode import InvalidImage
from dp.data.limits import Limits

CHUNK_BYTES = 1 << 16
MAX_DIRECTORY_BYTES = 64 << 20  # the central directory is read at once
MAX_OVERLAPS = 2  # a single damaged entry can overlap both of its neighbors
MAX_DEFLATE_RATIO = 1032  # the maximum of the format
LOCAL, LOCAL_BYTES = b"PK\3\4", 30
STORED, DEFLATED = 0, 8
METHOD_NAMES = {
    1: "Shrink",
    6: "Implode",
    9: "Deflate64",
    12: "bzip2",
    14: "LZMA",
    93: "Zstandard",
    95: "xz",
    98: "PPMd",
}
ENCRYPTED = "protected by a password; make an archive without one"


def read_entries(file: BinaryIO, limits: Limits) -> tuple[list[ZipEntry], int]:
    """Return the entries of a zip, and the number of claimed entries that are missing. Raises InvalidImage if the zip
    as a whole is unusable.
    """
    end = find_directory(file)
    if end is None:
        raise InvalidImage("a damaged or incomplete zip: its directory is missing; download or copy it again")
    if end.is_split_part:
        raise InvalidImage(f"one part of a split zip, which is not supported; join the parts, and {REPACK}")
    if end.length > MAX_DIRECTORY_BYTES:
        raise InvalidImage(
            f"a zip whose list of entries is too long: {end.length:,} bytes, more than {MAX_DIRECTORY_BYTES:,}"
        )
    entries = []
    for entry in parse_directory(read_at(file, end.start, end.length)):
        entries.append(entry)
        if len(entries) > limits.zip_entries:
            raise InvalidImage(f"more than {limits.zip_entries:,} entries; make several archives of it")
    entries = _with_true_offsets(entries, file, end.shift)
    _check_claims(entries, file.seek(0, os.SEEK_END), limits)
    return entries, max(0, end.count - len(entries))


def _with_true_offsets(entries: list[ZipEntry], file: BinaryIO, shift: int) -> list[ZipEntry]:
    """Return the entries with corrected offsets. Bytes before the zip shift all offsets, unless the program that put
    them there has adjusted the entries.
    """
    if not shift or any(read_at(file, entry.offset, 4) == LOCAL for entry in entries[:2]):
        return entries
    return [entry._replace(offset=entry.offset + shift) for entry in entries]


def _check_claims(entries: list[ZipEntry], archive_size: int, limits: Limits) -> None:
    """Raise InvalidImage if the claimed sizes exceed the limits. Entries with impossible sizes do not count, because
    `read` rejects them.
    """
    entries = [entry for entry in entries if _has_possible_sizes(entry, archive_size)]
    by_offset = sorted(entries, key=lambda entry: entry.offset)
    overlaps = sum(one.offset + LOCAL_BYTES + one.packed > other.offset for one, other in pairwise(by_offset))
    if overlaps > MAX_OVERLAPS:
        raise InvalidImage("a zip bomb: its entries overlap")
    unpacked = sum(entry.size for entry in entries)
    if unpacked > limits.zip_ratio * archive_size:
        raise InvalidImage(
            f"probably a zip bomb: it unpacks to {unpacked // archive_size:,} times its size, more than"
            f" {limits.zip_ratio:,}; if these are real images, save them as PNG or JPEG"
        )
    if unpacked > limits.zip_bytes:
        raise InvalidImage(f"unpacks to {unpacked:,} bytes, more than {limits.zip_bytes:,}")


def _has_possible_sizes(entry: ZipEntry, archive_size: int) -> bool:
    most = {STORED: entry.packed, DEFLATED: entry.packed * MAX_DEFLATE_RATIO}.get(entry.method, 0)
    return entry.size <= most and entry.offset + LOCAL_BYTES + entry.packed <= archive_size


def read(file: BinaryIO, entry: ZipEntry) -> io.BytesIO:
    """Return the content of an entry, whose size the caller has checked. Raises InvalidImage."""
    kind = stat.S_IFMT(entry.attributes >> 16)  # zero if the zip was not created on Unix
    if kind == stat.S_IFLNK:
        raise InvalidImage("a link, which is not followed; zip the image itself")
    if kind not in (0, stat.S_IFREG):
        raise InvalidImage("not a regular file (a pipe or a device)")
    if entry.flags & 1:
        raise InvalidImage(ENCRYPTED)
    if entry.method not in (STORED, DEFLATED):
        method = METHOD_NAMES.get(entry.method, f"method {entry.method}")
        raise InvalidImage(
            f"compressed with {method}, which is not supported; {REPACK} with ordinary (deflate) compression"
        )
    if entry.size == 0:
        raise InvalidImage("the file is empty")
    if not _has_possible_sizes(entry, file.seek(0, os.SEEK_END)):
        raise InvalidImage(f"damaged inside the zip: its data cannot hold the claimed {entry.size:,} bytes")
    header = read_at(file, entry.offset, LOCAL_BYTES)
    if not header.startswith(LOCAL) or len(header) < LOCAL_BYTES:
        raise InvalidImage("damaged inside the zip: there is no file at the offset in its directory")
    file.seek(sum(struct.unpack_from("<2H", header, 26)), os.SEEK_CUR)
    try:
        data = _decompress(file, entry)
    except (OSError, zlib.error) as error:
        raise InvalidImage(f"damaged inside the zip: {error}") from None
    if len(data) != entry.size or zlib.crc32(data) != entry.crc:
        is_encrypted = header[6] & 1 == 1  # according to the local header only
        wrong = "Bad CRC" if len(data) == entry.size else f"not the {entry.size:,} bytes that its directory claims"
        raise InvalidImage(ENCRYPTED if is_encrypted else f"damaged inside the zip: {wrong}")
    return io.BytesIO(data)


def _decompress(file: BinaryIO, entry: ZipEntry) -> bytes:
    """Decompress the data at the current position of the file, up to one byte more than `entry.size`."""
    if entry.method == STORED:
        return file.read(entry.size)
    inflate, pieces, left, missing = zlib.decompressobj(-15), [], entry.packed, entry.size + 1
    while left and missing and not inflate.eof and (packed := file.read(min(CHUNK_BYTES, left))):
        pieces.append(inflate.decompress(packed, missing))
        left -= len(packed)
        missing -= len(pieces[-1])
    return b"".join(pieces)
