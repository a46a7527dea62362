"""How old a timestamp in a file is, although the machine's clock may be set meanwhile. Standard library only."""

from __future__ import annotations

import time
from collections.abc import Hashable
from typing import NamedTuple


class _Seen(NamedTuple):
    """A timestamp when it was last looked at, and that moment and the timestamp's own by the monotonic clock."""

    stamp: float
    looked: float
    since: float


class Ages:
    """The ages of timestamps that are looked at again and again, each under a key of its own.

    The wall clock is asked only at the first look, and there a time in the future counts as now. From then on an
    unchanged timestamp gets older by the monotonic clock, and a changed one is no older than the last look. So neither
    a clock that is set nor one that differs from the writer's makes a live process look silent, or a silent one alive.
    """

    def __init__(self):
        self._seen: dict[Hashable, _Seen] = {}

    def age(self, key: Hashable, stamp: float) -> float:
        """Return the seconds since `stamp`, in unix seconds, or its best estimate."""
        now, before = time.monotonic(), self._seen.get(key)
        if before and before.stamp == stamp:
            since = before.since
        else:
            since = max(now - max(0.0, time.time() - stamp), before.looked if before else float("-inf"))
        self._seen[key] = _Seen(stamp, now, since)
        return now - since
