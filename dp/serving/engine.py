"""The engine: one thread that owns the networks and advances everybody's requests together.

RIN takes a time for each row, so requests with different samplers, schedules, lengths and progress share every network
call. Each turn of the loop (a tick) takes rows of one checkpoint up to the row budget, makes one call, and leaves each
request's newest frame in its ticket. Who has waited longest comes first, and a newcomer before everybody. A reader that
is slow, or gone, holds nobody up: a ticket keeps the newest frame, and a bounded choice of the others (`Trajectory`).

A request is loaded and begun in a thread of its own, so that a cold checkpoint keeps nobody waiting; from then on only
the engine's thread steps its rows (where memory is short, such a thread may end parked ones). What readers ask for
(stop, park, resume) is a wish that the loop heeds between two ticks.
"""

from __future__ import annotations

import secrets
import threading
import time
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from dp.checkpoints.catalog import Entry
from dp.data.codec import quantise
from dp.diffusion.policy import DiffusionPolicy
from dp.diffusion.settings import SampleSettings
from dp.diffusion.state import SampleState, Step
from dp.networks.attention import look
from dp.serving.handle import Frame, Ticket, digest, movement
from dp.serving.model_cache import Residents
from dp.system.device import best_device, describe, is_out_of_memory
from dp.system.validation import MAX_SEED

MOST_KEPT, FEWEST_KEPT = 128, 8  # frames of a trajectory: at most, and at least even where memory is short
PASSED_OVER = 4  # turns in a row that newcomers may have before the one who has waited longest
MOST_REQUESTS = 1000  # that can be found by their id


@dataclass(eq=False)
class Request:
    """The engine's own side of a ticket. `policy` and `behind` come when it has been prepared.

    start, mask, keep: as in `Engine.submit`. behind, ahead: its rows, in order, in parts that fit the row budget: those
    that have yet to make the step at hand, and those that have made it. pieces: what `ahead` has to show. served: the
    tick at which it last had a turn, 0 for a newcomer. kept: bytes that its trajectory may take. forget_at: when all of
    it is given up, once it has ended or been parked.
    """

    ticket: Ticket
    settings: SampleSettings
    checkpoint: str
    start: Tensor | None = None
    mask: Tensor | None = None
    keep: frozenset[int] = frozenset()
    policy: DiffusionPolicy | None = None
    behind: list[SampleState] = field(default_factory=list)
    ahead: list[SampleState] = field(default_factory=list)
    pieces: list[tuple[np.ndarray, np.ndarray]] = field(default_factory=list)
    served: int = 0
    kept: int = 0
    forget_at: float | None = None

    @property
    def nbytes(self) -> int:
        return self.kept + sum(rows.nbytes for rows in self.behind + self.ahead)

    @property
    def is_ready(self) -> bool:
        return bool(self.behind) and self.ticket.state in ("waiting", "running")

    def take(self, room: int, row_budget: int) -> list[SampleState]:
        """The next parts, as many as fit into `room`."""
        taken: list[SampleState] = []
        while self.behind:
            self.behind[:1] = self.behind[0].split(row_budget)  # smaller than before, once memory has run out
            if len(self.behind[0]) > room:
                break
            taken.append(self.behind.pop(0))
            room -= len(taken[-1])
        return taken

    def put(self, rows: SampleState) -> bool:
        """Put back a part after its step. Returns whether the whole run is finished with it."""
        self.ahead.append(rows)
        if sum(map(len, self.ahead)) < self.settings.batch_size:
            return False
        self.behind, self.ahead = [] if rows.is_finished else self.ahead, []
        return rows.is_finished


Turn = list[tuple[Request, SampleState]]


@dataclass
class Pictures:
    """What one tick has to show, on its way to the host. parts: request, whether the run ends with it, Step. x_t, x0:
    of all of them, uint8 [B,H,W,C]. is_finite: whether x0 is, [B].
    """

    parts: list[tuple[Request, bool, Step]]
    x_t: Tensor
    x0: Tensor
    is_finite: Tensor
    arrived: torch.cuda.Event | None


class Engine:
    """roots, runs: folders of checkpoints and of training runs, read again at each `checkpoints()`. row_budget: images
    in one network call; a larger request goes through it in parts, and it is lowered when memory runs out. device: best
    there is by default. memory_for_policies, memory_for_trajectories: in bytes; the checkpoint, or the ended run, that
    has not been used for longest leaves first. keep_for: seconds for which an ended or parked run can be found again.
    """

    def __init__(
        self,
        *roots: str | Path,
        row_budget: int = 64,
        device: str | torch.device | None = None,
        runs: str | Path | None = None,
        memory_for_policies: int = 2 << 30,
        memory_for_trajectories: int = 256 << 20,
        keep_for: float = 600.0,
    ):
        self.row_budget, self.memory_for_trajectories, self.keep_for = row_budget, memory_for_trajectories, keep_for
        self.device = torch.device(device) if device else best_device()
        self._residents = Residents(*roots, device=self.device, memory=memory_for_policies, runs=runs)
        self._requests: dict[str, Request] = {}  # all that can be found by their id
        self._ticks, self._passed_over = 0, 0  # turns in a row that the one who has waited longest has not had
        self._on_their_way: Pictures | None = None
        self._wake, self._news = threading.Condition(), False
        self._thread: threading.Thread | None = None

    def checkpoints(self) -> list[Entry]:
        """The checkpoints that stand in the roots now, the unusable ones with what is wrong."""
        return self._residents.entries()

    def policy(self, checkpoint: str) -> DiffusionPolicy:
        """The resident policy of that name, loaded on first use and again when its files have changed. Raises
        ValueError (CheckpointError) with what is wrong.
        """
        return self._residents.get(checkpoint).policy

    def submit(
        self,
        settings: SampleSettings,
        checkpoint: str,
        *,
        start: Tensor | None = None,
        mask: Tensor | None = None,
        keep: Iterable[int] = (),
    ) -> Ticket:
        """Start a request; returns at once. start, mask: as in `DiffusionPolicy.stream`. keep: steps, from 1, that a
        long run's trajectory keeps in any case. What is wrong with them or with the checkpoint is told by the ticket.
        """
        request = Request(Ticket(settings, self._notify), settings, checkpoint, start, mask, frozenset(keep))
        with self._wake:
            self._requests[request.ticket.request_id] = request
            if self._thread is None:
                self._thread = threading.Thread(target=self._work, name="dp-engine")
                self._thread.start()
        threading.Thread(target=self._prepare, args=(request,), name="dp-prepare", daemon=True).start()
        return request.ticket

    def ticket(self, request_id: str) -> Ticket | None:
        """The ticket of a run that is live, parked or ended not long ago; None for any other id."""
        with self._wake:
            request = self._requests.get(request_id)
            if request and request.forget_at:
                request.forget_at = time.monotonic() + self.keep_for
        return request and request.ticket

    def inside(self, request_id: str, row: int, index: int) -> Tensor:
        """The read attention [depth,M,N] of image `row` at step `index` of a run that can still be found: that image is
        made again up to there, in the caller's thread. Raises ValueError where that cannot be.
        """
        with self._wake:
            request = self._requests.get(request_id)
        if request is None or "sha256" not in request.ticket.made_with:
            raise ValueError("the server no longer has this run; Generate makes it again from its seed")
        resident = self._residents.get(request.checkpoint)
        if resident.digest != request.ticket.made_with["sha256"]:
            raise ValueError(f"the checkpoint {request.checkpoint} has been replaced since this run")
        return look(resident.policy, request.settings, row, index, request.start, request.mask)

    def warm_up(self) -> None:
        """Load the first checkpoint and take one small step, so that the first visitor does not wait for either."""
        if names := [entry.name for entry in self.checkpoints() if not entry.problem]:
            self.submit(SampleSettings(batch_size=1, timesteps=1), names[0])

    # ------------------------------------------------------------------------
    # In threads of their own

    def _prepare(self, request: Request) -> None:
        try:
            resident = self._residents.get(request.checkpoint)
            settings = request.settings.with_defaults(resident.policy.defaults)
            if settings.seed is None:
                settings = replace(settings, seed=secrets.randbelow(MAX_SEED))
            request.settings = settings
            from_where = {"checkpoint": request.checkpoint, "sha256": resident.digest, "device": self.device.type}
            given = {"start": digest(request.start), "mask": digest(request.mask)}
            request.ticket.made_with = from_where | asdict(settings) | given
            rows = resident.policy.init_state(settings, request.start, request.mask)
            frame_bytes = 2 * rows.x_t.numel()
            self._make_room(min(len(rows.plan), MOST_KEPT) * frame_bytes)
            with self._wake:
                free = self.memory_for_trajectories - sum(other.nbytes for other in self._requests.values())
                most = min(max(free // frame_bytes, FEWEST_KEPT), MOST_KEPT)
                if request.ticket.is_live:
                    request.kept = min(len(rows.plan), most + len(request.keep)) * frame_bytes
                    request.ticket.trajectory.choose(rows.plan.t.log_snr.tolist(), most, request.keep)
                    request.policy, request.behind = resident.policy, rows.split(self.row_budget)
        except Exception as error:  # one request's trouble is told to its own reader and ends nobody else's
            self._end(request, "failed", error)
        self._notify()

    def _make_room(self, wanted: int) -> None:
        """Forget ended runs, then parked ones, the ones due first, until `wanted` bytes are free or none is left."""
        with self._wake:
            taken = wanted + sum(request.nbytes for request in self._requests.values())
            idle = [request for request in self._requests.values() if request.forget_at]
            for request in sorted(idle, key=lambda r: (r.ticket.state == "parked", r.forget_at)):
                if taken <= self.memory_for_trajectories and len(self._requests) <= MOST_REQUESTS:
                    return
                taken -= request.nbytes
                self._forget(request)

    def _notify(self) -> None:
        with self._wake:
            self._news = True
            self._wake.notify_all()

    # ------------------------------------------------------------------------
    # The engine's thread

    def _work(self) -> None:
        turn: Turn = []
        while threading.main_thread().is_alive():  # Python's end in the middle of PyTorch's code aborts the process
            line = self._heed()
            if not line:
                self._show()  # what the last tick left on its way
                with self._wake:
                    self._wake.wait_for(lambda: self._news, timeout=min(self.keep_for / 10, 0.2))
                continue
            try:
                self._tick(turn := self._next_turn(line))
            except Exception as error:  # not of the network's call: `_advance` sees to those
                for request, _ in turn:
                    self._end(request, "failed", error)

    def _heed(self) -> list[Request]:
        """Do what readers wish, forget what is due, and return the requests that can take a step, the newcomers first
        and then those that have waited longest.
        """
        with self._wake:
            self._news = False
            requests, now = list(self._requests.values()), time.monotonic()
            for request in requests:
                ticket = request.ticket
                if ticket.wish == "forget" or (request.forget_at and now > request.forget_at):
                    self._forget(request)
                elif ticket.is_live and ticket.wish == "stop":
                    self._end(request, "stopped")
                elif ticket.state in ("waiting", "running") and ticket.wish == "park":
                    request.forget_at = now + self.keep_for
                    request.behind = [rows.cloned() for rows in request.behind]
                    request.ahead = [rows.cloned() for rows in request.ahead]
                    ticket.post("parked")
                elif ticket.state == "parked" and ticket.wish == "run":
                    request.forget_at = None
                    ticket.post("running" if ticket.frame else "waiting")
            return sorted((request for request in requests if request.is_ready), key=lambda request: request.served)

    def _next_turn(self, line: list[Request]) -> Turn:
        """Return images of one checkpoint, at most a budget of them: the first request's, and others that fit."""
        if self._passed_over >= PASSED_OVER:  # a flood of newcomers must not starve the others
            line = sorted(line, key=lambda request: request.served or self._ticks)
        turn: Turn = []
        served, self._ticks = [], self._ticks + 1
        for request in line:
            room = self.row_budget - sum(len(rows) for _, rows in turn)
            if request.policy is line[0].policy and room > 0:
                taken = request.take(room, self.row_budget)
                turn += [(request, rows) for rows in taken]
                served += [request] * bool(taken)
        longest = next((request for request in line if request.served), None)
        self._passed_over = self._passed_over + 1 if longest and longest not in served else 0
        for request in served:
            request.served = self._ticks
        return turn

    def _tick(self, turn: Turn) -> None:
        parts = [(request, request.put(rows), step) for request, (rows, step) in self._advance(turn)]
        pictures = self._take_pictures(parts) if parts else None
        self._show()  # the tick before: on a GPU its pictures came over while this one was computed
        self._on_their_way = pictures
        if self.device.type != "cuda":
            self._show()

    def _advance(self, turn: Turn) -> list[tuple[Request, tuple[SampleState, Step]]]:
        """One network call for all. If it fails, one for each request, which ends if that fails, too."""
        policy = turn[0][0].policy
        requests = [request for request, _ in turn]
        try:
            return list(zip(requests, policy.step([rows for _, rows in turn]), strict=True))
        except Exception as error:
            ran_out, alone = is_out_of_memory(error), len(set(requests)) == 1
            if alone and not ran_out:
                self._end(requests[0], "failed", error)
                return []
        # Outside the handler, where the error no longer holds what the failed call had allocated.
        if ran_out:
            self.row_budget = max(1, min(self.row_budget, sum(len(rows) for _, rows in turn)) // 2)
            if self.device.type == "cuda":
                torch.cuda.empty_cache()
        results: list[tuple[Request, tuple[SampleState, Step]]] = []
        for request in dict.fromkeys(requests):
            parts = [
                part
                for other, rows in turn
                if other is request
                for part in rows.with_noise_rewound().split(self.row_budget)
            ]
            try:
                results += [(request, result) for part in parts for result in policy.step([part])]
            except Exception as error:
                self._end(request, "failed", error)
        return [(request, result) for request, result in results if request.ticket.is_live]

    def _take_pictures(self, parts: list[tuple[Request, bool, Step]]) -> Pictures:
        """Send what there is to see to the host, without waiting for it."""
        steps = [step for *_, step in parts]
        x0 = torch.cat([step.x0 for step in steps])
        x_t = torch.cat([step.x_t for step in steps])
        is_finite = x0.isfinite().flatten(1).all(1)
        on_cuda = self.device.type == "cuda"  # elsewhere nothing would say when the copies are there
        pictures = quantise((x_t + 1) / 2), quantise((x0 + 1) / 2), is_finite
        sent = [tensor.to("cpu", non_blocking=on_cuda) for tensor in pictures]
        arrived = torch.cuda.Event() if on_cuda else None
        if arrived:
            arrived.record()
        return Pictures(parts, *sent, arrived)

    def _show(self) -> None:
        """Put the pictures that are on their way before the readers."""
        pictures, self._on_their_way, start = self._on_their_way, None, 0
        if pictures is None:
            return
        try:
            if pictures.arrived:
                pictures.arrived.synchronize()
        except RuntimeError as error:  # of the device, which tells of a failed kernel only here
            for request, *_ in pictures.parts:
                self._end(request, "failed", error)
        for request, is_last, step in pictures.parts:
            rows = slice(start, start + len(step.x0))
            start, ticket = rows.stop, request.ticket
            if not ticket.is_live:
                continue
            if not pictures.is_finite[rows].all():
                message = f"the network's answer at step {step.index} is not a finite number"
                self._end(request, "failed", ValueError(f"{message}: the checkpoint {request.checkpoint} is damaged"))
                continue
            # Copies of their own: the batch, and on a GPU the page-locked memory that it came to, go back at once.
            request.pieces.append((pictures.x_t[rows].numpy().copy(), pictures.x0[rows].numpy().copy()))
            if sum(len(x0) for _, x0 in request.pieces) == request.settings.batch_size:
                x_t, x0 = (np.concatenate(images) for images in zip(*request.pieces))
                request.pieces = []
                moved = movement(ticket.frame, x0)
                frame = Frame(step.index, step.timesteps, step.time, step.log_snr, x_t, x0, moved)
                state = "parked" if ticket.state == "parked" else "running"  # on a GPU, just now
                self._end(request, "done", frame=frame) if is_last else ticket.post(state, frame=frame)

    def _end(self, request: Request, state: str, error: Exception | None = None, frame: Frame | None = None) -> None:
        with self._wake:
            if request.ticket.is_live:
                request.behind, request.ahead, request.pieces, request.policy = [], [], [], None
                request.forget_at = time.monotonic() + self.keep_for
                request.ticket.post(state, frame=frame, error=describe(error) if error else None)

    def _forget(self, request: Request) -> None:
        self._end(request, "stopped")
        self._requests.pop(request.ticket.request_id, None)
