"""Where an image's random numbers come from: a stream for each, which depends on its seed alone."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from dp.samplers import SampleSettings


class Stream:
    """The random numbers of one image: its noise at t = 1, then one draw for each step that needs noise. On the CPU, so
    that a seed is the same image on every device. With a second seed, every draw lies `share` of the way from the one's
    to the other's, on the sphere.
    """

    def __init__(self, seed: int, other: int | None = None, share: float = 0.0):
        self.made_with = seed, other, share
        self._generators = [torch.Generator("cpu").manual_seed(s) for s in (seed, other) if s is not None]

    def draw(self, shape: Sequence[int]) -> Tensor:
        draws = [torch.randn(shape, generator=generator) for generator in self._generators]
        return slerp(*draws, self.made_with[2]) if len(draws) == 2 else draws[0]

    def anew(self) -> Stream:
        """The same stream, before its first draw."""
        return Stream(*self.made_with)


def streams(settings: SampleSettings) -> list[Stream]:
    """One for each image: image i has seed + i, or stands on the walk from `seed` to `walk_to`."""
    n, seed = settings.batch_size, settings.seed
    seed = int(torch.randint(2**31, ())) if seed is None else int(seed)
    if settings.walk_to is None:
        return [Stream(seed + i) for i in range(n)]
    return [Stream(seed, int(settings.walk_to), i / (n - 1)) for i in range(n)]


def draw(streams: Sequence[Stream], like: Tensor) -> Tensor:
    """Standard normal noise of the shape of `like` [B,C,H,W], each row from its own stream."""
    return torch.stack([stream.draw(like.shape[1:]) for stream in streams]).to(like.dtype).to(like.device)


def slerp(a: Tensor, b: Tensor, share: float) -> Tensor:
    """Spherical interpolation between two draws of noise; at 0 and 1 they are met to the bit. A straight line between
    them would pass through noise of less than unit variance, which no network has seen. Shoemake 1985, sec. 3.3.
    """
    if share in (0, 1):
        return b if share else a
    cosine = (torch.dot(a.flatten(), b.flatten()) / (a.norm() * b.norm())).clamp(-1, 1).item()
    angle = math.acos(cosine)
    if math.sin(angle) < 1e-6:  # the same noise: there is no way to go
        return a
    return (math.sin((1 - share) * angle) * a + math.sin(share * angle) * b) / math.sin(angle)
