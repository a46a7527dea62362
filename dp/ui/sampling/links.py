"""Settings in a link, by which a page opens with them."""

from __future__ import annotations

# The names in a link -> those of `SampleSettings`. A link counts the time difference in steps: it comes after their
# number.
NAMES = {
    "checkpoint": "checkpoint",
    "images": "batch_size",
    "timesteps": "timesteps",
    "sampler": "sampler",
    "schedule": "noise_schedule",
    "difference": "time_difference",
    "eta": "eta",
    "seed": "seed",
    "walk": "walk_to",
}
NUMBERS = ("images", "timesteps", "difference", "eta", "seed", "walk")


def number(text: str) -> int | float | str:
    for kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            continue
    return text
