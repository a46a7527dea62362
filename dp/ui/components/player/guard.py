"""Requests of a player that compute something: one at a time, as each takes all of the processor, or much memory."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

from dp.serving.handle import RunHandle
from dp.system.validation import message_of

QUEUE_S = 10  # for which a request waits for others
BUSY = "the server is busy with a request of another visitor: try again in a moment"


class OneAtATime:
    """Calls functions one after the other, for all visitors of a player."""

    def __init__(self):
        self._free = threading.Semaphore(1)

    def __call__(self, compute: Callable[[], Any]) -> Any:
        """Return the result of `compute`, or the `problem`: its ValueError, or that others take too long."""
        if not self._free.acquire(timeout=QUEUE_S):
            return {"problem": BUSY}
        try:
            return compute()
        except ValueError as error:
            return {"problem": message_of(error)}
        finally:
            self._free.release()


def read_number(data: dict[str, Any], key: str, below: int) -> int | None:
    value = data.get(key)
    return value if isinstance(value, int) and not isinstance(value, bool) and 0 <= value < below else None


def inspected(
    compute: Callable[[str, int, int], Any], handle: RunHandle | None, data: Any, one_at_a_time: OneAtATime
) -> Any:
    """Return what `compute` finds in image `row` at step `index` of a run, or the `problem`; None if there is no such
    run, image or step.
    """
    if handle is None or (row := read_number(data, "row", handle.trajectory.settings.batch_size)) is None:
        return None
    if (index := read_number(data, "index", len(handle.trajectory.log_snr) + 1)) is None:
        return None
    return one_at_a_time(lambda: compute(handle.request_id, row, index))
