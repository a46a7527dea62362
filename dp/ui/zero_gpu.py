"""ZeroGPU: a GPU that exists only inside a call, for a limited time.

`GpuRunner` samples in such calls and returns the same handles as the engine, so the page has one pipeline for both.
Each call is a forked process: requests and frames are pickled, and the frames are encoded for the page outside of it,
where no GPU waits for that.
"""

from __future__ import annotations

import html
import re
import threading
import time
import traceback
from collections.abc import Iterator, Sequence
from contextlib import closing
from contextvars import copy_context
from functools import partial

import gradio as gr
import spaces
from torch import Tensor

from dp.checkpoints.catalog import CheckpointInfo
from dp.diffusion.plan import make_plan
from dp.serving.engine import MAX_FRAMES, MAX_REQUESTS, Engine
from dp.serving.frames import Frame
from dp.serving.handle import RunHandle, SampleRequest
from dp.system.device import best_device, describe
from dp.ui.sampling import page_values
from dp.ui.streaming import FRAMES_PER_S

# Seconds to request. A call of the bundled network is some 500 kernels: 5 to 10 ms on a GPU for any number of images.
START_S, CALLS_PER_S, ROWS_PER_S = 10, 50, 4000
ANONYMOUS_S = 80  # the most that the platform lends at once to a visitor who has not signed in
GRACE_S = 30  # after the requested seconds, after which a call that has not ended is given up
ABORTED = "the GPU was released before the run finished: try again, or use fewer images or timesteps"
CLEARER = {  # for messages of the platform that do not say what to do
    "GPU task aborted": ABORTED,
    "Expired ZeroGPU proxy token": "this page has been open too long to request a GPU: reload it",
}


class GpuRunner:
    """Samples inside calls on a GPU that is lent for each. `submit_all` and `find` are the engine's.

    A run on a lent GPU is never parked: it ends when its last reader leaves, so that the GPU goes back.
    """

    can_replay = False

    def __init__(self, engine: Engine):
        self._engine = engine
        self._call = spaces.GPU(duration=seconds_needed)(partial(run_all, engine))
        self._handles: dict[str, RunHandle] = {}  # by id, oldest first
        self._lock = threading.RLock()

    def checkpoints(self) -> list[CheckpointInfo]:
        return self._engine.checkpoints()

    def submit_all(self, requests: Sequence[SampleRequest]) -> list[RunHandle]:
        """Start one call that runs the requests one after the other, and return at once."""
        note = waiting_message(requests)
        handles = [RunHandle(request.settings, self._apply_controls, note, request.checkpoint) for request in requests]
        with self._lock:
            self._evict()
            self._handles |= {handle.request_id: handle for handle in handles}
        # The platform reads from the context which visitor's quota the call counts against.
        run = partial(copy_context().run, self._run, requests, handles)
        threading.Thread(target=run, name="dp-lent-gpu", daemon=True).start()
        return handles

    def find(self, request_id: str) -> RunHandle | None:
        """Return the handle of a run that is live or still in memory; None for any other id."""
        return self._handles.get(request_id)

    def attention(self, request_id: str, row: int, index: int) -> Tensor:
        """Raise ValueError: the model is on a GPU only during a run."""
        raise ValueError("this needs the model, which is on a GPU only during a run")

    branches = take_apart = branch_off = attention

    def _run(self, requests: Sequence[SampleRequest], handles: Sequence[RunHandle]) -> None:
        """Post the frames of a call to the handles, in a separate thread. Closing the call releases the GPU."""
        # A worker killed in the middle of a message leaves `spaces` 0.51 waiting forever for the rest of it.
        deadline = threading.Timer(seconds_needed(requests) + GRACE_S, self._fail, (handles, ABORTED))
        deadline.daemon = True
        try:
            prepared = [self._prepared(*pair) for pair in zip(requests, handles, strict=True)]
            if not any(handle.is_live for handle in handles):  # stopped before a GPU was requested
                return
            with closing(self._call(prepared)) as frames:
                for which, frame, is_last in frames:
                    if deadline.ident is None:  # the wait for the GPU does not count
                        deadline.start()
                    self._post(handles[which], "done" if is_last else "running", frame=frame)
                    if not any(handle.is_live for handle in handles):
                        return
        except Exception as error:
            self._fail(handles, sentence(error))
        finally:
            deadline.cancel()

    def _fail(self, handles: Sequence[RunHandle], reason: str) -> None:
        for handle in handles:
            if handle.is_live:
                self._post(handle, "failed", error=reason)
                reason = "did not finish"  # the others in the same call

    def _prepared(self, request: SampleRequest, handle: RunHandle) -> SampleRequest:
        """Choose the frames to keep in the trajectory, and return a request that keeps them."""
        policy = self._engine.policy(request.checkpoint)
        request = request._replace(settings=request.settings.with_defaults(policy.defaults))
        handle.provenance = self._engine.provenance(request) | {"device": best_device().type}
        plan = make_plan(request.settings, policy.schedule, policy.scale)
        handle.trajectory.choose(plan.t.log_snr.tolist(), MAX_FRAMES, request.keep)
        return request._replace(keep=handle.trajectory.chosen)

    def _post(self, handle: RunHandle, state: str, **news) -> None:
        with self._lock:
            if handle.is_live:
                handle.post(state, **news)

    def _apply_controls(self) -> None:
        """End the runs that their readers have stopped or left, without waiting for the call."""
        with self._lock:
            for handle in list(self._handles.values()):
                if handle.control != "run":
                    self._post(handle, "stopped")
                if handle.control == "discard":
                    del self._handles[handle.request_id]

    def _evict(self) -> None:
        """Evict the oldest ended runs until the others fit in the memory for trajectories."""
        used = sum(handle.trajectory.nbytes for handle in self._handles.values())
        for handle in [handle for handle in self._handles.values() if not handle.is_live]:
            if used > self._engine.memory_for_trajectories or len(self._handles) > MAX_REQUESTS:
                used -= handle.trajectory.nbytes
                del self._handles[handle.request_id]


def run_all(engine: Engine, requests: Sequence[SampleRequest]) -> Iterator[tuple[int, Frame, bool]]:
    """Inside the call, yield the index of a request, its newest frame, and whether that is its last: at most
    FRAMES_PER_S, those to keep, and the last of each run. Every error is raised as a gr.Error, since of any other only
    the name of its class leaves the call.
    """
    try:
        for i, request in enumerate(requests):
            policy, before, shown_at = engine.policy(request.checkpoint).to(best_device()), None, 0.0
            for step in policy.run(policy.init_state(request.settings, request.start, request.mask)):
                is_last = step.index == step.timesteps
                if is_last or step.index in request.keep or time.monotonic() - shown_at >= 1 / FRAMES_PER_S:
                    shown_at = time.monotonic()
                    yield i, Frame.of(step, before), is_last
                before = step
    except Exception as error:
        raise page_values.user_error(describe(error)) from error


def seconds_needed(requests: Sequence[SampleRequest]) -> int:
    """Return the seconds that the runs may take, one after the other. They are requested from the visitor's quota."""
    calls = sum(request.settings.timesteps for request in requests)
    rows = sum(request.settings.timesteps * request.settings.most_rows for request in requests)
    return START_S + calls // CALLS_PER_S + rows // ROWS_PER_S


def waiting_message(requests: Sequence[SampleRequest]) -> str:
    """Return the page's status line until the first frame arrives."""
    seconds = seconds_needed(requests)
    more = f": more than the {ANONYMOUS_S} that visitors get without signing in" if seconds > ANONYMOUS_S else ""
    return f"waiting for a GPU, to be used for at most {seconds} seconds{more}…"


def sentence(error: Exception) -> str:
    """Return an error of the call as plain text. The platform's errors are markup, some with a link in it."""
    if not isinstance(error, gr.Error):
        traceback.print_exception(error)
        return f"no GPU is available: {describe(error)}"
    message = html.unescape(re.sub(r"<[^<>]*>", "", error.message)).strip()
    return CLEARER.get(message, message)
