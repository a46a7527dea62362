"""The sample images that a training run draws with each checkpoint."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch

from dp.data.codec import make_grid, to_uint8
from dp.diffusion.policy import DiffusionPolicy

MAX_COLUMNS = 16  # of the grid: one class each
FAST_CALLS = (1, 2, 4)  # of a model tuned for few
FAST_SAMPLING = {"timesteps": 4, "sampler": "consistency"}  # with which page, API and command line begin for it


def sample_grid(
    policy: DiffusionPolicy, count: int, timesteps: int, seed: int, heartbeat: Callable[[], None]
) -> np.ndarray:
    """Return a grid uint8 [H,W,C] of about `count` images of seeds `seed`, `seed` + 1, ..., in `timesteps` steps. With
    classes, each column shows one of up to 16, chosen evenly. Of a model tuned for few calls, it shows the same images
    in 1 call first, then in 2 and in 4. heartbeat: called after every step.
    """
    is_fast, label, columns = policy.consistency, None, None
    if classes := policy.num_classes:
        columns = min(classes, MAX_COLUMNS)
        shown = [1 + i * (classes - 1) // max(columns - 1, 1) for i in range(columns)]
        label = shown * max(1, count // columns)
        count = len(label)
    elif is_fast:
        columns = min(count, MAX_COLUMNS)
    images = []
    for steps in FAST_CALLS if is_fast else (timesteps,):
        for step in policy.stream(count, timesteps=steps, seed=seed, label=label):
            heartbeat()
            x0 = (step.x0 + 1) / 2
        images.append(x0)
    return make_grid(to_uint8(torch.cat(images)), columns)
