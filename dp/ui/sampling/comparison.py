"""A comparison: its runs, the new frames of each variant, and the results of those that have ended."""

from __future__ import annotations

import asyncio
import math
import secrets
import time
from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import gradio as gr
import numpy as np

from dp.serving.frames import Frame
from dp.serving.handle import RunHandle, SampleRequest
from dp.ui.components.player.player import show
from dp.ui.sampling import page_values
from dp.ui.sampling.variants import Run, Variant
from dp.ui.streaming import FRAMES_PER_S, Sessions

KEPT = 64  # comparisons


@dataclass
class ComparisonResult:
    """The results of the variants. ended: seconds after the beginning, and the images, uint8 [B,H,W,C]."""

    variants: Sequence[Variant]
    began: float = field(default_factory=time.monotonic)
    ended: dict[int, tuple[float, np.ndarray]] = field(default_factory=dict)
    whole: dict[Run, np.ndarray] = field(default_factory=dict)  # the last images of each run

    def end(self, variant: int, frame: Frame | None) -> None:
        if frame is not None:
            self.ended.setdefault(variant, (time.monotonic() - self.began, frame.x0))

    def table(self, is_over: bool = False) -> dict[str, Any]:
        """The clock's value: a line for each variant. Distances are root mean squares, with white at 1."""
        # Of equally long runs the first, but of several checkpoints the last, which is the newest of a training run.
        differ = len({variant.checkpoint for variant in self.variants}) > 1
        order = self.variants[::-1] if differ else self.variants
        longest = max(order, key=lambda variant: variant.settings.timesteps)
        goal, rows = self.whole.get(longest.run), []
        for i, variant in enumerate(self.variants):
            seconds, images = self.ended.get(i, (None, None))
            is_comparable = images is not None and goal is not None and images.shape == goal.shape
            far = math.sqrt(np.square((images.astype(np.float32) - goal) / 255).mean()) if is_comparable else None
            shown = "–" if seconds is None else f"{seconds:.2f}", "–" if far is None else f"{far:.4f}"
            rows.append([variant.label, str(variant.calls), *shown])
        name = f"the {longest.settings.timesteps}-step run" if longest.until else longest.label
        is_pairs = any(variant.until for variant in self.variants)
        return {"rows": rows, "longest": name, "pairs": is_pairs, "is_over": is_over}


@dataclass(frozen=True)
class Comparison:
    """A comparison that has been started. given: the values of the controls that it was started with. runs: the ids of
    its runs. The page keeps `id` and finds the comparison by it when it is loaded again.
    """

    result: ComparisonResult
    given: Mapping[Any, Any]
    runs: Mapping[Run, str]
    id: str = field(default_factory=lambda: secrets.token_urlsafe(16))


class Comparisons:
    """The comparisons that pages may return to: the newest KEPT of all visitors."""

    def __init__(self, sessions: Sessions):
        self._sessions = sessions
        self._kept: dict[str, Comparison] = {}  # by id, oldest first

    def start(self, session: str, variants: Sequence[Variant], given: Mapping[Any, Any]) -> Comparison:
        """Submit the runs that the variants show, each once. The engine advances them together; a lent GPU runs one
        after the other. Raises gr.Error where too many runs are under way.
        """
        self._sessions.check_capacity(session)
        requests = requests_of(variants)
        handles = self._sessions.runner.submit_all(list(requests.values()))
        runs = {run: handle.request_id for run, handle in zip(requests, handles, strict=True)}
        comparison = Comparison(ComparisonResult(variants), given, runs)
        self._kept[comparison.id] = comparison
        for id in list(self._kept)[:-KEPT]:
            self._kept.pop(id, None)  # another thread may have been faster
        return comparison

    def settings(self, comparison: Comparison) -> str:
        """Return the settings that all runs share, in words; "" before all of them have been prepared."""
        handles = map(self._sessions.runner.find, comparison.runs.values())
        return shared_settings([handle.provenance if handle else {} for handle in handles])

    def find(self, id: str, request: gr.Request) -> Comparison | None:
        """Return the comparison with this id, if all of its runs are still in memory, and the visitor may see them."""
        comparison, runner = self._kept.get(id), self._sessions.runner
        is_complete = comparison and all(page_values.find_run(runner, run, request) for run in comparison.runs.values())
        return comparison if is_complete else None


Values = dict[int, dict[str, Any]]  # the players' values, by variant


async def side_by_side(
    sessions: Sessions, session: str, comparison: Comparison, replay: bool = False
) -> AsyncIterator[Values]:
    """Yield the new values of all variants, about fifteen times a second. replay: from the first frame of each run."""
    result = comparison.result
    handles = {run: sessions.runner.find(id) for run, id in comparison.runs.items()}
    streams = [
        variant_values(sessions, session, variant, i, handles[variant.run], result, replay)
        for i, variant in enumerate(result.variants)
    ]
    waiting = {asyncio.ensure_future(anext(stream)): i for i, stream in enumerate(streams)}
    try:
        while waiting:
            await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
            await asyncio.sleep(0.5 / FRAMES_PER_S)  # one message for those that are about to speak, too
            news: Values = {}
            for task in [task for task in waiting if task.done()]:
                i = waiting.pop(task)
                try:
                    news[i] = task.result()
                except StopAsyncIteration:
                    continue
                waiting[asyncio.ensure_future(anext(streams[i]))] = i
            if news:
                yield news
    finally:
        for task in waiting:
            task.cancel()
        await asyncio.gather(*waiting, return_exceptions=True)
        for stream in streams:
            await stream.aclose()


async def variant_values(
    sessions: Sessions,
    session: str,
    variant: Variant,
    i: int,
    handle: RunHandle,
    result: ComparisonResult,
    replay: bool = False,
) -> AsyncIterator[dict[str, Any]]:
    """Yield the values of one variant. One that shows a part of its run ends with that part, but stays subscribed."""
    about = {"label": variant.label} | ({"until": variant.until} if variant.until else {})
    is_over = False
    async for value in sessions.values(session, handle, tab="compare", replay=replay):
        if is_over:
            continue
        frame = handle.frame
        if variant.until and frame is not None and frame.index >= variant.until:
            frame = next(kept for kept in handle.trajectory.frames if kept.index == variant.until)
            value = show(frame, "done") | {"run": handle.request_id}
        is_over = value["state"] not in ("waiting", "running")
        if is_over:
            result.end(i, frame)
        yield value | about
    if handle.state == "done":
        result.whole[variant.run] = handle.frame.x0


def shared_settings(provenances: Sequence[Mapping[str, Any]]) -> str:
    """Return the settings that are equal in all of these runs, in words; "" if one has not been prepared yet."""
    if not all(provenances):
        return ""
    first, *others = [page_values.describe_run(made_with) for made_with in provenances]
    return " · ".join(part for part in first if all(part in other for other in others))


def requests_of(variants: Sequence[Variant]) -> dict[Run, SampleRequest]:
    """Return the requests for the runs that the variants show, each run once."""
    requests: dict[Run, SampleRequest] = {}
    for run in dict.fromkeys(variant.run for variant in variants):
        keep = frozenset(variant.until for variant in variants if variant.until and variant.run == run)
        requests[run] = SampleRequest(*run, keep=keep)
    return requests
