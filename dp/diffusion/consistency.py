"""Consistency tuning: make a trained diffusion model fast. Geng et al. 2024, "Consistency Models Made Easy", arXiv
2406.14548.

A consistency function gives every point of a path of the probability-flow ODE the same x0, that of its end, so one call
replaces the whole run. A diffusion model predicts the mean of all x0 that are possible, which is that end only where
little noise is left. Tuning starts from there: at a random time t, the model's x0 is drawn to its own x0 at a time r a
little earlier, for the same image and the same noise. At r = 0 that is the image itself, and from there the ends spread
to all times. It needs neither a second network nor a derivative in time.
"""

from __future__ import annotations

import torch
from torch import Tensor

from dp.diffusion.samplers import sample_axes
from dp.diffusion.schedules import Level, Schedule, level

FIRST, LAST = 16, 256  # q^stage of the paper, at the beginning and at the end of tuning
ANCHOR = 0.3  # ratio of noise to signal below which the target is always the image
HUBER = 1e-3  # RMS error below which the loss is quadratic


def earlier(schedule: Schedule, at: Level, scale: float, progress: float) -> Level:
    """Return the levels [B] of the targets for levels `at` [B]. progress: of tuning, from 0 to 1.

    Geng et al. 2024, sec. 3.3, with the paper's t, the ratio of noise to signal: r / t = 1 - n(t) / q^stage, where n(t)
    = 1 + 8 sigmoid(-t). Here q^stage grows continuously. And r = 0 below ANCHOR, which ties the model to the images:
    there, the mean of all possible x0 is close to the end of the path.
    """
    stage = FIRST * (LAST / FIRST) ** progress
    noise = at.sigma / at.alpha
    ratio = 1 - (1 + 8 * torch.sigmoid(-noise)) / stage
    noise = torch.where(noise < ANCHOR, 0.0, noise * ratio)
    r = schedule.time(1 / (1 + (scale * noise) ** 2))
    return level(schedule, torch.where(noise > 0, torch.minimum(r, at.t), 0.0), scale)


def loss_weight(at: Level) -> Tensor:
    """Return the weight [B] of the distance between two x0 at levels `at` [B]: 1 / sigma, which makes it that between
    two v. Bounded at 20, where next to no noise is left. The paper's weight grows faster there.
    """
    return 1 / at.sigma.clamp(min=0.05)


def pseudo_huber(error: Tensor) -> Tensor:
    """Return the pseudo-Huber norm [B] of errors [B,C,H,W]: Song & Dhariwal 2023, arXiv 2310.14189, eq. 8, of the root
    mean square over the pixels, whose gradient is about as large for each image, however large its error.
    """
    return (error.square().mean(dim=sample_axes(error)) + HUBER**2).sqrt() - HUBER
