"""What a reader holds of a run in the engine: the newest frame, the kept ones, and a say in whether it goes on."""

from __future__ import annotations

import hashlib
import secrets
import threading
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from torch import Tensor

from dp.data.codec import to_uint8
from dp.diffusion.settings import SampleSettings
from dp.diffusion.state import Step

LIVE = ("waiting", "running", "parked")  # the states of a run that has not ended


@dataclass(frozen=True)
class Frame:
    """What a watcher sees of one step: `x_t` and the predicted `x0`, both clamped to what can be shown, uint8
    [B,H,W,C]; `moved` [B], how far x0 has come from the step before, root mean square with white at 1, 0 at the first;
    index, time and log_snr as in `Step`.
    """

    index: int
    timesteps: int
    time: float
    log_snr: float
    x_t: np.ndarray
    x0: np.ndarray
    moved: np.ndarray

    @classmethod
    def of(cls, step: Step, before: Step | None) -> Frame:
        """Of `step` and the one `before` it. Waits for the images to come from their device."""
        x_t, x0 = (to_uint8((images + 1) / 2) for images in (step.x_t, step.x0))
        change = (step.x0 - (before or step).x0) / 2
        moved = change.float().square().mean(dim=(1, 2, 3)).sqrt().cpu().numpy()
        return cls(step.index, step.timesteps, step.time, step.log_snr, x_t, x0, moved)


class Trajectory:
    """The frames of a run that are kept, oldest first: all of a short run, an even choice of a long one, and always the
    last.
    """

    def __init__(self, settings: SampleSettings):
        self.settings = settings
        self.log_snr: list[float] = []  # of every step, once the run has been prepared
        self.frames: list[Frame] = []
        self._chosen: frozenset[int] = frozenset()

    def choose(self, log_snr: list[float], most: int, keep: Iterable[int] = ()) -> None:
        """Keep every step of a run of these levels, or `most` of them, the first and the last among them; and the steps
        in `keep` in any case.
        """
        self.log_snr = log_snr
        self._chosen = frozenset(evenly(len(log_snr), most)) | frozenset(keep)

    def add(self, frame: Frame, is_last: bool = False) -> None:
        known = self.frames[-1].index if self.frames else 0
        if frame.index > known and (is_last or frame.index in self._chosen):
            self.frames.append(frame)


def evenly(timesteps: int, most: int) -> list[int]:
    """The steps 1 to `timesteps`, or `most` of them, evenly spread, both ends among them."""
    return np.linspace(1, timesteps, min(timesteps, most)).round().astype(int).tolist()


def movement(before: Frame | None, x0: np.ndarray) -> np.ndarray:
    """`Frame.moved` of images [B,H,W,C] that follow on `before`."""
    if before is None:
        return np.zeros(len(x0), np.float32)
    change = (x0.astype(np.float32) - before.x0) / 255
    return np.sqrt(np.square(change).mean(axis=(1, 2, 3)))


def digest(given: Tensor | None) -> str | None:
    """SHA-256 of a start or mask that came with a request: it says which, and cannot be turned back into a picture."""
    return None if given is None else hashlib.sha256(given.cpu().contiguous().numpy().tobytes()).hexdigest()


class Ticket:
    """One request as its readers see it. Iterating gives the newest frame each time there is a newer one; it may skip,
    but never the last.

    `frame` is the newest frame, None before the first, and `trajectory` holds the ones that are kept. `state` is
    'waiting', 'running' or 'parked', and at last 'done', 'stopped' or 'failed' (see `error`). `request_id` finds the
    ticket again (`Engine.ticket`) and cannot be guessed. `made_with`, once it runs: the checkpoint, the SHA-256 of its
    weights, the device and every setting.
    """

    def __init__(self, settings: SampleSettings, notify: Callable[[], None] = lambda: None):
        self.request_id = secrets.token_urlsafe(16)
        self.trajectory = Trajectory(settings)
        self.frame: Frame | None = None
        self.state = "waiting"
        self.error: str | None = None
        self.made_with: dict[str, Any] = {}
        self.wish = "run"  # or 'park'; or 'stop' or 'forget', which are final
        self._watches: set[Watch] = set()
        self._notify = notify
        self._changed = threading.Condition()

    @property
    def is_live(self) -> bool:
        return self.state in LIVE

    def cancel(self) -> None:
        """Ask for the end: the request leaves the engine before its next step and keeps its frames. Does not wait."""
        self._wish("stop")

    def abandon(self) -> None:
        """`cancel`, and keep nothing: nobody will come back for it."""
        self._wish("forget")

    def _wish(self, wish: str) -> None:
        with self._changed:
            self.wish = wish
        self._notify()  # not under the lock: the engine posts under its own

    def watch(self) -> Watch:
        """For a page that may vanish: the run goes on, or goes on again, while anybody watches, and is parked when the
        last has closed its Watch. A run that nobody ever watched (a program's) is never parked.
        """
        watch = Watch(self)
        self._count(watch, is_closed=False)
        return watch

    def _count(self, watch: Watch, is_closed: bool) -> None:
        with self._changed:
            if is_closed != (watch in self._watches):
                return  # it is as it should be already
            (self._watches.remove if is_closed else self._watches.add)(watch)
            if self.wish not in ("stop", "forget"):
                self.wish = "run" if self._watches else "park"
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
        """The engine's side: put the newest state, and frame, before the readers."""
        with self._changed:
            newest, is_live = frame or self.frame, state in LIVE
            if newest and (frame or not is_live):
                self.trajectory.add(newest, is_last=not is_live)  # first: who sees the frame may look it up there
            self.state, self.error, self.frame = state, error, newest
            self._changed.notify_all()


class Watch:
    """One page's look at a ticket. `close` may be called from anywhere, and again."""

    def __init__(self, ticket: Ticket):
        self.ticket, self.is_closed = ticket, False

    def close(self) -> None:
        self.is_closed = True
        self.ticket._count(self, is_closed=True)
