"""Between the engine and a page: who is subscribed to which run, and the newest frame some fifteen times a second.

A run goes on while a page watches it. When the last one has gone, by leaving, by reloading or by losing its connection,
the engine parks the run, and a page that comes back with its id sees it from the beginning and takes it up again.
"""

from __future__ import annotations

import asyncio
import time
from collections import Counter, defaultdict
from collections.abc import AsyncIterator, Callable
from typing import Any

import gradio as gr
from torch import Tensor

from dp.diffusion.settings import SampleSettings
from dp.serving.engine import Engine
from dp.serving.frames import Frame, Trajectory, evenly
from dp.serving.handle import RunHandle, Subscription
from dp.ui.components.player.player import show
from dp.ui.sampling import page_values

FRAMES_PER_S = 15  # Gradio queues every yield and drops none, so a reader takes only what an eye can follow
BEAT = 1.0  # seconds without a frame after which a reader speaks all the same: only then is one that has gone noticed
REPLAYED = 30  # frames at most from the past of a run that is taken up again
CURVE = 200  # points of the curve of log-SNR
PATIENCE = 30.0  # seconds for which a reader may be behind, before it counts as gone
MOST_WAITING = 100  # messages unread by a session that asks for another run
MAX_RUNS = 64  # at once, on all pages and for all programs: each holds one of Gradio's places until it ends

Answer = tuple[Frame | None, bool]


class Viewers:
    """The subscriptions of each session of `page`."""

    def __init__(self, engine: Engine, page: gr.Blocks):
        self.engine, self.page = engine, page
        # The subscriptions of each session, and the tab that each is on.
        self._open: defaultdict[str, dict[Subscription, str]] = defaultdict(dict)
        self._programs: Counter[str] = Counter()  # runs of each session that no page watches

    def start(
        self,
        session: str,
        checkpoint: str,
        settings: SampleSettings,
        start: Tensor | None = None,
        mask: Tensor | None = None,
    ) -> AsyncIterator[dict[str, Any]]:
        """Submit, and then the player's values. Raises gr.Error where too many runs are under way."""
        self.check_room(session)
        return self.values(session, self.engine.submit(settings, checkpoint, start=start, mask=mask))

    def again(self, session: str, request_id: str) -> AsyncIterator[dict[str, Any]] | None:
        """The values of a run that another page, or this one before it was reloaded, has begun; None if there is none
        of that id.
        """
        handle = self.engine.find(request_id)
        if handle is None:
            return None
        self.check_room(session)
        return self.values(session, handle, replay=True)

    def stop(self, session: str, tab: str = "denoise") -> None:
        """End the runs that the page watches on that tab."""
        for subscription, on in list(self._open.get(session, {}).items()):
            if on == tab:
                subscription.handle.cancel()

    def leave(self, session: str) -> None:
        """The page has gone. Its readers might notice only at their next frame, so they are not asked."""
        for subscription in self._open.pop(session, {}):
            subscription.close()

    async def program(self, session: str, checkpoint: str, settings: SampleSettings) -> AsyncIterator[Answer]:
        """A run for a program: its newest frame or None, and whether it is the last. Whoever asked cannot come back."""
        self.check_room(session)
        handle = self.engine.submit(settings, checkpoint)
        self._programs[session] += 1
        try:
            async for frame in follow(handle, is_behind=lambda: self._is_behind(session)):
                yield frame, False
            if handle.state == "failed":
                raise page_values.complaint(handle.error)
            yield handle.frame, True
        finally:
            handle.discard()
            self._programs[session] -= 1
            self._programs += Counter()  # drops the zeros

    def check_room(self, session: str) -> None:
        """Raises gr.Error where too many runs are under way, or the session does not read what it was sent."""
        if sum(map(len, self._open.values())) + self._programs.total() >= MAX_RUNS:
            raise page_values.complaint(
                f"the server is at its limit of {MAX_RUNS} simultaneous runs: try again in a moment"
            )
        if self._is_behind(session, MOST_WAITING):
            raise page_values.complaint("your connection is still receiving earlier images: try again in a moment")

    def _is_behind(self, session: str, more: int = 0) -> bool:
        """Whether more messages wait for the session's connection than one for each of its runs, and `more`. Gradio
        keeps all of them, so a reader adds none to them.
        """
        waiting = self.page._queue.pending_messages_per_session.get(session)
        runs = len(self._open.get(session, ())) + self._programs[session]
        return waiting is not None and waiting.qsize() > max(runs, 1) + more

    async def values(
        self, session: str, handle: RunHandle, tab: str = "denoise", replay: bool = False
    ) -> AsyncIterator[dict[str, Any]]:
        """The player's values for a run, which goes on while they are asked for. replay: from its beginning."""
        subscription = handle.subscribe()
        self._open[session][subscription] = tab
        settings = handle.trajectory.settings
        about = {"run": handle.request_id, "walk": settings.walk_to is not None}
        try:
            yield {"state": "waiting", "seed": settings.seed} | about
            if replay:
                for frame in some(handle.trajectory.frames):
                    yield show(frame, "running") | about | curve_of(handle.trajectory)
                    await asyncio.sleep(1 / FRAMES_PER_S)
            spoke = replay
            async for frame in follow(handle, subscription, is_behind=lambda: self._is_behind(session)):
                state = "running" if handle.frame else "waiting"
                if frame is None:
                    yield {"state": state, "beat": time.monotonic()} | about
                else:
                    yield show(frame, state) | about | ({} if spoke else curve_of(handle.trajectory))
                    spoke = True
            if not subscription.is_closed and not handle.is_live:
                yield show(handle.frame, handle.state, handle.error) | about | curve_of(handle.trajectory)
        finally:  # may run on the event loop, so it only raises a flag
            subscription.close()
            self._open[session].pop(subscription, None)
            if not self._open[session]:
                del self._open[session]


async def follow(
    handle: RunHandle, subscription: Subscription | None = None, is_behind: Callable[[], bool] = lambda: False
) -> AsyncIterator[Frame | None]:
    """The newest frame whenever there is a newer one, and None when there has been none for a while, until the run has
    ended or the subscription is closed; nothing while the reader is behind, and the end when it stays behind. The last
    frame is the handle's.
    """
    seen, spoke = 0, time.monotonic()
    while handle.is_live and not (subscription and subscription.is_closed) and time.monotonic() - spoke < PATIENCE:
        frame, now = handle.frame, time.monotonic()
        is_new = frame is not None and frame.index > seen
        if (is_new or now - spoke > BEAT) and not is_behind():
            seen, spoke = frame.index if is_new else seen, now
            yield frame if is_new else None
        await asyncio.sleep(1 / FRAMES_PER_S)


def curve_of(trajectory: Trajectory) -> dict[str, Any]:
    """log-SNR against the step, for the chart: enough of its points."""
    steps = evenly(len(trajectory.log_snr), CURVE)
    return {"curve": [(step, round(trajectory.log_snr[step - 1], 3)) for step in steps]}


def some(frames: list[Frame]) -> list[Frame]:
    """An even choice of a run's past."""
    return frames[:: -(-len(frames) // REPLAYED)] if frames else []
