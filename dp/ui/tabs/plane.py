"""The In 2D tab: the same settings, in a world that one can see whole. Everything happens in the browser."""

from __future__ import annotations

from dp.ui import words
from dp.ui.components.plane.plane import Plane
from dp.ui.sampling import page_values


def build() -> None:
    """Add the tab to the page being built."""
    Plane(page_values.SAMPLERS, elem_id="plane")
    words.explain(words.PLANE)
