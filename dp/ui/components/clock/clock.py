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

from pathlib import Path
from typing import Any

from dp.ui.components.component import Component
from dp.ui.components.recording import recording_reader

SHARED = ("canvas", "format", "chart", "playback", "menu", "transport", "storage")


class Clock(Component):
    """recording: a JSON file with a comparison that is shown before the first one: `runs`, as a `Player` has one;
    `variants` with a `label`, the number of their `run` and, for a part of it, `until`; and `table`, the clock's value.
    """

    def __init__(self, recording: Path | None = None, **kwargs: Any):
        super().__init__(
            html="clock/clock.html",
            css=["shared/transport.css", "shared/chart.css", "clock/clock.css"],
            js=[*(f"shared/{name}.js" for name in SHARED), "clock/charts.js", "clock/recording.js", "clock/clock.js"],
            description="one row per variant: name, steps, seconds, distance",
            server_functions=[recording_reader(recording)],
            has_recording=recording is not None,
            value={},
            **kwargs,
        )
