"""The inputs of optimizer step k: its images, their random numbers and its learning rate.

Everything that step k uses is a function of (seed, k). The images come from an endless concatenation of permutations,
one per (seed, epoch), of which step k takes the next B. t, noise, flips and the choice to self-condition come from one
generator per (seed, step, micro-step). A resumed run therefore continues exactly, and no random state is saved.
"""

from __future__ import annotations

import math
from functools import lru_cache
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

EXTENDED_LR_FACTOR = 0.1  # relative to the peak


class Batch(NamedTuple):
    """One process's slice of a micro-batch: images [B,C,H,W] in [0, 1], and the randomness that its loss uses. With
    classes also the labels [B], `condition`, and which of them are dropped. progress: of consistency tuning, 0 to 1.
    """

    images: Tensor
    t: Tensor
    noise: Tensor
    self_condition: bool
    progress: float
    condition: Tensor | None = None
    drop: Tensor | None = None


class BatchRandomness(NamedTuple):
    """The random choices of one micro-batch, over all processes.

    indices: which images, [B]. t: uniform in [0, 1), float64 [B]. noise: standard normal, [B, C, H, W]. flips: bool
    [B]. self_cond_u: one uniform number in [0, 1) for the whole batch. drop_u: the same for the class of each image,
    [B], drawn last, so that runs without classes keep their numbers.
    """

    indices: Tensor
    t: Tensor
    noise: Tensor
    flips: Tensor
    self_cond_u: float
    drop_u: Tensor


def draw_batch(
    seed: int, step: int, micro_step: int, accumulation_steps: int, size: int, shape: tuple[int, ...], n: int
) -> BatchRandomness:
    """Draw micro-batch `micro_step` of the `accumulation_steps` in a step: `size` of `n` images, each of `shape`."""
    random = generator(seed, 1, step, micro_step)
    return BatchRandomness(
        image_order(seed, (step * accumulation_steps + micro_step) * size, size, n),
        torch.rand(size, generator=random, dtype=torch.float64),
        torch.randn(size, *shape, generator=random),
        torch.rand(size, generator=random) < 0.5,
        torch.rand((), generator=random).item(),
        torch.rand(size, generator=random),
    )


def learning_rate(step: int, peak: float, warmup_steps: int, decay_steps: int | None) -> float:
    """Return the learning rate of optimizer step `step` (0-based): a linear warm-up to `peak`, then a cosine to 0 at
    the horizon `decay_steps`. From the horizon on, in an extended run, it is a constant fraction of the peak.
    """
    if decay_steps and step >= decay_steps:
        return EXTENDED_LR_FACTOR * peak
    warmup = min(1.0, (step + 1) / warmup_steps) if warmup_steps else 1.0
    decay = 0.5 * (1 + math.cos(math.pi * min(1.0, step / decay_steps))) if decay_steps else 1.0
    return peak * warmup * decay


def generator(*key: int) -> torch.Generator:
    """Return a generator whose numbers depend on `key` alone."""
    return torch.Generator().manual_seed(
        int(np.random.SeedSequence(key).generate_state(1, np.uint64)[0] >> np.uint64(1))
    )


@lru_cache(maxsize=2)
def permutation(seed: int, epoch: int, n: int) -> Tensor:
    return torch.randperm(n, generator=generator(seed, 0, epoch))


def image_order(seed: int, start: int, count: int, n: int) -> Tensor:
    """Return image indices [count]: positions start to start + count of the endless concatenation of permutations of n
    images, one per epoch.
    """
    position, parts = start, []
    while position < start + count:
        epoch, offset = divmod(position, n)
        parts.append(permutation(seed, epoch, n)[offset : offset + start + count - position])
        position += len(parts[-1])
    return torch.cat(parts)
