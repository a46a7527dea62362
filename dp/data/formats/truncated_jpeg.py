"""Check from its markers how complete a truncated JPEG file is, without decoding it."""

from __future__ import annotations

import re
import struct
from math import ceil
from typing import BinaryIO, NamedTuple

FRAME_MARKERS = {*range(0xC0, 0xD0)} - {0xC4, 0xC8, 0xCC}  # start of frame: size and components


class _Frame(NamedTuple):
    height: int
    width: int
    sampling: dict[int, tuple[int, int]]  # component -> horizontal and vertical sampling factor

    def units(self, components: list[int]) -> int:
        """Return the number of MCUs (minimum coded units) in a scan of these components."""
        most = [max(factors) for factors in zip(*self.sampling.values())]
        mine = self.sampling[components[0]] if len(components) == 1 else most
        # The MCUs of a scan of one component are single blocks; those of several components are groups of blocks.
        block = [8 * m / n for m, n in zip(most, mine)] if len(components) == 1 else [8 * m for m in most]
        return ceil(self.width / block[0]) * ceil(self.height / block[1])


def is_nearly_complete(file: BinaryIO) -> bool:
    """Return whether the file contains the start of every scan, so that all coefficients are present to their last bit,
    and all restart intervals of the last scan.
    """
    try:
        return _all_scans_began(file.read())
    except (IndexError, KeyError, ValueError, ZeroDivisionError, struct.error):  # ends within a marker, or damaged
        return False


def _all_scans_began(data: bytes) -> bool:
    frame, interval, position = None, 0, 2
    rest: dict[tuple[int, int], int] = {}  # (component, coefficient) -> number of bits that later scans must add
    while 0 <= position < len(data) - 1:
        marker = data[position + 1]
        if data[position] != 0xFF or marker in (0x00, 0xFF) or 0xD0 <= marker <= 0xD9:  # between segments
            position = data.find(b"\xff", position + 1)
            continue
        (length,) = struct.unpack_from(">H", data, position + 2)
        start, position = position + 4, position + 2 + length
        if marker in FRAME_MARKERS:
            _, height, width, count = struct.unpack_from(">BHHB", data, start)
            parts = [data[at : at + 2] for at in range(start + 6, start + 6 + 3 * count, 3)]
            frame = _Frame(height, width, {name: (factors >> 4, factors & 15) for name, factors in parts})
        elif marker == 0xDD:
            (interval,) = struct.unpack_from(">H", data, start)
        elif marker == 0xDA:
            count = data[start]
            components = list(data[start + 1 : start + 1 + 2 * count : 2])
            first, last, bits = data[start + 1 + 2 * count :][:3]
            rest |= {(name, index): bits & 15 for name in components for index in range(first, last + 1)}
            last_scan = position
    if frame is None or len(rest) != 64 * len(frame.sampling) or any(rest.values()):
        return False
    restarts = len(re.findall(rb"\xff[\xd0-\xd7]", data[last_scan:]))
    return not interval or restarts == ceil(frame.units(components) / interval) - 1
