"""Decompress gzip, bzip2 and xz files as streams, in bounded memory and within the limits of an archive."""

from __future__ import annotations

import bz2
import io
import lzma
import zlib
from collections.abc import Callable, Iterator
from functools import partial
from tarfile import RECORDSIZE
from typing import Any, BinaryIO

from dp.data.archives.archive_kinds import PACKED
from dp.data.decode import Refused
from dp.data.limits import Limits

CHUNK = 1 << 16
XZ_BYTES = 256 << 20  # of memory for decompressing xz, whose strongest preset takes 65 MiB


class CutOff(Exception):
    """The data ends too early, or cannot be unpacked further."""


class _Gunzip:
    """A decompressor for one gzip member, with the interface of BZ2Decompressor and LZMADecompressor."""

    def __init__(self):
        self._zlib = zlib.decompressobj(31)  # 31: with gzip's header and checksum

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
    "xz": partial(lzma.LZMADecompressor, lzma.FORMAT_XZ, XZ_BYTES),
}


class Unpacked(io.RawIOBase):
    """The decompressed content of `file`, which has `size` bytes. Reading raises CutOff where the file is damaged, and
    Refused past a limit.
    """

    def __init__(self, file: BinaryIO, packing: str, size: int, limits: Limits):
        self._pieces, self._piece = _pieces(file, PACKED[packing], DECOMPRESSORS[packing]), memoryview(b"")
        self._size, self._limits, self._total = size, limits, 0

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        if not self._piece:
            try:
                self._piece = memoryview(next(self._pieces, b""))
            except (OSError, EOFError, zlib.error, lzma.LZMAError) as error:
                raise CutOff(str(error)) from None
            self._total += len(self._piece)
            self._check_total()
        count = min(len(buffer), len(self._piece))
        buffer[:count], self._piece = self._piece[:count], self._piece[count:]
        return count

    def _check_total(self) -> None:
        if self._total > self._limits.zip_ratio * self._size + RECORDSIZE:  # an empty tar is a record of zeros
            raise Refused(
                f"a bomb, it seems: it unpacks to more than {self._limits.zip_ratio:,} times its size; if these are"
                " real images, save them as PNG or JPEG"
            )
        if self._total > self._limits.zip_bytes:
            raise Refused(f"unpacks to more than {self._limits.zip_bytes:,} bytes")


def _pieces(file: BinaryIO, signature: bytes, begin: Callable[[], Any]) -> Iterator[bytes]:
    """Decompress all streams in `file`, one after the other; ignore padding or garbage after the last one."""
    unpacker, data = begin(), b""
    while True:
        if unpacker.eof:
            data = (unpacker.unused_data or file.read(CHUNK)).lstrip(b"\0")
            if len(data) < len(signature):
                data += file.read(CHUNK)
            if not data.startswith(signature):
                return
            unpacker = begin()
        elif unpacker.needs_input:
            data = file.read(CHUNK)
        piece = unpacker.decompress(data, CHUNK)
        if not piece and not data and unpacker.needs_input and not unpacker.eof:
            raise EOFError("its end is missing")
        data = b""
        if piece:
            yield piece
