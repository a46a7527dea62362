"""The In 2D tab's view: two runs of many particles from noise to points with the exact denoiser, computed in the page.

It has no value and sends the server nothing.
"""

from __future__ import annotations

from typing import Any

from dp.ui.components.component import Component

SHARED = ("canvas", "elements", "menu", "playback", "transport", "plan")
OWN = ("gaussian", "points", "denoiser", "run", "view", "levels", "examples", "variant", "pad", "plane")


class Plane(Component):
    """samplers: [title, name] of each, in the order of the page."""

    def __init__(self, samplers: list[tuple[str, str]], **kwargs: Any):
        super().__init__(
            html="plane/plane.html",
            css=["shared/transport.css", "plane/plane.css"],
            js=[*(f"shared/{name}.js" for name in SHARED), *(f"plane/{name}.js" for name in OWN)],
            description="nothing: everything happens in the page",
            samplers=samplers,
            **kwargs,
        )
