"""The stream of a run to its readers: which sessions are subscribed to which runs, and the newest frame of each some
fifteen times a second.

A run continues while a page watches it. When the last page leaves, reloads or loses its connection, the engine parks
the run, and a lent GPU ends it. A page that returns with the run's id replays it from the start, and resumes it if it
was parked.
"""

from __future__ import annotations

import asyncio
import time
from collections import Counter, defaultdict
from collections.abc import AsyncIterator, Callable
from typing import Any

import gradio as gr
import torch

from dp.diffusion.schedules import SCHEDULES, level, make_schedule
from dp.serving.frames import Frame, evenly
from dp.serving.handle import RunHandle, Runner, SampleRequest, Subscription
from dp.ui.components.player.player import show
from dp.ui.sampling import page_values

FRAMES_PER_S = 15  # Gradio queues every yield and drops none, so a reader takes only what the eye can follow
BEAT_S = 1.0  # a reader without new frames yields this often: only then does Gradio notice that its page has gone
REPLAYED = 30  # the most frames of a run's past that are replayed
CURVE, OTHERS = 200, 40  # points of the log-SNR curve, and of those of other schedules
PATIENCE_S = 30.0  # how long a reader may be behind before it counts as gone
MAX_UNREAD = 100  # messages that a session may have unread and still start another run
MAX_RUNS = 64  # watched at once, by all pages and programs: each occupies one of Gradio's events until it ends


class Sessions:
    """The runs that each session of `page` watches."""

    def __init__(self, runner: Runner, page: gr.Blocks):
        self.runner, self._page = runner, page
        # The subscriptions of each session, and the tab that shows each.
        self._open: defaultdict[str, dict[Subscription, str]] = defaultdict(dict)
        self._api_runs: Counter[str] = Counter()  # of each session

    def start(self, session: str, request: SampleRequest) -> AsyncIterator[dict[str, Any]]:
        """Submit a request and return the player's values for it. Raises gr.Error where too many runs are under way."""
        self.check_capacity(session)
        [handle] = self.runner.submit_all([request])
        return self.values(session, handle)

    def reattach(self, request: gr.Request, request_id: str) -> AsyncIterator[dict[str, Any]] | None:
        """Return the values of a run that another page, or this one before a reload, has started; None if no run that
        the visitor may see has that id.
        """
        handle = page_values.find_run(self.runner, request_id, request)
        if handle is None:
            return None
        self.check_capacity(request.session_hash)
        return self.values(request.session_hash, handle, replay=True)

    def is_watching(self, session: str, tab: str = "denoise") -> bool:
        """Return whether the page watches a run on that tab that has not ended."""
        subscriptions = self._open.get(session, {}).items()
        return any(on == tab and watched.handle.is_live and not watched.is_closed for watched, on in subscriptions)

    def stop(self, session: str, tab: str = "denoise") -> None:
        """End the runs that the page watches on that tab."""
        for subscription, on in list(self._open.get(session, {}).items()):
            if on == tab:
                subscription.handle.cancel()

    def disconnect(self, session: str) -> None:
        """Close the subscriptions of a page that has gone. Its readers might notice only at their next frame."""
        for subscription in self._open.pop(session, {}):
            subscription.close()

    async def run_for_api(self, session: str, request: SampleRequest) -> AsyncIterator[tuple[Frame | None, bool]]:
        """Run a request of a program. Yield its newest frame, or None, and whether it is the last. A program that
        leaves cannot return, so its run is discarded.
        """
        self.check_capacity(session)
        [handle] = self.runner.submit_all([request])
        self._api_runs[session] += 1
        try:
            async for frame in follow(handle, is_behind=lambda: self._is_behind(session)):
                yield frame, False
            if handle.state == "failed":
                raise page_values.user_error(handle.error)
            yield handle.frame, True
        finally:
            handle.discard()
            self._api_runs[session] -= 1
            self._api_runs += Counter()  # drops the zeros

    def check_capacity(self, session: str) -> None:
        """Raise gr.Error where too many runs are under way, or the session does not read what it was sent."""
        if sum(map(len, self._open.values())) + self._api_runs.total() >= MAX_RUNS:
            raise page_values.user_error(
                f"the server is at its limit of {MAX_RUNS} simultaneous runs: try again in a moment"
            )
        if self._is_behind(session, MAX_UNREAD):
            raise page_values.user_error("your connection is still receiving earlier images: try again in a moment")

    def _is_behind(self, session: str, slack: int = 0) -> bool:
        """Return whether the session has more than `slack` unread messages beyond one for each of its runs. Gradio
        keeps all of them, so a reader that is behind adds none.
        """
        unread = self._page._queue.pending_messages_per_session.get(session)
        runs = len(self._open.get(session, ())) + self._api_runs[session]
        return unread is not None and unread.qsize() > max(runs, 1) + slack

    async def values(
        self, session: str, handle: RunHandle, tab: str = "denoise", replay: bool = False
    ) -> AsyncIterator[dict[str, Any]]:
        """Subscribe to a run and yield the player's values for it. replay: from its first frame."""
        subscription = handle.subscribe()
        self._open[session][subscription] = tab
        settings, trajectory = handle.trajectory.settings, handle.trajectory

        def about() -> dict[str, Any]:
            made_with = (
                {"settings": " · ".join(page_values.describe_run(handle.provenance))} if handle.provenance else {}
            )
            return {"run": handle.request_id, "walk": settings.walk_to is not None} | made_with

        note = {"message": handle.note} if handle.note else {}
        try:
            yield {"state": "waiting", "seed": settings.seed} | note | about()
            if replay:
                for frame in evenly_chosen(trajectory.frames):
                    yield show(frame, "running") | {"replay": True} | about() | curve_of(handle)
                    await asyncio.sleep(1 / FRAMES_PER_S)
            has_curve = replay
            async for frame in follow(handle, subscription, is_behind=lambda: self._is_behind(session)):
                if frame is not None:
                    yield show(frame, "running") | about() | ({} if has_curve else curve_of(handle))
                    has_curve = True
                else:
                    state = {"state": "running"} if handle.frame else {"state": "waiting"} | note
                    yield state | {"heartbeat": time.monotonic()} | about()
            if not subscription.is_closed and not handle.is_live:
                last = show(handle.frame, handle.state, handle.error) | about()
                yield last | curve_of(handle) | classes_of(handle)
        finally:  # may run on the event loop, so it only sets a flag
            subscription.close()
            self._open[session].pop(subscription, None)
            if not self._open[session]:
                del self._open[session]


async def follow(
    handle: RunHandle, subscription: Subscription | None = None, is_behind: Callable[[], bool] = lambda: False
) -> AsyncIterator[Frame | None]:
    """Yield the newest frame whenever there is a newer one, and None after BEAT_S without one, until the run has ended
    or the subscription is closed. Yield nothing while the reader is behind, and end if it stays behind. The last frame
    is left on the handle.
    """
    seen, spoke = 0, time.monotonic()
    while handle.is_live and not (subscription and subscription.is_closed) and time.monotonic() - spoke < PATIENCE_S:
        frame, now = handle.frame, time.monotonic()
        is_new = frame is not None and frame.index > seen
        if (is_new or now - spoke > BEAT_S) and not is_behind():
            seen, spoke = frame.index if is_new else seen, now
            yield frame if is_new else None
        await asyncio.sleep(1 / FRAMES_PER_S)


def curve_of(handle: RunHandle) -> dict[str, Any]:
    """Return log-SNR against the step, for the chart: `curve`, up to CURVE points, and `others`, by name the curves of
    the same run under other schedules with their default parameters. Nothing of a run that was never prepared.
    """
    log_snr, made_with = handle.trajectory.log_snr, handle.provenance
    if not log_snr:  # the run ended before it was prepared
        return {}
    curve = [(step, round(log_snr[step - 1], 3)) for step in evenly(len(log_snr), CURVE)]
    steps = evenly(len(log_snr), OTHERS)
    times = made_with["strength"] * (1 - (torch.tensor(steps, dtype=torch.float64) - 1) / len(log_snr))
    own = made_with["noise_schedule"], made_with["schedule_kwargs"]
    levels = {name: level(make_schedule(name), times).log_snr for name in SCHEDULES if (name, {}) != own}
    return {"curve": curve, "others": {k: list(zip(steps, v.round(decimals=2).tolist())) for k, v in levels.items()}}


def classes_of(handle: RunHandle) -> dict[str, Any]:
    """Return the class of each image of a run, None for none; nothing if no image has one."""
    names = handle.provenance.get("classes", {})
    return {"classes": [names.get(str(label)) for label in handle.trajectory.settings.labels]} if names else {}


def evenly_chosen(frames: list[Frame]) -> list[Frame]:
    """Return up to REPLAYED evenly chosen frames."""
    return frames[:: -(-len(frames) // REPLAYED)] if frames else []
