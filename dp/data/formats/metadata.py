"""Strip the metadata from image files, and extract the few facts in it that affect how an image looks.

Pillow parses all metadata before it decodes a pixel, and fails on much of it: EXIF entries of odd types, large text
chunks, offsets beyond the end of the file. It therefore receives an excerpt of the file with only the parts that
decoding needs. Damaged or large metadata is skipped, and nothing is decompressed without a limit.
"""

from __future__ import annotations

import io
import os
import re
import struct
from collections.abc import Iterator
from typing import BinaryIO

from dp.data.formats.excerpt import PROFILE_BYTES, ImageFile
from dp.data.formats.png import SIGNATURE, read_png

END_OF_IMAGE = b"\xff\xd9"
ICC_HEADER, EXIF_HEADER = b"ICC_PROFILE\0", b"Exif\0\0"
INTEGERS = {1: "B", 3: "H", 4: "I"}  # integer type in EXIF -> format of struct
MAX_BLOCKS = 100_000  # limit on the metadata blocks of one file; as many as in 25 MB of comments
TYPE_SIZES = {1: 1, 2: 1, 3: 2, 4: 4, 5: 8, 6: 1, 7: 1, 8: 2, 9: 4, 10: 8, 11: 4, 12: 8, 13: 4}  # in TIFF, in bytes
DATA_TAGS = (273, 279, 324, 325)  # offsets and sizes of a TIFF's strips and tiles, which can be long lists


def read_metadata(file: BinaryIO) -> ImageFile:
    """Return the file without harmful metadata, and the facts found in the metadata. Metadata that Pillow reads safely,
    such as the color profile of a TIFF, is left to it. Raises ValueError if there is too much metadata.
    """
    head = file.read(16)
    if head.startswith(SIGNATURE):
        return read_png(file)
    if head.startswith(b"\xff\xd8\xff"):
        return _jpeg(file)
    if head.startswith(b"GIF8"):
        return _gif(file)
    if head.startswith((b"II*\0", b"MM\0*")):
        return _tiff(file, "<" if head.startswith(b"II") else ">")
    if head[4:8] == b"ftyp":
        return _avif(file)
    return ImageFile(file)


def read_orientation(exif: bytes) -> int:
    """Return the orientation in an EXIF block, or 1 (upright) if there is none. Other entries may be damaged."""
    block = exif.removeprefix(EXIF_HEADER)
    order = {b"II": "<", b"MM": ">"}.get(block[:2])
    if order is None:
        return 1
    try:
        (start,) = struct.unpack_from(f"{order}I", block, 4)
        (count,) = struct.unpack_from(f"{order}H", block, start)
        for at in range(start + 2, start + 2 + 12 * count, 12):
            tag, kind, number = struct.unpack_from(f"{order}HHI", block, at)
            if tag == 0x0112 and kind in INTEGERS and number == 1:
                return struct.unpack_from(order + INTEGERS[kind], block, at + 8)[0]
    except struct.error:  # ends too early
        pass
    return 1


# ----------------------------------------------------------------------------
# JPEG


def _jpeg(file: BinaryIO) -> ImageFile:
    """Remove the comments and application segments before the first scan, except those of JFIF and Adobe, which define
    the color model.
    """
    source, profile, position = ImageFile(file, is_jpeg=True), {}, 0
    for marker, start, stop in _segments(file):
        if not (0xE0 <= marker <= 0xEF or marker == 0xFE):
            continue
        file.seek(start + 4)
        body = file.read(stop - start - 4)
        if marker == 0xE0 and body[:5] == b"JFIF\0" and len(body) >= 14:
            continue
        if marker == 0xEE and body[:5] == b"Adobe" and len(body) >= 12:
            continue
        if marker == 0xE1 and body.startswith(EXIF_HEADER) and not source.exif:
            source.exif = body
        if marker == 0xE2 and body.startswith(ICC_HEADER) and len(body) > len(ICC_HEADER) + 2:
            profile.setdefault(body[len(ICC_HEADER)], body[len(ICC_HEADER) + 2 :])
        if start > position:
            source.parts.append((file, position, start))
        position = stop
    source.parts.append((file, position, max(position, file.seek(0, os.SEEK_END))))
    source.profile = b"".join(part for _, part in sorted(profile.items()))
    return source


def _count_blocks() -> Iterator[int]:
    """Count the metadata blocks of a file. Raises ValueError after MAX_BLOCKS."""
    yield from range(MAX_BLOCKS)
    raise ValueError(f"more than {MAX_BLOCKS:,} blocks of metadata")


def _segments(file: BinaryIO) -> Iterator[tuple[int, int, int]]:
    """Yield marker, start and end of each segment before the first scan or invalid segment."""
    position, end = 2, file.seek(0, os.SEEK_END)
    for _ in _count_blocks():
        file.seek(position)
        head = file.read(4)
        if len(head) < 4 or head[0] != 0xFF:
            return
        if head[1] == 0xFF:  # a fill byte
            position += 1
            continue
        marker, length = head[1], int.from_bytes(head[2:], "big")
        if marker in (0xD8, 0xD9, 0xDA) or length < 2 or position + 2 + length > end:
            return
        yield marker, position, position + 2 + length
        position += 2 + length


# ----------------------------------------------------------------------------
# GIF, TIFF, AVIF


def _gif(file: BinaryIO) -> ImageFile:
    """Remove the comments and application blocks before the first image."""
    source, end = ImageFile(file), file.seek(0, os.SEEK_END)
    file.seek(10)
    flags = (file.read(1) or b"\0")[0]
    position = start = 13 + (3 * (2 << (flags & 7)) if flags & 0x80 else 0)
    source.parts.append((file, 0, start))
    blocks, transparency = _count_blocks(), (file, 0, 0)
    while True:
        file.seek(position)
        kind = file.read(2)
        if len(kind) < 2 or kind[0] != 0x21:  # not an extension
            break
        start, position = position, position + 2
        while next(blocks) >= 0 and (size := (file.read(1) or b"\0")[0]):
            position += 1 + size
            file.seek(position)
        position += 1
        if kind[1] == 0xF9:  # the last of these applies
            transparency = (file, start, position)
    source.parts += [transparency, (file, position, end)]
    return source


def _tiff(file: BinaryIO, order: str) -> ImageFile:
    """Remove the entries of the first directory that point beyond the end of the file or to very large values."""
    source, end = ImageFile(file), file.seek(0, os.SEEK_END)
    try:
        file.seek(4)
        (start,) = struct.unpack(f"{order}I", file.read(4))
        file.seek(start)
        (count,) = struct.unpack(f"{order}H", file.read(2))
        entries = [file.read(12) for _ in range(count)]
        kept = [entry for entry in entries if _is_readable_entry(struct.unpack(f"{order}HHII", entry), end)]
    except struct.error:  # ends too early
        return source
    if len(kept) < count:
        directory = struct.pack(f"{order}H", len(kept)) + b"".join(kept) + bytes(4)
        stop = start + 2 + 12 * count
        directory = directory.ljust(stop - start, b"\0")
        source.parts = [(file, 0, start), (io.BytesIO(directory), 0, len(directory)), (file, stop, end)]
    return source


def _is_readable_entry(entry: tuple[int, int, int, int], end: int) -> bool:
    tag, kind, count, offset = entry
    size = TYPE_SIZES.get(kind, 0) * count
    return size <= 4 or (offset + size <= end and (size <= PROFILE_BYTES or tag in DATA_TAGS))


def _avif(file: BinaryIO) -> ImageFile:
    """Rename the EXIF items, so that decoders ignore them. AVIF stores the orientation elsewhere."""
    source, end, position, kept = ImageFile(file), file.seek(0, os.SEEK_END), 0, 0
    while position + 8 <= end:
        file.seek(position)
        size, kind = struct.unpack(">I4s", file.read(8))
        if kind == b"meta" and size <= PROFILE_BYTES:
            items = re.finditer(rb"infe[\2\3].{7,9}(Exif)", file.read(max(0, size - 8)), re.DOTALL)
            for _, item in zip(_count_blocks(), items):
                at = position + 8 + item.start(1)
                source.parts += [(file, kept, at), (io.BytesIO(b"skip"), 0, 4)]
                kept = at + 4
        if size < 8:  # 0 and 1: extends to the end of the file, or has a 64-bit size
            break
        position += size
    if source.parts:
        source.parts.append((file, kept, end))
    return source
