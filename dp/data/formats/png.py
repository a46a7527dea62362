"""Strip the ancillary chunks from PNG files, and extract color, transparency and orientation from them."""

from __future__ import annotations

import os
import struct
import zlib
from collections.abc import Iterator
from typing import BinaryIO

from dp.data.formats.excerpt import PROFILE_BYTES, ImageFile

SIGNATURE = b"\x89PNG\r\n\x1a\n"
EXIF_BYTES = 1 << 20  # number of bytes that are read from an EXIF chunk of more than PROFILE_BYTES
MAX_CHUNKS = 1_000_000
COLOR_CHUNKS = {b"IHDR", b"sRGB", b"gAMA", b"cHRM", b"iCCP", b"eXIf", b"tRNS"}


def read_png(file: BinaryIO) -> ImageFile:
    """Keep the critical chunks and the transparency of a palette. Everything after the first invalid chunk is kept, so
    that Pillow reports the error.
    """
    source, found, position, stop = ImageFile(file), {}, 0, len(SIGNATURE)
    for count, (kind, start, stop) in enumerate(_chunks(file)):
        if count > MAX_CHUNKS:
            break
        has_palette = found.get(b"IHDR", b"")[9:10] == b"\3"
        if kind in COLOR_CHUNKS and kind not in found:
            _read_chunk(file, kind, start, stop, found)
        if kind[0] & 0x20 and not (kind == b"tRNS" and has_palette):  # a lowercase first letter marks ancillary chunks
            if start > position:
                source.parts.append((file, position, start))
            position = stop
    source.parts.append((file, position, max(position, file.seek(0, os.SEEK_END))))
    source.exif = found.get(b"eXIf", b"")
    source.profile = _decompress_profile(found.get(b"iCCP", b""))
    header = found.get(b"IHDR", b"").ljust(13, b"\0")
    source.depth = header[8]
    channels = {0: 1, 2: 3}.get(header[9])  # of the grayscale and RGB color types
    if channels and len(found.get(b"tRNS", b"")) == 2 * channels:
        most = (1 << source.depth) - 1
        step = 255 // most if source.depth < 8 else 1
        source.transparent_color = tuple(
            (sample & most) * step for sample in struct.unpack(f">{channels}H", found[b"tRNS"])
        )
    if b"sRGB" not in found:
        if len(found.get(b"gAMA", b"")) == 4:
            source.gamma = struct.unpack(">I", found[b"gAMA"])[0] / 100_000 or None
        if len(found.get(b"cHRM", b"")) == 32:
            source.primaries = tuple(value / 100_000 for value in struct.unpack(">8I", found[b"cHRM"]))
    return source


def _chunks(file: BinaryIO) -> Iterator[tuple[bytes, int, int]]:
    """Yield kind, start and end of each chunk before the end of the image or the first invalid chunk."""
    position, end = len(SIGNATURE), file.seek(0, os.SEEK_END)
    while position + 12 <= end:
        file.seek(position)
        length, kind = struct.unpack(">I4s", file.read(8))
        if not kind.isalpha() or not kind.isascii() or kind == b"IEND":
            return
        yield kind, position, min(position + 12 + length, end)
        position += 12 + length


def _read_chunk(file: BinaryIO, kind: bytes, start: int, stop: int, found: dict[bytes, bytes]) -> None:
    """Add the body of a chunk to `found`, unless it is damaged or too large."""
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


def _decompress_profile(chunk: bytes) -> bytes:
    """Return the color profile in an iCCP chunk (name, zero byte, method, zlib data), or b"" if it is damaged or too
    large.
    """
    _, _, packed = chunk.partition(b"\0")
    inflater = zlib.decompressobj()
    try:
        profile = inflater.decompress(packed[1:], PROFILE_BYTES)
    except zlib.error:
        return b""
    return profile if inflater.eof else b""
