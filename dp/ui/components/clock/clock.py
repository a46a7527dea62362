"""The clock of the Compare tab: it plays the variants on the page together and shows a table of their results.

Its value, everything optional:

    comparison  its id; the browser tab keeps it, so that a reloaded page finds the comparison again
    rows        a list of texts for each variant, as in the table's columns
    longest     the name of the run to which distances are measured
    pairs       whether the variants are pairs, one above the other
    is_over     whether the comparison has ended

On a page that was loaded again, the component triggers `reattach` with the id of the `comparison` when it is first
shown.
"""

from __future__ import annotations

from typing import Any

from dp.ui.components.component import Component

SHARED = ("canvas", "format", "chart", "playback", "menu", "transport", "storage")


class Clock(Component):
    def __init__(self, **kwargs: Any):
        super().__init__(
            html="clock/clock.html",
            css=["shared/transport.css", "shared/chart.css", "clock/clock.css"],
            js=[*(f"shared/{name}.js" for name in SHARED), "clock/charts.js", "clock/clock.js"],
            description="one row per variant: name, steps, seconds, distance",
            value={},
            **kwargs,
        )
