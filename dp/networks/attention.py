"""Inspect a RIN: how strongly its latents read from each patch of the image at one step of a run."""

from __future__ import annotations

import torch
from torch import Tensor

from dp.diffusion.policy import DiffusionPolicy
from dp.diffusion.state import SampleState
from dp.networks.rin import LatentNetwork


@torch.no_grad()
def read_attention(policy: DiffusionPolicy, state: SampleState) -> Tensor:
    """Return the read attention in the next step of `state`, [B,depth,M,N] on the CPU, averaged over heads. M is the
    number of latents and N the number of patches, row by row; each [N] sums to 1. Of a guided image it is the
    conditional branch's. Raises ValueError if the network is not a RIN.
    """
    if not isinstance(policy.model, LatentNetwork):
        raise ValueError(
            f"attention can be shown only for a RIN, not for a {type(policy.model).__name__}: it has no latents"
        )
    time = state.plan.network_time[state.index].expand(len(state))
    *_, blocks = policy.predict(state.x_t, time, state.carry, state.condition, return_attention=True)
    return torch.stack([weights.float().mean(dim=1) for weights in blocks], dim=1).cpu()


def total_variation(maps: Tensor) -> float:
    """Return the mean total variation, 0 to 1, between two different maps of maps [B,M,N] whose rows sum to 1."""
    count = maps.shape[1]
    distances = torch.cdist(maps, maps, p=1) / 2  # [B,M,M]
    return (distances.sum(dim=(1, 2)) / max(count * (count - 1), 1)).mean().item()
