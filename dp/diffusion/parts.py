"""One step of a run, taken apart: what the sampler is given, with which numbers, and what it makes of it."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from dp.diffusion.policy import DiffusionPolicy
from dp.diffusion.samplers import expand_rows, update
from dp.diffusion.state import SampleState, apply_known

# Of `amplify`: the standard deviation of the noise that it leaves, where black to white is 2; and the width in pixels
# of a Gaussian that hardly changes anything.
QUIET, NARROWEST = 0.2, 0.3
TWO_ROOT_PI = 2 * math.sqrt(math.pi)


@dataclass(frozen=True)
class StepParts:
    """One step of a run. Its pictures are [B,C,H,W] in the space of x_t, where black is -1 and white is 1:

        x_t = alpha x0 + sigma noise
        x_s = a x_t + b x0 + c change + d fresh

    alpha, sigma: the level of x_t. coefficients: (a, b, c, d), the step's row of the sampler's table. x0: the
    prediction, with the known pixels put in. noise: what x0 makes of x_t, the prediction of the noise. change: x0 less
    the prediction before it, and zeros in the first step. fresh: the new noise, zeros where the step adds none.
    """

    alpha: float
    sigma: float
    coefficients: tuple[float, float, float, float]
    x_t: Tensor
    x0: Tensor
    noise: Tensor
    change: Tensor
    fresh: Tensor
    x_s: Tensor


@torch.no_grad()
def take_apart(policy: DiffusionPolicy, state: SampleState) -> StepParts:
    """Return the next step of `state` in parts: x_s is the x_t after `policy.step`. The state, its noise streams
    included, stays as it is. Raises IndexError if the run is finished.
    """
    plan, index, x_t = state.plan, state.index, state.x_t
    count = len(state)
    guidance = torch.full((count,), state.step_guidance, dtype=torch.float64)
    x0, _ = policy.denoise(x_t, plan.network_time[index].expand(count), state.carry, state.condition, guidance)
    x0 = apply_known([state], x0)
    alpha, sigma = expand_rows(x_t, plan.t.alpha[index, None], plan.t.sigma[index, None])
    # A steep schedule can round sigma to 0, where the noise has no part in x_t.
    noise = (x_t - alpha * x0) / sigma.clamp(min=torch.finfo(sigma.dtype).tiny)
    before = state.carry["x0"] if state.carry else None
    fresh = state.with_noise_rewound().draw_noise()
    x_s = update(x_t, x0, before, fresh, plan.table[index].expand(count, 4))
    change = torch.zeros_like(x0) if before is None else x0 - before
    level = plan.t.alpha[index].item(), plan.t.sigma[index].item()
    return StepParts(*level, tuple(plan.table[index].tolist()), x_t, x0, noise, change, fresh, x_s)


class Amplified(NamedTuple):
    """image: [B,C,H,W], the image in x_t made visible. width: the standard deviation in pixels of the Gaussian that it
    was blurred with, 0 for none. gain: what it was multiplied by after that; below 1 / alpha where more would show only
    noise.
    """

    image: Tensor
    width: float
    gain: float


def amplify(x_t: Tensor, alpha: float, sigma: float) -> Amplified:
    """Return x_t [B,C,H,W], of this level, with the image in it made visible. Nothing but x_t is used.

    x_t / alpha holds the image at its full contrast, in noise of sigma / alpha. A Gaussian of width w averages some
    4 pi w² pixels, which divides the noise by 2 sqrt(pi) w and leaves what is larger than w. The width is the one that
    brings the noise down to QUIET, but at most an eighth of the image.
    """
    alpha = max(alpha, 1e-12)
    width = min(sigma / alpha / (TWO_ROOT_PI * QUIET), x_t.shape[-1] / 8)
    if width < NARROWEST:
        return Amplified(x_t / alpha, 0.0, 1 / alpha)
    gain = min(1 / alpha, TWO_ROOT_PI * width / sigma)  # noise of 1 fills the range
    return Amplified(gaussian_blur(x_t, width) * gain, width, gain)


def gaussian_blur(images: Tensor, width: float) -> Tensor:
    """Return images [B,C,H,W] blurred with a Gaussian of standard deviation `width` in pixels. Near the border, the
    average is over the pixels inside.
    """
    for axis in (-1, -2):
        at = torch.arange(images.shape[axis], dtype=images.dtype, device=images.device)
        weights = torch.exp(-((at[:, None] - at) ** 2) / (2 * width**2))  # [N,N]
        weights = weights / weights.sum(dim=1, keepdim=True)
        images = (images.transpose(axis, -1) @ weights.T).transpose(axis, -1)
    return images
