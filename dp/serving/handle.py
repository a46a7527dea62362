"""RunHandle: a sampling run as its readers see it. They get its frames, and can stop, park and resume it."""

from __future__ import annotations

import hashlib
import secrets
import threading
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple, Protocol

from torch import Tensor

from dp.checkpoints.catalog import CheckpointInfo
from dp.diffusion.parts import StepParts
from dp.diffusion.settings import SampleSettings
from dp.serving.frames import Frame, Trajectory

LIVE = ("waiting", "running", "parked")  # the states of a run that has not ended


def digest(given: Tensor | None) -> str | None:
    """Return the SHA-256 of a start or mask that came with a request. It identifies the image without revealing it."""
    return None if given is None else hashlib.sha256(given.cpu().contiguous().numpy().tobytes()).hexdigest()


class SampleRequest(NamedTuple):
    """One run to sample. start, mask: as in `DiffusionPolicy.stream`. keep: steps, from 1, that the trajectory of a
    long run keeps in any case.
    """

    checkpoint: str
    settings: SampleSettings
    start: Tensor | None = None
    mask: Tensor | None = None
    keep: frozenset[int] = frozenset()


class RunHandle:
    """One request as its readers see it. Iterating yields the newest frame each time there is a newer one. It may skip
    frames, but never the last.

    `frame` is the newest frame, None before the first, and `trajectory` holds the kept ones. `state` is 'waiting',
    'running' or 'parked', and at the end 'done', 'stopped' or 'failed' (see `error`). `request_id` finds the handle
    again (`Engine.find`) and cannot be guessed. `checkpoint` is its model's name. `provenance`, once the run has been
    prepared: the checkpoint, the SHA-256 of its weights, the device, the backend and every setting. `control` is what
    the readers want: 'run', 'park', 'stop' or 'discard'; the last two are final. `note` says what a run without frames
    is waiting for, if there is more to say.
    """

    def __init__(
        self,
        settings: SampleSettings,
        notify: Callable[[], None] = lambda: None,
        note: str = "",
        checkpoint: str = "",
    ):
        self.note, self.checkpoint = note, checkpoint
        self.request_id = secrets.token_urlsafe(16)
        self.trajectory = Trajectory(settings)
        self.frame: Frame | None = None
        self.state = "waiting"
        self.error: str | None = None
        self.provenance: dict[str, Any] = {}
        self.control = "run"
        self._subscriptions: set[Subscription] = set()
        self._notify = notify
        self._changed = threading.Condition()

    @property
    def is_live(self) -> bool:
        return self.state in LIVE

    def cancel(self) -> None:
        """Ask for the end: the request leaves the engine before its next step and keeps its frames. Does not wait."""
        self._set_control("stop")

    def discard(self) -> None:
        """Cancel the run and keep nothing: nobody will come back for it."""
        self._set_control("discard")

    def _set_control(self, control: str) -> None:
        with self._changed:
            self.control = control
        self._notify()  # not under the lock: the engine posts under its own

    def wait(self, timeout: float) -> bool:
        """Wait until the run has ended, for at most `timeout` seconds. Return whether it has."""
        with self._changed:
            return self._changed.wait_for(lambda: not self.is_live, timeout)

    def subscribe(self) -> Subscription:
        """Subscribe a page that may vanish. The run continues while it has subscriptions and is parked when the last
        one is closed. A run that was never subscribed to (a program's) is never parked.
        """
        subscription = Subscription(self)
        self._count(subscription, is_closed=False)
        return subscription

    def _count(self, subscription: Subscription, is_closed: bool) -> None:
        with self._changed:
            if is_closed != (subscription in self._subscriptions):
                return  # counted already
            (self._subscriptions.remove if is_closed else self._subscriptions.add)(subscription)
            if self.control not in ("stop", "discard"):
                self.control = "run" if self._subscriptions else "park"
        self._notify()

    def __iter__(self) -> Iterator[Frame]:
        seen = 0
        while True:
            with self._changed:
                self._changed.wait_for(lambda seen=seen: not self.is_live or (self.frame and self.frame.index > seen))
                frame, is_live = self.frame, self.is_live
            if frame and frame.index > seen:
                seen = frame.index
                yield frame
            if not is_live:
                return

    def post(self, state: str, *, frame: Frame | None = None, error: str | None = None) -> None:
        """Publish the newest state, and frame, to the readers. Called by the engine only."""
        with self._changed:
            newest, is_live = frame or self.frame, state in LIVE
            if newest and (frame or not is_live):
                self.trajectory.add(newest, is_last=not is_live)  # first: a reader of the frame may look it up there
            self.state, self.error, self.frame = state, error, newest
            self._changed.notify_all()


class Subscription:
    """One page's subscription to a run. `close` may be called from any thread, and more than once."""

    def __init__(self, handle: RunHandle):
        self.handle, self.is_closed = handle, False

    def close(self) -> None:
        self.is_closed = True
        self.handle._count(self, is_closed=True)


class Runner(Protocol):
    """The interface through which the page samples: the engine, or a lent GPU (`dp.ui.zero_gpu.GpuRunner`)."""

    can_replay: bool  # whether the methods after `find` can be called

    def checkpoints(self) -> list[CheckpointInfo]: ...

    def submit_all(self, requests: Sequence[SampleRequest]) -> list[RunHandle]: ...

    def find(self, request_id: str) -> RunHandle | None: ...

    def attention(self, request_id: str, row: int, index: int) -> Tensor: ...

    def branches(self, request_id: str, row: int, index: int) -> tuple[Tensor, float]: ...

    def take_apart(self, request_id: str, row: int, index: int) -> StepParts: ...

    def branch_off(self, request_id: str, row: int, index: int) -> RunHandle: ...
