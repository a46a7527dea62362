"""Random numbers: one stream per image, which depends on the image's seed alone."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from dp.diffusion.settings import SampleSettings


class NoiseStream:
    """The random numbers of one image: its noise at t = 1, then one draw for each step that needs noise. They are drawn
    on the CPU, so that a seed gives the same image on every device. With a second seed, each draw is interpolated: it
    lies the given fraction of the way from the first seed's draw to the second's, on the sphere.
    """

    def __init__(self, seed: int, other: int | None = None, fraction: float = 0.0):
        self.seeds, self.fraction = (seed, other), fraction
        self._generators = [torch.Generator("cpu").manual_seed(s) for s in self.seeds if s is not None]

    def draw(self, shape: Sequence[int]) -> Tensor:
        draws = [torch.randn(shape, generator=generator) for generator in self._generators]
        return slerp(*draws, self.fraction) if len(draws) == 2 else draws[0]

    def restarted(self) -> NoiseStream:
        """Return the same stream, before its first draw."""
        return NoiseStream(*self.seeds, self.fraction)


def make_streams(settings: SampleSettings) -> list[NoiseStream]:
    """Return one stream per image: image i has seed + i, or lies between `seed` and `walk_to`."""
    n, seed = settings.batch_size, settings.seed
    seed = int(torch.randint(2**31, ())) if seed is None else int(seed)
    if settings.walk_to is None:
        return [NoiseStream(seed + i) for i in range(n)]
    return [NoiseStream(seed, int(settings.walk_to), i / (n - 1)) for i in range(n)]


def draw(streams: Sequence[NoiseStream], like: Tensor) -> Tensor:
    """Return standard normal noise of the shape of `like` [B,...], each row from its own stream."""
    return torch.stack([stream.draw(like.shape[1:]) for stream in streams]).to(like.dtype).to(like.device)


def slerp(a: Tensor, b: Tensor, fraction: float) -> Tensor:
    """Interpolate spherically between two draws of noise; at 0 and 1 the result is `a` and `b` to the bit. A straight
    line between them would pass through noise of less than unit variance, which no network has seen. Shoemake 1985,
    sec. 3.3.
    """
    if fraction in (0, 1):
        return b if fraction else a
    cosine = (torch.dot(a.flatten(), b.flatten()) / (a.norm() * b.norm())).clamp(-1, 1).item()
    angle = math.acos(cosine)
    if math.sin(angle) < 1e-6:  # the two draws are equal
        return a
    return (math.sin((1 - fraction) * angle) * a + math.sin(fraction * angle) * b) / math.sin(angle)
