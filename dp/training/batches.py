"""The inputs of optimizer step k: its images, their random numbers and its learning rate.

Everything that step k uses is a function of (seed, k). The images come in permutations by (seed, epoch), endlessly
concatenated, of which step k takes the next B; t, noise, flips and whether to self-condition come from one generator
per (seed, step, micro-step). So a resumed run continues exactly, and no random state is saved.
"""

from __future__ import annotations

import math
from functools import lru_cache
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

EXTENDED_RATE = 0.1  # of the peak


class Draw(NamedTuple):
    """One micro-batch over all processes: image indices [B], and the random numbers per image and shared."""

    pictures: Tensor
    t: Tensor
    noise: Tensor
    flips: Tensor
    coin: float


def draw(seed: int, step: int, micro: int, micros: int, size: int, shape: tuple[int, ...], n: int) -> Draw:
    """Micro-batch `micro` of `micros` in a step: `size` of `n` pictures, each of `shape`."""
    random = generator(seed, 1, step, micro)
    return Draw(
        picture_order(seed, (step * micros + micro) * size, size, n),
        torch.rand(size, generator=random, dtype=torch.float64),
        torch.randn(size, *shape, generator=random),
        torch.rand(size, generator=random) < 0.5,
        torch.rand((), generator=random).item(),
    )


def learning_rate(step: int, peak: float, warmup_steps: int, decay_steps: int | None) -> float:
    """Return the learning rate of the step that follows `step` done ones: a linear warm-up to `peak`, then a cosine to
    0 at the horizon `decay_steps`. An extended run continues beyond the horizon at a constant share of the peak.
    """
    if decay_steps and step >= decay_steps:
        return EXTENDED_RATE * peak
    warmup = min(1.0, (step + 1) / warmup_steps) if warmup_steps else 1.0
    decay = 0.5 * (1 + math.cos(math.pi * min(1.0, step / decay_steps))) if decay_steps else 1.0
    return peak * warmup * decay


def generator(*key: int) -> torch.Generator:
    """A random stream that is a function of `key` alone."""
    return torch.Generator().manual_seed(
        int(np.random.SeedSequence(key).generate_state(1, np.uint64)[0] >> np.uint64(1))
    )


@lru_cache(maxsize=2)
def permutation(seed: int, epoch: int, n: int) -> Tensor:
    return torch.randperm(n, generator=generator(seed, 0, epoch))


def picture_order(seed: int, start: int, count: int, n: int) -> Tensor:
    """Positions [start, start + count) of the endless concatenation of permutations of n pictures, one per epoch ->
    picture indices [count].
    """
    position, parts = start, []
    while position < start + count:
        epoch, offset = divmod(position, n)
        parts.append(permutation(seed, epoch, n)[offset : offset + start + count - position])
        position += len(parts[-1])
    return torch.cat(parts)
