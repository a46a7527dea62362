"""The settings in a link that opens the page with them."""

from __future__ import annotations

# The names in a link -> those of `SampleSettings`. The time difference is in steps in a link, so it is read after the
# number of steps.
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
    "class": "label",
    "guidance": "guidance",
}
NUMBERS = ("images", "timesteps", "difference", "eta", "seed", "walk", "guidance")


def parse_number(text: str) -> int | float | str:
    """Return the number that `text` spells, or `text` itself, which a later check rejects."""
    for kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            continue
    return text
