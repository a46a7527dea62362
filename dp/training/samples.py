"""The sample images of a training run: a grid of what a model makes, always from the same seeds."""

from __future__ import annotations

from collections.abc import Callable

from dp.data.codec import encode_png, make_grid, to_uint8
from dp.diffusion.policy import DiffusionPolicy

MAX_COLUMNS = 16  # one class each


def draw_samples(policy: DiffusionPolicy, count: int, timesteps: int, seed: int, on_step: Callable[[], None]) -> bytes:
    """Return a grid of samples as PNG: square, of `count` images, or with a column for each class, for up to 16 of them
    chosen evenly. on_step: called after each step.
    """
    columns, label = None, None
    if classes := policy.num_classes:
        columns = min(classes, MAX_COLUMNS)
        shown = [1 + i * (classes - 1) // max(columns - 1, 1) for i in range(columns)]
        label = shown * max(1, count // columns)
        count = len(label)
    for frame in policy.stream(count, timesteps=timesteps, seed=seed, label=label):
        on_step()
        images = (frame.x0 + 1) / 2
    return encode_png(make_grid(to_uint8(images), columns))
