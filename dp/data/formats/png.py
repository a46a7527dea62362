"""PNG files without their ancillary chunks, and what these say about color, transparency and orientation."""

from __future__ import annotations

import os
import struct
import zlib
from collections.abc import Iterator
from typing import BinaryIO

from dp.data.formats.excerpt import PROFILE_BYTES, Source

SIGNATURE = b"\x89PNG\r\n\x1a\n"
EXIF_BYTES = 1 << 20  # read of an EXIF chunk that is larger than a profile may be
MAX_CHUNKS = 1_000_000
REMEMBERED = {b"IHDR", b"sRGB", b"gAMA", b"cHRM", b"iCCP", b"eXIf", b"tRNS"}


def read_png(file: BinaryIO) -> Source:
    """Keep the critical chunks, and the transparency of a palette; from the first place that is no chunk on, keep
    everything, and Pillow says what is wrong.
    """
    source, found, position, stop = Source(file), {}, 0, len(SIGNATURE)
    for count, (kind, start, stop) in enumerate(_chunks(file)):
        if count > MAX_CHUNKS:
            break
        is_color = found.get(b"IHDR", b"")[9:10] == b"\3"
        if kind in REMEMBERED and kind not in found:
            _remember(file, kind, start, stop, found)
        if kind[0] & 0x20 and not (kind == b"tRNS" and is_color):  # a lower-case letter: ancillary
            if start > position:
                source.parts.append((file, position, start))
            position = stop
    source.parts.append((file, position, max(position, file.seek(0, os.SEEK_END))))
    source.exif = found.get(b"eXIf", b"")
    source.profile = _inflated(found.get(b"iCCP", b""))
    header = found.get(b"IHDR", b"").ljust(13, b"\0")
    source.depth = header[8]
    numbers = {0: 1, 2: 3}.get(header[9])  # samples of grey and of color without an alpha channel
    if numbers and len(found.get(b"tRNS", b"")) == 2 * numbers:
        most = (1 << source.depth) - 1
        step = 255 // most if source.depth < 8 else 1
        source.clear = tuple((sample & most) * step for sample in struct.unpack(f">{numbers}H", found[b"tRNS"]))
    if b"sRGB" not in found:
        if len(found.get(b"gAMA", b"")) == 4:
            source.gamma = struct.unpack(">I", found[b"gAMA"])[0] / 100_000 or None
        if len(found.get(b"cHRM", b"")) == 32:
            source.primaries = tuple(value / 100_000 for value in struct.unpack(">8I", found[b"cHRM"]))
    return source


def _chunks(file: BinaryIO) -> Iterator[tuple[bytes, int, int]]:
    """Kind, start and end of each chunk up to the end of the image, or of what is readable as chunks."""
    position, end = len(SIGNATURE), file.seek(0, os.SEEK_END)
    while position + 12 <= end:
        file.seek(position)
        length, kind = struct.unpack(">I4s", file.read(8))
        if not kind.isalpha() or not kind.isascii() or kind == b"IEND":
            return
        yield kind, position, min(position + 12 + length, end)
        position += 12 + length


def _remember(file: BinaryIO, kind: bytes, start: int, stop: int, found: dict[bytes, bytes]) -> None:
    """Put the body of a chunk into `found`, unless it is damaged or too large."""
    length = stop - start - 12
    if length > PROFILE_BYTES:
        if kind == b"eXIf":
            file.seek(start + 8)
            found[kind] = file.read(EXIF_BYTES)
        return
    file.seek(start + 8)
    body, check = file.read(length), file.read(4)
    if check == struct.pack(">I", zlib.crc32(kind + body)):
        found[kind] = body


def _inflated(chunk: bytes) -> bytes:
    """The profile in an iCCP chunk: a name, a zero, the method 0, and zlib's data. Empty where damaged or too large."""
    _, _, packed = chunk.partition(b"\0")
    inflater = zlib.decompressobj()
    try:
        profile = inflater.decompress(packed[1:], PROFILE_BYTES)
    except zlib.error:
        return b""
    return profile if inflater.eof else b""
