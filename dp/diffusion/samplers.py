"""Samplers: from noise levels to a step table.

Every sampler here is linear in what one network call gives, with coefficients that are known before the run starts. So
a sampler is a function from the levels of a run to a table with a row (a, b, c, d) for each step,

    x_s = a x_t + b x0 + c (x0 - x0_prev) + d noise

which goes from level t to level s < t. `x0` is the network's prediction at t, `x0_prev` the one before it, and `noise`
fresh standard normal noise. `update` takes the step for any number of images at once, each with a row of its own, from
whichever table.

Two invariants hold for every row. If the prediction is right, x_s has its mean and its variance:
a alpha_t + b = alpha_s, and a² sigma_t² + d² = sigma_s².

Notation: lambda = log_snr / 2, and h = 1 - SNR_t / SNR_s, the fraction of sigma_t's noise that the step removes.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from dp.diffusion.schedules import TINY, Level


def ddim(t: Level, s: Level, eta: float) -> Tensor:
    """DDIM, Song et al. 2021, arXiv 2010.02502, eq. 12 and 16. `eta` in [0, 1]: at 0 no noise is added, at 1 as much as
    ancestral sampling adds.
    """
    h = -torch.expm1(t.log_snr - s.log_snr).clamp(max=0)
    # A steep schedule can round sigma_t to 0 above t = 0; sigma_s is 0 then too, and 0 / 0 must be 0.
    a = s.sigma * (1 - eta**2 * h).sqrt() / t.sigma.clamp(min=math.sqrt(TINY))
    return torch.stack([a, s.alpha - t.alpha * a, torch.zeros_like(a), eta * s.sigma * h.sqrt()], dim=1)


def ddpm(t: Level, s: Level, eta: float = 1.0) -> Tensor:
    """Ancestral sampling, which is DDIM at eta = 1. Ho et al. 2020, arXiv 2006.11239, eq. 6-7, in continuous time as
    Kingma et al. 2021, arXiv 2107.00630, eq. 32-33.
    """
    return ddim(t, s, 1.0)


def dpmpp_2m(t: Level, s: Level, eta: float = 0.0) -> Tensor:
    """DPM-Solver++(2M): DDIM, of second order. Lu et al. 2022, arXiv 2211.01095, Algorithm 2."""
    return second_order(ddim(t, s, 0.0), t, s)


def dpmpp_2m_sde(t: Level, s: Level, eta: float = 1.0) -> Tensor:
    """SDE-DPM-Solver++(2M): ancestral sampling, of second order. Lu et al. 2022, arXiv 2211.01095, in the "midpoint"
    form of k-diffusion's sampler of that name.
    """
    return second_order(ddim(t, s, 1.0), t, s)


def consistency(t: Level, s: Level, eta: float = 1.0) -> Tensor:
    """Multistep consistency sampling, Song et al. 2023, arXiv 2303.01469, Algorithm 1: each x0 is noised afresh to the
    next level. For models that were tuned for it, see `dp.diffusion.consistency`. It is not DDIM at any eta up to 1,
    which keeps a part of x_t.
    """
    zeros = torch.zeros_like(s.alpha)
    return torch.stack([zeros, s.alpha, zeros, s.sigma], dim=1)


def second_order(table: Tensor, t: Level, s: Level) -> Tensor:
    """Return `table` [K,4] with x0 extrapolated to the middle of each step in lambda, from this call and the one
    before. Not on the first step, not where a clipped schedule stands still, and not on a step that reaches t = 0,
    where the middle lies at infinity.
    """
    past = t.log_snr.diff(prepend=t.log_snr[:1])
    usable = (s.sigma > 0) & (past > 0)
    ratio = torch.where(usable, (s.log_snr - t.log_snr) / (2 * torch.where(usable, past, 1.0)), 0.0)
    a, b, _, d = table.unbind(1)
    return torch.stack([a, b, b * ratio, d], dim=1)


# From the levels t and s of a run, [K] each, and `eta`, which only DDIM reads, to a table [K,4] in float64.
SAMPLERS: dict[str, Callable[[Level, Level, float], Tensor]] = {
    "ddim": ddim,
    "ddpm": ddpm,
    "dpmpp_2m": dpmpp_2m,
    "dpmpp_2m_sde": dpmpp_2m_sde,
    "consistency": consistency,
}


def is_stochastic(sampler: str, eta: float) -> bool:
    """Return whether a sampler adds fresh noise."""
    return sampler in ("ddpm", "dpmpp_2m_sde", "consistency") or eta > 0


def update(x_t: Tensor, x0: Tensor, x0_prev: Tensor | None, noise: Tensor | None, rows: Tensor) -> Tensor:
    """Take one step of each sample: all tensors [B,C,H,W] or [B,C,L], `rows` [B,4] of any tables. Without `x0_prev` or
    `noise` their columns must be 0.
    """
    a, b, c, d = expand_rows(x_t, *rows.unbind(1))
    x_s = a * x_t + b * x0
    if x0_prev is not None:
        x_s = x_s + c * (x0 - x0_prev)
    return x_s if noise is None else x_s + d * noise


def expand_rows(x: Tensor, *values: Tensor) -> tuple[Tensor, ...]:
    """Return values [B], float64 on the CPU, as [B,1,1,1], or with as many axes as x has, in x's dtype and on its
    device, in one transfer.
    """
    return torch.stack(values).to(x.dtype).to(x.device)[(..., *[None] * (x.ndim - 1))].unbind()


def sample_axes(x: Tensor) -> tuple[int, ...]:
    """Return the axes of one sample: (1, 2, 3) of images [B,C,H,W]."""
    return tuple(range(1, x.ndim))
