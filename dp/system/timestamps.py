"""Measure the age of timestamps in files, also when the clock of the machine is changed. Standard library only."""

from __future__ import annotations

import time
from collections.abc import Hashable
from typing import NamedTuple


class _Reading(NamedTuple):
    """A timestamp, and the monotonic time of the last reading (`read_at`) and of the timestamp itself (`since`)."""

    stamp: float
    read_at: float
    since: float


class Ages:
    """The ages of timestamps that are read repeatedly, each identified by a key.

    The wall clock is used only for the first reading of a timestamp, and a time in the future counts as now.
    Afterwards, an unchanged timestamp ages by the monotonic clock, and a changed one is at most as old as the previous
    reading. Neither a clock change nor a difference to the writer's clock can therefore make a live process look dead,
    or a dead one alive.
    """

    def __init__(self):
        self._readings: dict[Hashable, _Reading] = {}

    def age(self, key: Hashable, stamp: float) -> float:
        """Return the best estimate of the seconds since `stamp`, a unix time."""
        now, previous = time.monotonic(), self._readings.get(key)
        if previous and previous.stamp == stamp:
            since = previous.since
        else:
            since = max(now - max(0.0, time.time() - stamp), previous.read_at if previous else float("-inf"))
        self._readings[key] = _Reading(stamp, now, since)
        return now - since
