"""A file to decode, perhaps without some of its parts, and what is known about the look of the image in it."""

from __future__ import annotations

import io
import os
from bisect import bisect_right
from dataclasses import dataclass, field, replace
from typing import BinaryIO

PROFILE_BYTES = 16 << 20  # that a color profile may have, and other metadata; printing profiles have 1 to 3 MB


@dataclass
class Source:
    """A file to decode, and what its metadata says about the look of the image.

    gamma is PNG's exponent from light to sample; primaries are x and y of white, red, green and blue; clear is the
    sample or the three samples of the color that a PNG marks as transparent, in 16 bits where depth says so, else in 8.
    """

    file: BinaryIO
    parts: list[tuple[BinaryIO, int, int]] = field(default_factory=list)  # file, from, to; none: the whole file
    exif: bytes = b""
    profile: bytes = b""
    gamma: float | None = None
    primaries: tuple[float, ...] | None = None
    clear: tuple[int, ...] | None = None
    depth: int = 8  # bits per sample of a PNG
    is_jpeg: bool = False

    def open(self, ending: bytes = b"") -> BinaryIO:
        """The file as Pillow should see it, followed by `ending`."""
        self.file.seek(0)
        if not self.parts:
            return self.file
        return io.BufferedReader(Excerpt([*self.parts, (io.BytesIO(ending), 0, len(ending))]))

    def without_last_marker(self) -> Source:
        """Without the 0xFF at its end that would make a marker of what follows."""
        file, start, stop = self.parts[-1]
        file.seek(max(start, stop - 16))
        tail = file.read(stop - file.tell())
        return replace(self, parts=[*self.parts[:-1], (file, start, stop - len(tail) + len(tail.rstrip(b"\xff")))])


class Excerpt(io.RawIOBase):
    """Parts of files, read as one file without a copy."""

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
