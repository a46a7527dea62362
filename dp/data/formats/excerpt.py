"""An image file from which harmful or useless parts are removed for decoding, and the metadata found in it."""

from __future__ import annotations

import io
import os
from bisect import bisect_right
from dataclasses import dataclass, field, replace
from typing import BinaryIO

PROFILE_BYTES = 16 << 20  # size limit of a color profile and of other metadata; profiles for print have 1 to 3 MB


@dataclass
class ImageFile:
    """An image file, and the metadata that affects how the image looks.

    parts: file, start and end of the byte ranges to decode; empty for the whole file. gamma: the exponent from light to
    samples in a PNG. primaries: x and y of white, red, green and blue in turn. transparent_color: the gray level or RGB
    color that a PNG defines as transparent, scaled to 8 bits if depth is less. depth: bits per sample of a PNG.
    """

    file: BinaryIO
    parts: list[tuple[BinaryIO, int, int]] = field(default_factory=list)
    exif: bytes = b""
    profile: bytes = b""
    gamma: float | None = None
    primaries: tuple[float, ...] | None = None
    transparent_color: tuple[int, ...] | None = None
    depth: int = 8
    is_jpeg: bool = False

    def open(self, ending: bytes = b"") -> BinaryIO:
        """Return the file for Pillow to decode, followed by `ending` if there are `parts`."""
        self.file.seek(0)
        if not self.parts:
            return self.file
        return io.BufferedReader(Excerpt([*self.parts, (io.BytesIO(ending), 0, len(ending))]))

    def without_last_marker(self) -> ImageFile:
        """Return a copy without trailing 0xFF bytes, which would form a marker with the bytes appended to it."""
        file, start, stop = self.parts[-1]
        file.seek(max(start, stop - 16))
        tail = file.read(stop - file.tell())
        return replace(self, parts=[*self.parts[:-1], (file, start, stop - len(tail) + len(tail.rstrip(b"\xff")))])


class Excerpt(io.RawIOBase):
    """Byte ranges of files, read as one file without copying them."""

    def __init__(self, parts: list[tuple[BinaryIO, int, int]]):
        self._parts = [part for part in parts if part[2] > part[1]]
        self._starts, self._position = [0], 0
        for _, start, stop in self._parts:
            self._starts.append(self._starts[-1] + stop - start)

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        base = {os.SEEK_SET: 0, os.SEEK_CUR: self._position, os.SEEK_END: self._starts[-1]}[whence]
        self._position = max(0, base + offset)
        return self._position

    def readinto(self, buffer) -> int:
        index = bisect_right(self._starts, self._position) - 1
        if index >= len(self._parts):
            return 0
        file, start, stop = self._parts[index]
        at = start + self._position - self._starts[index]
        file.seek(at)
        data = file.read(min(len(buffer), stop - at))
        buffer[: len(data)] = data
        self._position += len(data)
        return len(data)
