"""Decompress gzip, bzip2 and xz files as streams, with bounded memory and within the limits of an archive."""

from __future__ import annotations

import bz2
import io
import lzma
import zlib
from collections.abc import Callable, Iterator
from functools import partial
from tarfile import RECORDSIZE
from typing import Any, BinaryIO

from dp.data.archives.archive_kinds import COMPRESSIONS
from dp.data.decode import InvalidImage
from dp.data.limits import Limits

CHUNK_BYTES = 1 << 16
XZ_MEMORY_BYTES = 256 << 20  # memory limit for xz, whose strongest preset takes 65 MiB


class Truncated(Exception):
    """The data ends too early, or cannot be decompressed further."""


class _Gunzip:
    """A decompressor for one gzip member, with the interface of BZ2Decompressor and LZMADecompressor."""

    def __init__(self):
        self._zlib = zlib.decompressobj(31)  # 31: with the header and checksum of gzip

    def decompress(self, data: bytes, max_length: int) -> bytes:
        return self._zlib.decompress(self._zlib.unconsumed_tail + data, max_length)

    @property
    def needs_input(self) -> bool:
        return not self._zlib.unconsumed_tail

    @property
    def eof(self) -> bool:
        return self._zlib.eof

    @property
    def unused_data(self) -> bytes:
        return self._zlib.unused_data


DECOMPRESSORS: dict[str, Callable[[], Any]] = {
    "gzip": _Gunzip,
    "bzip2": bz2.BZ2Decompressor,
    "xz": partial(lzma.LZMADecompressor, lzma.FORMAT_XZ, XZ_MEMORY_BYTES),
}


class DecompressedFile(io.RawIOBase):
    """The decompressed content of `file`, as a file. size: the compressed size in bytes. Reading raises Truncated if
    the compressed data is damaged, and InvalidImage if a limit is exceeded.
    """

    def __init__(self, file: BinaryIO, compression: str, size: int, limits: Limits):
        self._chunks = _decompress(file, COMPRESSIONS[compression], DECOMPRESSORS[compression])
        self._chunk = memoryview(b"")
        self._size, self._limits, self._total = size, limits, 0

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        if not self._chunk:
            try:
                self._chunk = memoryview(next(self._chunks, b""))
            except (OSError, EOFError, zlib.error, lzma.LZMAError) as error:
                raise Truncated(str(error)) from None
            self._total += len(self._chunk)
            self._check_total()
        count = min(len(buffer), len(self._chunk))
        buffer[:count], self._chunk = self._chunk[:count], self._chunk[count:]
        return count

    def _check_total(self) -> None:
        if self._total > self._limits.zip_ratio * self._size + RECORDSIZE:  # an empty tar is a record of zeros
            raise InvalidImage(
                f"probably a decompression bomb: it unpacks to more than {self._limits.zip_ratio:,} times its size; if"
                " these are real images, save them as PNG or JPEG"
            )
        if self._total > self._limits.zip_bytes:
            raise InvalidImage(f"unpacks to more than {self._limits.zip_bytes:,} bytes")


def _decompress(file: BinaryIO, signature: bytes, new_decompressor: Callable[[], Any]) -> Iterator[bytes]:
    """Yield the decompressed content of all streams in `file`. Padding or garbage after the last one is ignored."""
    decompressor, data = new_decompressor(), b""
    while True:
        if decompressor.eof:
            data = (decompressor.unused_data or file.read(CHUNK_BYTES)).lstrip(b"\0")
            if len(data) < len(signature):
                data += file.read(CHUNK_BYTES)
            if not data.startswith(signature):
                return
            decompressor = new_decompressor()
        elif decompressor.needs_input:
            data = file.read(CHUNK_BYTES)
        chunk = decompressor.decompress(data, CHUNK_BYTES)
        if not chunk and not data and decompressor.needs_input and not decompressor.eof:
            raise EOFError("its end is missing")
        data = b""
        if chunk:
            yield chunk
