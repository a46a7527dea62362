"""A comparison under way: the new frames of each variant, and the results of those that have ended."""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import AsyncIterator, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from dp.serving.frames import Frame
from dp.serving.handle import RunHandle
from dp.ui.components.player.player import show
from dp.ui.sampling.variants import Arm, Run
from dp.ui.streaming import FRAMES_PER_S, Viewers
from dp.ui.zero_gpu import Asked, Lend


@dataclass
class Tally:
    """The results of the variants. ended: seconds after the beginning, and the images, uint8 [B,H,W,C]."""

    arms: Sequence[Arm]
    began: float = field(default_factory=time.monotonic)
    ended: dict[int, tuple[float, np.ndarray]] = field(default_factory=dict)
    whole: dict[Run, np.ndarray] = field(default_factory=dict)  # the last images of each run

    def end(self, arm: int, frame: Frame | None) -> None:
        if frame is not None:
            self.ended.setdefault(arm, (time.monotonic() - self.began, frame.x0))

    def table(self, is_over: bool = False) -> dict[str, Any]:
        """The clock's value: a line for each arm. Distances are root mean squares, with white at 1."""
        longest = max(self.arms, key=lambda arm: arm.settings.timesteps)
        goal, rows = self.whole.get(longest.run), []
        for i, arm in enumerate(self.arms):
            seconds, images = self.ended.get(i, (None, None))
            is_comparable = images is not None and goal is not None and images.shape == goal.shape
            far = math.sqrt(np.square((images.astype(np.float32) - goal) / 255).mean()) if is_comparable else None
            shown = "–" if seconds is None else f"{seconds:.2f}", "–" if far is None else f"{far:.4f}"
            rows.append([arm.label, str(arm.calls), *shown])
        name = f"the {longest.settings.timesteps}-step run" if longest.until else longest.label
        is_pairs = any(arm.until for arm in self.arms)
        return {"rows": rows, "longest": name, "began": self.began, "pairs": is_pairs, "is_over": is_over}

    def about(self, arm: int) -> dict[str, Any]:
        """Return the fields that every value of a variant has when its run has no handle."""
        return {"label": self.arms[arm].label, "run": f"{self.began}-{arm}"}


Values = dict[int, dict[str, Any]]  # the players' values, by arm


async def side_by_side(viewers: Viewers, session: str, arms: Sequence[Arm], tally: Tally) -> AsyncIterator[Values]:
    """Run all variants at once on the engine, and yield their new values about fifteen times a second."""
    viewers.check_room(session)
    handles: dict[Run, RunHandle] = {}
    for arm in arms:
        if arm.run not in handles:
            keep = [other.until for other in arms if other.until and other.run == arm.run]
            handles[arm.run] = viewers.engine.submit(arm.settings, arm.checkpoint, keep=keep)
    streams = [arm_values(viewers, session, arm, i, handles[arm.run], tally) for i, arm in enumerate(arms)]
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


async def arm_values(
    viewers: Viewers, session: str, arm: Arm, i: int, handle: RunHandle, tally: Tally
) -> AsyncIterator[dict[str, Any]]:
    """Yield the values of one variant. One that shows a part of its run ends with that part, but stays subscribed."""
    about = {"label": arm.label} | ({"until": arm.until} if arm.until else {})
    async for value in viewers.values(session, handle, tab="compare"):
        if i in tally.ended:
            continue
        frame = handle.frame
        if arm.until and frame is not None and frame.index >= arm.until:
            frame = next(kept for kept in handle.trajectory.frames if kept.index == arm.until)
            value = show(frame, "done") | {"run": handle.request_id}
        if value["state"] not in ("waiting", "running"):
            tally.end(i, frame)
        yield value | about
    if handle.state == "done":
        tally.whole[arm.run] = handle.frame.x0


def runs_of(arms: Sequence[Arm]) -> dict[Run, list[int]]:
    """The runs that the arms show, and who shows each."""
    runs: dict[Run, list[int]] = {}
    for i, arm in enumerate(arms):
        runs.setdefault(arm.run, []).append(i)
    return runs


def asked(arms: Sequence[Arm]) -> list[Asked]:
    """The runs, each to be asked for once."""
    runs = runs_of(arms).items()
    return [Asked(*run, keep=frozenset(arms[i].until for i in members if arms[i].until)) for run, members in runs]


def one_by_one(lend: Lend, arms: Sequence[Arm], tally: Tally) -> Iterator[Values]:
    """The same inside one call, where alone the GPU exists: run after run. Raises NotLent."""
    runs = list(runs_of(arms).items())
    for which, frame, is_last in lend(asked(arms)):
        run, members = runs[which]
        news: Values = {}
        for i in members:
            if frame.index > arms[i].calls:
                continue
            is_end = is_last or frame.index == arms[i].until
            news[i] = show(frame, "done" if is_end else "running") | tally.about(i)
            if is_end:
                tally.end(i, frame)
        if is_last:
            tally.whole[run] = frame.x0
        yield news
