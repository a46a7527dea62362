"""The engine: one thread that owns the networks and advances everybody's requests together.

The networks take a time for each image, so requests with different samplers, schedules, lengths and progress share
every network call. The loop schedules a batch (`Scheduler`), takes its step (`DiffusionPolicy.step`) and publishes
each request's newest frame on its handle. A reader that is slow, or gone, delays nobody: a handle keeps the newest
frame, and a bounded choice of the others (`Trajectory`).

A request is loaded and prepared in a thread of its own, so that a cold checkpoint keeps nobody waiting. From then on
only the engine's thread steps its images (where memory is short, a preparing thread may evict parked runs). Readers ask
for a stop, a pause or its end through the handle; the loop applies that between two batches.
"""

from __future__ import annotations

import secrets
import threading
import time
from collections.abc import Iterable, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from dp.checkpoints.catalog import CheckpointInfo
from dp.diffusion.endings import ENDINGS, branch_settings
from dp.diffusion.exact import ExactDenoiser
from dp.diffusion.parts import StepParts, take_apart
from dp.diffusion.policy import DiffusionPolicy
from dp.diffusion.replay import predictions_by_branch, state_at_step
from dp.diffusion.settings import SampleSettings
from dp.diffusion.state import SampleState, Step
from dp.networks.attention import read_attention
from dp.serving.backends import TORCH, Converter
from dp.serving.frames import Frame, HostCopy, frame_bytes, rms_change
from dp.serving.handle import RunHandle, SampleRequest, digest
from dp.serving.model_cache import LoadedModel, ModelCache
from dp.serving.scheduler import Origin, Request, ScheduledBatch, Scheduler
from dp.system.device import best_device, describe, is_out_of_memory
from dp.system.validation import MAX_SEED

MAX_FRAMES, MIN_FRAMES = 128, 8  # of a trajectory: at most, and at least even where memory is short
MAX_REQUESTS = 1000  # that can be found by their id

Published = list[tuple[Request, Step, bool]]  # the bool: whether the run ends with this step


class Engine:
    """roots, runs: folders of checkpoints and of training runs, read again at each `checkpoints()`. row_budget: rows
    of one network call; a larger request is split, and the budget is halved when memory runs out. device: by default
    the best there is. memory_for_policies, memory_for_trajectories: in bytes; the least recently used checkpoint, or
    ended run, is evicted first. ttl_s: seconds for which an ended or parked run can be found again. accelerate: whether
    new runs begin with a faster backend once it is ready (see `dp.serving.backends`), with `precision` 'f32' or 'bf16'.
    """

    can_replay = True

    def __init__(
        self,
        *roots: str | Path,
        row_budget: int = 64,
        device: str | torch.device | None = None,
        runs: str | Path | None = None,
        memory_for_policies: int = 2 << 30,
        memory_for_trajectories: int = 256 << 20,
        ttl_s: float = 600.0,
        accelerate: bool = False,
        precision: str = "f32",
    ):
        self.memory_for_trajectories, self.ttl_s = memory_for_trajectories, ttl_s
        self.device = torch.device(device) if device else best_device()
        converter = Converter(runs, self._is_busy, precision) if accelerate else None
        self._models = ModelCache(
            *roots, device=self.device, memory=memory_for_policies, runs=runs, converter=converter
        )
        self._scheduler = Scheduler(row_budget)
        self._requests: dict[str, Request] = {}  # all that can be found by their id
        self._copying: tuple[Published, HostCopy] | None = None
        self._wake, self._has_news = threading.Condition(), False
        self._thread: threading.Thread | None = None

    @property
    def row_budget(self) -> int:
        return self._scheduler.row_budget

    def checkpoints(self) -> list[CheckpointInfo]:
        """Return the checkpoints in the roots now, those that cannot be used with the reason."""
        return self._models.entries()

    def policy(self, checkpoint: str) -> DiffusionPolicy:
        """Return the policy of that name, computed by PyTorch, loaded on first use and again when its files have
        changed. Raises ValueError (CheckpointError) with the reason.
        """
        return self._models.get(checkpoint).policy

    def submit(
        self,
        settings: SampleSettings,
        checkpoint: str,
        *,
        start: Tensor | None = None,
        mask: Tensor | None = None,
        keep: Iterable[int] = (),
    ) -> RunHandle:
        """Start a request and return at once. start, mask: as in `DiffusionPolicy.stream`. keep: steps, from 1, that a
        long run's trajectory keeps in any case. The handle reports what is wrong with them or with the checkpoint.
        """
        handle = RunHandle(settings, self._notify, checkpoint=checkpoint)
        return self._start(Request(handle, settings, checkpoint, start, mask, frozenset(keep)))

    def _start(self, request: Request) -> RunHandle:
        with self._wake:
            self._requests[request.handle.request_id] = request
            if self._thread is None:
                self._thread = threading.Thread(target=self._work, name="dp-engine")
                self._thread.start()
        threading.Thread(target=self._prepare, args=(request,), name="dp-prepare", daemon=True).start()
        return request.handle

    def submit_all(self, requests: Sequence[SampleRequest]) -> list[RunHandle]:
        """Start several requests and return at once."""
        return [self.submit(r.settings, r.checkpoint, start=r.start, mask=r.mask, keep=r.keep) for r in requests]

    def find(self, request_id: str) -> RunHandle | None:
        """Return the handle of a run that is live, parked or ended recently; None for any other id."""
        with self._wake:
            request = self._requests.get(request_id)
            if request and request.expires_at:
                request.expires_at = time.monotonic() + self.ttl_s
        return request and request.handle

    def provenance(self, request: Request | SampleRequest) -> dict[str, Any]:
        """Return what makes the images of a request: the checkpoint, the SHA-256 of its weights, the device and the
        backend, every setting, the names of the classes in it, and the SHA-256 of the start and mask.
        """
        model, backend = self._models.get(request.checkpoint), getattr(request, "backend", TORCH)
        source = {"checkpoint": request.checkpoint, "sha256": model.digest, "device": self.device.type}
        source["backend"] = backend
        given = {"start": digest(request.start), "mask": digest(request.mask)}
        used = sorted(set(request.settings.labels) - {0})
        names = {"classes": {str(label): model.classes[label - 1] for label in used if label <= len(model.classes)}}
        return source | asdict(request.settings) | given | (names if used else {})

    def branch_off(self, request_id: str, row: int, index: int, count: int = ENDINGS) -> RunHandle:
        """Start a request of `count` images that go on from image `row` of a run, as it is before step `index`, each
        with fresh noise of its own (`dp.diffusion.endings`), and return at once. It is a request like any other, but
        its first frame is that of step `index`, and it cannot be replayed. Arguments and errors: as `attention`; the
        handle reports a step that does not exist.
        """
        run, _ = self.replayable(request_id)
        settings = branch_settings(run.settings, row, count)
        origin = Origin(run.settings, row, index)
        handle = RunHandle(settings, self._notify, checkpoint=run.checkpoint)
        request = Request(handle, settings, run.checkpoint, run.start, run.mask, origin=origin, backend=run.backend)
        return self._start(request)

    def attention(self, request_id: str, row: int, index: int) -> Tensor:
        """Return the read attention [depth,M,N] of image `row` at step `index` of a run that can still be found. The
        image is made again up to there, in the caller's thread. Raises ValueError where that cannot be done.
        """
        _, state = self.replayed(request_id, row, index)
        return read_attention(self.replayable(request_id)[1].policy, state)[0]  # only the reference can tell

    def branches(self, request_id: str, row: int, index: int) -> tuple[Tensor, float]:
        """Return x0 [3,C,H,W] in [-1, 1] as predicted for an image in a step of its run without the class, with it, and
        guided; and the guidance of that step. Arguments and errors: as `attention`.
        """
        policy, state = self.replayed(request_id, row, index)
        return predictions_by_branch(policy, state)[:, 0], state.step_guidance

    def take_apart(self, request_id: str, row: int, index: int) -> StepParts:
        """Return a step of an image of a run in parts, as a batch of one. Arguments and errors: as `attention`."""
        return take_apart(*self.replayed(request_id, row, index))

    def replayed(self, request_id: str, row: int, index: int) -> tuple[DiffusionPolicy, SampleState]:
        """Return a run's policy, that of its backend, and the state of image `row` alone that is about to take step
        `index`, from 1. Raises ValueError where that cannot be done.
        """
        request, model = self.replayable(request_id)
        policy = model.policy_of(request.backend)
        return policy, state_at_step(policy, request.settings, row, index, request.start, request.mask)

    def replayable(self, request_id: str) -> tuple[Request, LoadedModel]:
        """Return a run that can be made again, and its model. Raises ValueError, with the reason, for any other."""
        with self._wake:
            request = self._requests.get(request_id)
        if request is None or "sha256" not in request.handle.provenance:
            raise ValueError("the server no longer has this run; Generate makes it again from its seed")
        if request.origin:
            raise ValueError("this run is a branch of another one, and cannot be made again from its seed")
        model = self._models.get(request.checkpoint)
        if model.digest != request.handle.provenance["sha256"]:
            raise ValueError(f"the checkpoint {request.checkpoint} has been replaced since this run")
        return request, model

    def exact_denoiser(self, checkpoint: str) -> ExactDenoiser:
        """Return the best possible denoiser for the training images of a checkpoint. Raises ValueError, with the
        reason, where they are not here.
        """
        return self._models.get_exact(checkpoint).policy.model

    def warm_up(self) -> None:
        """Load the first checkpoint and take one small step, so that the first visitor does not wait for either."""
        if names := [entry.name for entry in self.checkpoints() if not entry.problem]:
            self.submit(SampleSettings(batch_size=1, timesteps=1), names[0])

    # ------------------------------------------------------------------------
    # Preparation, in a thread for each request

    def _prepare(self, request: Request) -> None:
        try:
            model = self._models.get(request.checkpoint)
            request.backend = request.backend or model.backend
            policy = model.policy_of(request.backend)
            settings = request.settings.with_defaults(policy.defaults)
            if settings.seed is None:
                settings = replace(settings, seed=secrets.randbelow(MAX_SEED))
            request.settings = settings
            request.handle.provenance = self.provenance(request) | request.branch_record()
            self._admit(request, policy, request.begin(policy))
        except Exception as error:  # reported to this request's readers; all others go on
            self._finish(request, "failed", error)
        self._notify()

    def _admit(self, request: Request, policy: DiffusionPolicy, state: SampleState) -> None:
        """Reserve memory for the request's trajectory and queue its images."""
        steps, each = len(state.plan) - state.index, frame_bytes(state.x_t)
        self._evict_until(min(steps, MAX_FRAMES) * each)
        with self._wake:
            free = self.memory_for_trajectories - sum(other.nbytes for other in self._requests.values())
            most = min(max(free // each, MIN_FRAMES), MAX_FRAMES)
            if request.handle.is_live:
                request.trajectory_bytes = min(steps, most + len(request.keep)) * each
                request.handle.trajectory.choose(state.plan.t.log_snr.tolist(), most, request.keep)
                request.policy, request.pending = policy, state.split(self.row_budget)

    def _evict_until(self, wanted: int) -> None:
        """Evict ended runs, then parked ones, those that expire first, until `wanted` bytes are free ."""
        with self._wake:
            taken = wanted + sum(request.nbytes for request in self._requests.values())
            idle = [request for request in self._requests.values() if request.expires_at]
            for request in sorted(idle, key=lambda r: (r.handle.state == "parked", r.expires_at)):
                if taken <= self.memory_for_trajectories and len(self._requests) <= MAX_REQUESTS:
                    return
                taken -= request.nbytes
                self._evict(request)

    def _is_busy(self) -> bool:
        with self._wake:
            return any(request.is_ready for request in self._requests.values())

    def _notify(self) -> None:
        with self._wake:
            self._has_news = True
            self._wake.notify_all()

    # ------------------------------------------------------------------------
    # The engine's thread

    def _work(self) -> None:
        batch: ScheduledBatch = []
        while threading.main_thread().is_alive():  # a thread inside PyTorch's code at Python's exit aborts the process
            ready = self._apply_controls()
            if not ready:
                self._publish()  # the frames of the last batch
                with self._wake:
                    self._wake.wait_for(lambda: self._has_news, timeout=min(self.ttl_s / 10, 0.2))
                continue
            try:
                batch = self._scheduler.next_batch(ready)
                self._serve(batch)
            except Exception as error:  # `_step` handles those of the network
                for request, _ in batch:
                    self._finish(request, "failed", error)

    def _apply_controls(self) -> list[Request]:
        """Stop, park, resume and evict runs, and return the requests that can take a step."""
        with self._wake:
            self._has_news = False
            requests, now = list(self._requests.values()), time.monotonic()
            for request in requests:
                handle = request.handle
                if handle.control == "discard" or (request.expires_at and now > request.expires_at):
                    self._evict(request)
                elif handle.is_live and handle.control == "stop":
                    self._finish(request, "stopped")
                elif handle.state in ("waiting", "running") and handle.control == "park":
                    request.expires_at = now + self.ttl_s
                    request.detach()
                    handle.post("parked")
                elif handle.state == "parked" and handle.control == "run":
                    request.expires_at = None
                    handle.post("running" if handle.frame else "waiting")
            return [request for request in requests if request.is_ready]

    def _serve(self, batch: ScheduledBatch) -> None:
        """Take the step of a batch and publish its frames. On a GPU they are copied while the next batch is computed,
        and published after it.
        """
        steps = [(request, step, request.put(state)) for request, (state, step) in self._step(batch)]
        copying = (steps, HostCopy([step for _, step, _ in steps])) if steps else None
        self._publish()
        self._copying = copying
        if self.device.type != "cuda":
            self._publish()

    def _step(self, batch: ScheduledBatch) -> list[tuple[Request, tuple[SampleState, Step]]]:
        """Make one network call for all. If it fails, make one for each request, and end those that fail again."""
        policy = batch[0][0].policy
        requests = [request for request, _ in batch]
        try:
            return list(zip(requests, policy.step([state for _, state in batch]), strict=True))
        except Exception as error:
            ran_out, alone = is_out_of_memory(error), len(set(requests)) == 1
            if alone and not ran_out:
                self._finish(requests[0], "failed", error)
                return []
        # Outside the handler, where the error no longer keeps what the failed call had allocated.
        if ran_out:
            self._scheduler.halve_budget(batch)
            if self.device.type == "cuda":
                torch.cuda.empty_cache()
        results: list[tuple[Request, tuple[SampleState, Step]]] = []
        for request in dict.fromkeys(requests):
            states = [state.with_noise_rewound() for other, state in batch if other is request]
            parts = [part for state in states for part in state.split(self.row_budget)]
            try:
                results += [(request, result) for part in parts for result in policy.step([part])]
            except Exception as error:
                self._finish(request, "failed", error)
        return [(request, result) for request, result in results if request.handle.is_live]

    def _publish(self) -> None:
        """Publish the frames that are being copied to the host."""
        if self._copying is None:
            return
        (steps, copy), self._copying = self._copying, None
        try:
            copy.wait()
        except RuntimeError as error:
            for request, *_ in steps:
                self._finish(request, "failed", error)
        for (request, step, is_last), images in zip(steps, copy.parts()):
            if request.handle.is_live:
                self._publish_part(request, step, is_last, *images)

    def _publish_part(
        self, request: Request, step: Step, is_last: bool, x_t: Tensor, x0: Tensor, is_finite: Tensor
    ) -> None:
        """Publish a frame once all of its parts have come; x_t, x0: as in `Frame`."""
        handle, parts = request.handle, request.partial_frames
        if not is_finite.all():
            words = f"the network's prediction at step {step.index} is not finite"
            self._finish(request, "failed", ValueError(f"{words}: the checkpoint {request.checkpoint} is damaged"))
            return
        # Copies, so that the batch, and on a GPU its page-locked memory, is freed at once.
        parts.append((x_t.numpy().copy(), x0.numpy().copy()))
        if sum(len(x0) for _, x0 in parts) < request.settings.batch_size:
            return
        request.partial_frames = []
        shown, predicted = (np.concatenate(images) for images in zip(*parts))
        change = rms_change(handle.frame, predicted)
        frame = Frame(step.index, step.timesteps, step.time, step.log_snr, shown, predicted, change)
        if is_last:
            self._finish(request, "done", frame=frame)
        else:  # on a GPU it may have been parked meanwhile
            handle.post("parked" if handle.state == "parked" else "running", frame=frame)

    def _finish(self, request: Request, state: str, error: Exception | None = None, frame: Frame | None = None) -> None:
        with self._wake:
            if request.handle.is_live:
                request.release()
                request.expires_at = time.monotonic() + self.ttl_s
                request.handle.post(state, frame=frame, error=describe(error) if error else None)

    def _evict(self, request: Request) -> None:
        self._finish(request, "stopped")
        self._requests.pop(request.handle.request_id, None)
