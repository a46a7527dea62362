"""The engine: one thread that owns the networks and advances everybody's requests together.

RIN takes a time for each row, so requests with different samplers, schedules, lengths and progress share every network
call. Each turn of the loop (a tick) picks requests of one checkpoint up to the row budget, makes one call, and leaves
each request's newest frame in its ticket. Those that were not picked come first in the next tick. A reader that is
slow, or gone, holds nobody up: a ticket keeps the newest frame only.
"""

from __future__ import annotations

import os
import threading
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from dp.checkpoint import Entry, list_checkpoints, load
from dp.images import to_uint8
from dp.policy import DiffusionPolicy
from dp.rows import Rows, Step
from dp.samplers import SampleSettings


@dataclass(frozen=True)
class Frame:
    """What a watcher sees of one step: `images` is the clamped x0 prediction, uint8 [B,H,W,C]; time and log_snr as in
    `Step`.
    """

    index: int
    timesteps: int
    time: float
    log_snr: float
    images: np.ndarray


class Ticket:
    """One request as its reader sees it. Iterating gives the newest frame each time there is a newer one; it may skip,
    but never the last.

    `frame` is the newest frame, None before the first. `state` is 'waiting', 'running', and at last 'done', 'stopped'
    or 'failed' (see `error`).
    """

    def __init__(self):
        self.frame: Frame | None = None
        self.state = "waiting"
        self.error: str | None = None
        self._asked_to_stop = False
        self._changed = threading.Condition()

    @property
    def is_live(self) -> bool:
        return self.state in ("waiting", "running")

    @property
    def is_cancelled(self) -> bool:
        return self._asked_to_stop

    def cancel(self) -> None:
        """Ask for the end: the request leaves the engine before its next step and keeps its newest frame. No wait."""
        self._asked_to_stop = True

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
            self.state, self.error, self.frame = state, error, frame or self.frame
            self._changed.notify_all()


@dataclass
class Request:
    """The engine's own side of a ticket; `policy` and `rows` come with admission."""

    ticket: Ticket
    settings: SampleSettings
    checkpoint: str
    policy: DiffusionPolicy | None = None
    rows: Rows | None = None


class Engine:
    """roots: folders of checkpoint folders, read again at each `checkpoints()`. row_budget: images in one network call
    at most, but a larger single request still runs, alone. device: best there is by default. The thread starts with the
    first request.
    """

    def __init__(self, *roots: str | Path, row_budget: int = 64, device: str | torch.device | None = None):
        self.roots, self.row_budget = roots, row_budget
        self.device = torch.device(device) if device else best_device()
        self._resident: dict[str, DiffusionPolicy] = {}
        self._running: deque[Request] = deque()
        self._wake = threading.Condition()
        self._thread: threading.Thread | None = None

    def checkpoints(self) -> list[Entry]:
        """The checkpoints that stand in the roots now, the unusable ones with what is wrong."""
        return list_checkpoints(*self.roots)

    def policy(self, checkpoint: str) -> DiffusionPolicy:
        """The resident policy of that name, loaded on first use. Raises ValueError (CheckpointError) with what is
        wrong.
        """
        if checkpoint not in self._resident:
            path = next((entry.path for entry in self.checkpoints() if entry.name == checkpoint), None)
            if path is None:
                names = ", ".join(entry.name for entry in self.checkpoints())
                raise ValueError(f"there is no checkpoint {checkpoint!r}; there are: {names or 'none'}")
            self._resident[checkpoint] = load(path).to(self.device).eval()
        return self._resident[checkpoint]

    def submit(self, settings: SampleSettings, checkpoint: str) -> Ticket:
        """Start a request; returns at once. What is wrong with the checkpoint is told by the ticket."""
        request = Request(Ticket(), settings, checkpoint)
        with self._wake:
            self._running.append(request)
            if self._thread is None:
                self._thread = threading.Thread(target=self._work, name="dp-engine", daemon=True)
                self._thread.start()
            self._wake.notify()
        return request.ticket

    def warm_up(self) -> None:
        """Load the first checkpoint and take one small step, so that the first visitor does not wait for either."""
        if names := [entry.name for entry in self.checkpoints() if not entry.problem]:
            self.submit(SampleSettings(batch_size=1, timesteps=1), names[0])

    def _work(self) -> None:
        while True:
            with self._wake:
                self._wake.wait_for(lambda: self._running)
            self._admit()
            if batch := self._next_batch():
                self._tick(batch)

    def _admit(self) -> None:
        """Give the new requests their rows; let go of the cancelled and of those that cannot start."""
        with self._wake:
            requests = list(self._running)
        for request in requests:
            try:
                if request.ticket.is_cancelled:
                    self._retire(request, "stopped")
                elif request.rows is None:
                    request.policy = self.policy(request.checkpoint)
                    request.rows = request.policy.begin(request.settings)
            except Exception as error:  # one request's trouble is told to its own reader and ends nobody else's
                self._retire(request, "failed", error)

    def _next_batch(self) -> list[Request]:
        """The first request in line, and those behind it that fit beside it; they leave the line."""
        batch: list[Request] = []
        rows = 0
        with self._wake:
            for request in list(self._running):
                fits = rows + len(request.rows) <= self.row_budget if request.rows is not None else False
                if (not batch and request.rows is not None) or (batch and fits and request.policy is batch[0].policy):
                    self._running.remove(request)
                    batch.append(request)
                    rows += len(request.rows)
        return batch

    def _tick(self, batch: list[Request]) -> None:
        try:
            results = batch[0].policy.tick([request.rows for request in batch])
            frames = [frame_of(step) for _, step in results]
        except Exception as error:
            for request in batch:
                request.ticket.post("failed", error=describe(error))
            return
        for request, (rows, _), frame in zip(batch, results, frames):
            request.rows = rows
            request.ticket.post("done" if rows.is_finished else "running", frame=frame)
        with self._wake:
            self._running.extend(request for request in batch if not request.rows.is_finished)

    def _retire(self, request: Request, state: str, error: Exception | None = None) -> None:
        with self._wake:
            self._running.remove(request)
        request.ticket.post(state, error=describe(error) if error else None)


def frame_of(step: Step) -> Frame:
    return Frame(step.index, step.timesteps, step.time, step.log_snr, to_uint8((step.x0 + 1) / 2))


def describe(error: Exception) -> str:
    """What went wrong, for a person: a message of ours as it is, anything else with its kind."""
    return str(error) if isinstance(error, ValueError) else f"{type(error).__name__}: {error}"


def best_device() -> torch.device:
    """CUDA, Apple's MPS or the CPU, whichever is there first; but the environment's DP_DEVICE, where it is set."""
    if named := os.environ.get("DP_DEVICE"):
        return torch.device(named)
    if torch.cuda.is_available():
        return torch.device("cuda")
    return torch.device("mps" if torch.backends.mps.is_available() else "cpu")
