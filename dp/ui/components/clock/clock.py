"""The clock of the Compare tab: it plays the variants on the page together and shows a table of their results.

Its value, everything optional:

    comparison  its id; the browser tab keeps it, so that a reloaded page finds the comparison again
    rows        a list of texts for each variant, as in the table's columns
    longest     the name of the run to which distances are measured
    pairs       whether the variants are pairs, one above the other
    settings    those that all runs share, in words
    is_over     whether the comparison has ended
    is_lost     whether the server no longer has the comparison that the page asked for

On a page that was loaded again, the component triggers `reattach` with the id of the `comparison` when it is first
shown.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import gradio as gr

from dp.serving.handle import Runner
from dp.ui.components.component import Component
from dp.ui.components.player.guard import OneAtATime
from dp.ui.components.player.map import compute_variants_map
from dp.ui.components.recording import recording_reader
from dp.ui.sampling.page_values import find_run

SHARED = ("canvas", "format", "chart", "image_map", "playback", "menu", "transport", "storage")
PARTS = ("charts", "map", "recording", "clock")


class Clock(Component):
    """A clock for the runs of `runner`, up to `most_runs` in a comparison. recording: a JSON file with a comparison
    that is shown before the first one: `runs`, as a `Player` has one; `variants` with a `label`, the number of their
    `run` and, for a part of it, `until`; and `table`, the clock's value.
    """

    def __init__(self, runner: Runner, most_runs: int, recording: Path | None = None, **kwargs: Any):
        super().__init__(
            html="clock/clock.html",
            css=[*(f"shared/{name}.css" for name in ("transport", "chart", "image_map")), "clock/clock.css"],
            js=[*(f"shared/{name}.js" for name in SHARED), *(f"clock/{name}.js" for name in PARTS)],
            description="one row per variant: name, steps, seconds, distance",
            server_functions=[map_reader(runner, most_runs), recording_reader(recording)],
            has_recording=recording is not None,
            value={},
            **kwargs,
        )


def map_reader(runner: Runner, most_runs: int) -> Callable[..., dict[str, Any] | None]:
    """Return the function with which the clock asks for the map of its `runs`. Anyone can call it with anything."""
    one_at_a_time = OneAtATime()

    def map(data: Any, request: gr.Request = None) -> dict[str, Any] | None:
        runs = data.get("runs") if isinstance(data, dict) else None
        if not isinstance(runs, list) or len(runs) > most_runs or not all(isinstance(run, str) for run in runs):
            return None
        handles = [find_run(runner, run, request) for run in runs]
        return compute_variants_map(runner, handles, one_at_a_time)

    return map
