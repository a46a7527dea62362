"""Settings in a link, by which a page opens with them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

# The names in a link -> those of `SampleSettings`, and how each is read. Time difference is counted in steps there.
NAMES = {"checkpoint": "checkpoint", "images": "batch_size", "timesteps": "timesteps", "sampler": "sampler"}
NAMES |= {"schedule": "noise_schedule", "eta": "eta", "seed": "seed", "walk": "walk_to"}
NUMBERS = ("images", "timesteps", "eta", "seed", "walk")


def of_link(query: Mapping[str, str]) -> dict[str, Any]:
    """A link's query -> settings named as in `SampleSettings`. What is no number stays text, and is refused later."""
    made_with: dict[str, Any] = {NAMES[key]: query[key] for key in NAMES if key in query}
    for key in NUMBERS:
        if key in query:
            made_with[NAMES[key]] = number(query[key])
    if "difference" in query:
        steps, timesteps = number(query["difference"]), made_with.get("timesteps", 0)
        is_usable = isinstance(steps, float | int) and isinstance(timesteps, int) and timesteps > 0
        made_with["time_difference"] = min(steps / timesteps, 1.0) if is_usable else query["difference"]
    return made_with


def number(text: str) -> int | float | str:
    for kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            continue
    return text
