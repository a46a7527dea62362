"""Scheduler: which images share the next network call.

A batch holds images of one checkpoint and one backend, up to the row budget: an image takes one row of the network
call, or two in a guided step. Requests that have waited longest come first, and new ones before all others, so that a
first frame comes soon; but a flood of new requests must not starve the rest.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
from torch import Tensor

from dp.diffusion.endings import branch_off
from dp.diffusion.policy import DiffusionPolicy
from dp.diffusion.replay import state_at_step
from dp.diffusion.settings import SampleSettings
from dp.diffusion.state import SampleState
from dp.serving.handle import RunHandle

MAX_SKIPPED = 4  # batches in a row without the request that has waited longest


class Origin(NamedTuple):
    """Where the images of a branch begin: at image `row`, from 0, of a run with these settings (without any None), just
    before step `index`, from 1.
    """

    settings: SampleSettings
    row: int
    index: int


@dataclass(eq=False)
class Request:
    """The engine's side of a run. `backend`, `policy` and `pending` are set once it has been prepared.

    start, mask, keep: as in `Engine.submit`. origin: of a branch, whose start and mask are those of that run. backend:
    the name of the one that computes it from its first step to its last; a branch has that of its run. pending,
    advanced: its images in order, in parts that fit the row budget: those that have yet to take the current step, and
    those that have taken it. partial_frames: the frames of `advanced`. last_step: the number of the batch that it was
    last in, 0 for a new request. trajectory_bytes: how much its trajectory may grow to. expires_at: when it is evicted,
    once it has ended or been parked.
    """

    handle: RunHandle
    settings: SampleSettings
    checkpoint: str
    start: Tensor | None = None
    mask: Tensor | None = None
    keep: frozenset[int] = frozenset()
    origin: Origin | None = None
    backend: str = ""
    policy: DiffusionPolicy | None = None
    pending: list[SampleState] = field(default_factory=list)
    advanced: list[SampleState] = field(default_factory=list)
    partial_frames: list[tuple[np.ndarray, np.ndarray]] = field(default_factory=list)
    last_step: int = 0
    trajectory_bytes: int = 0
    expires_at: float | None = None

    @property
    def nbytes(self) -> int:
        return self.trajectory_bytes + sum(state.nbytes for state in self.pending + self.advanced)

    @property
    def is_ready(self) -> bool:
        return bool(self.pending) and self.handle.state in ("waiting", "running")

    def begin(self, policy: DiffusionPolicy) -> SampleState:
        """Return the state before the request's first step. For a branch, its image is made again up to there. Raises
        ValueError for settings, a start or a mask that do not fit the policy.
        """
        if self.origin is None:
            return policy.init_state(self.settings, self.start, self.mask)
        settings, row, index = self.origin
        image = state_at_step(policy, settings, row, index, self.start, self.mask)
        return branch_off(policy, settings, image, self.settings.batch_size)

    def branch_record(self) -> dict[str, Any]:
        """Return what the record of a branch says about its origin, beside the settings that it has in common with that
        run; nothing for any other request.
        """
        if self.origin is None:
            return {}
        run, row, index = self.origin
        own = {"batch_size": run.batch_size, "sampler": run.sampler, "eta": run.eta, "walk_to": run.walk_to}
        return {"branch": {"row": row, "step": index} | own}

    def take(self, room: int, row_budget: int) -> list[SampleState]:
        """Remove and return the next pending parts, as many as fit into `room` rows, and at least one where all of the
        budget is free: a guided image takes two rows.
        """
        taken: list[SampleState] = []
        while self.pending:
            # The budget shrinks when memory runs out, and guided steps take more of it than others.
            self.pending[:1] = self.pending[0].split(row_budget)
            rows = self.pending[0].network_rows
            if rows > room and (taken or room < row_budget):
                break
            taken.append(self.pending.pop(0))
            room -= rows
        return taken

    def put(self, state: SampleState) -> bool:
        """Put back a part after its step. Return whether it was the last part of the run's last step."""
        self.advanced.append(state)
        if sum(map(len, self.advanced)) < self.settings.batch_size:
            return False
        self.pending, self.advanced = [] if state.is_finished else self.advanced, []
        return state.is_finished

    def detach(self) -> None:
        """Let go of the batches that its images are views of."""
        self.pending = [state.cloned() for state in self.pending]
        self.advanced = [state.cloned() for state in self.advanced]

    def release(self) -> None:
        """Free what only a live run needs."""
        self.pending, self.advanced, self.partial_frames, self.policy = [], [], [], None


ScheduledBatch = list[tuple[Request, SampleState]]


class Scheduler:
    """row_budget: the most rows in one network call. A larger request is split."""

    def __init__(self, row_budget: int):
        self.row_budget = row_budget
        self._batches, self._skipped = 0, 0

    def next_batch(self, ready: Sequence[Request]) -> ScheduledBatch:
        """Take images of one checkpoint, up to the row budget, from requests that are ready; at least one is."""
        queue = sorted(ready, key=lambda request: request.last_step)
        if self._skipped >= MAX_SKIPPED:  # the one that has waited longest goes before all new ones
            queue.sort(key=lambda request: request.last_step or self._batches)
        batch: ScheduledBatch = []
        served, self._batches = [], self._batches + 1
        for request in queue:
            room = self.row_budget - rows_of(batch)
            if request.policy is queue[0].policy and room > 0 and (taken := request.take(room, self.row_budget)):
                batch += [(request, state) for state in taken]
                served.append(request)
        oldest = next((request for request in queue if request.last_step), None)
        self._skipped = self._skipped + 1 if oldest and oldest not in served else 0
        for request in served:
            request.last_step = self._batches
        return batch

    def halve_budget(self, batch: ScheduledBatch) -> None:
        """Lower the row budget after a batch that ran out of memory."""
        self.row_budget = max(1, min(self.row_budget, rows_of(batch)) // 2)


def rows_of(batch: ScheduledBatch) -> int:
    return sum(state.network_rows for _, state in batch)
