"""Candidates: the training images that are still possible at each step of a run.

At every step the noisy image x_t says how likely each training image is as its origin (`ExactDenoiser.posterior`). At
first nearly all of them are possible; at some step one is left. The images of the run itself come from its own network,
so a network that has learned more than copying ends elsewhere, near some of the candidates.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import NamedTuple

import torch
from torch import Tensor

from dp.diffusion.exact import ExactDenoiser, effective_count
from dp.diffusion.policy import DiffusionPolicy
from dp.diffusion.state import SampleState


class Candidates(NamedTuple):
    """The candidates of B images at K steps; `steps` are their numbers, from 1. counts: the effective number of
    training images that are possible, [K,B]. likeliest: the indices of the M likeliest, most likely first, and their
    weights, [K,B,M] each. x0: the prediction in the last of these steps, [B,C,H,W] in [-1, 1].
    """

    steps: list[int]
    counts: Tensor
    likeliest: Tensor
    weights: Tensor
    x0: Tensor


@torch.no_grad()
def find_candidates(
    policy: DiffusionPolicy, exact: ExactDenoiser, state: SampleState, steps: Collection[int], most: int = 8
) -> Candidates:
    """Take the steps of a `state` that is at its first, and return the candidates before each of `steps`, at least one
    number from 1, up to `most` at each. `exact` knows the training images of `policy`, under the same noise schedule.
    """
    counts, likeliest, weights, at = [], [], [], []
    while state.index < max(steps):
        if state.index + 1 in steps:
            time = state.plan.network_time[state.index].expand(len(state))
            posterior = exact.posterior(state.x_t, time, state.condition)  # [B,N]
            counts.append(effective_count(posterior))
            top = posterior.topk(min(most, posterior.shape[1]))
            likeliest.append(top.indices)
            weights.append(top.values)
            at.append(state.index + 1)
        [(state, step)] = policy.step([state])
    return Candidates(at, *map(torch.stack, (counts, likeliest, weights)), step.x0)


@torch.no_grad()
def nearest_images(exact: ExactDenoiser, x0: Tensor) -> tuple[Tensor, Tensor]:
    """Return the index of the training image that is nearest to each of x0 [B,C,H,W] in [-1, 1], and the root mean
    square of the difference, with black to white as 1; [B] each. Where the training set has mirror images, the nearer
    of the two counts.
    """
    versions = [x0, x0.flip(-1)] if exact.mirrored else [x0]
    images = exact.images.to(torch.float32)
    distances = torch.stack([torch.cdist(version.flatten(1).to(images), images) for version in versions]).amin(dim=0)
    found = distances.min(dim=1)
    return exact.first_equal[found.indices].cpu(), (found.values / (2 * images.shape[1] ** 0.5)).cpu()
