"""Look inside a RIN: how much of each patch of the picture its latents read, at one step of a run."""

from __future__ import annotations

import torch
from torch import Tensor

from dp.diffusion.policy import DiffusionPolicy
from dp.diffusion.settings import SampleSettings
from dp.diffusion.state import SampleState
from dp.networks.rin import RIN
from dp.system.validation import quote


@torch.no_grad()
def read_attention(policy: DiffusionPolicy, state: SampleState) -> Tensor:
    """The read attention of the network call that `state` make next: [B,depth,M,N] on the host, averaged over heads. M
    latents, N patches row by row; every [N] sums to 1. Raises ValueError where the network has no latents to look into.
    """
    if not isinstance(policy.model, RIN):
        raise ValueError("this network has no latents that read from patches: there is nothing to look into")
    time = state.plan.network_time[state.index].expand(len(state))
    *_, blocks = policy.predict(state.x_t, time, state.carry, return_attention=True)
    return torch.stack([weights.float().mean(dim=1) for weights in blocks], dim=1).cpu()


def replay(policy: DiffusionPolicy, state: SampleState, index: int) -> SampleState:
    """`state` that have just begun, brought to where they make step `index`, from 1. Raises ValueError for others."""
    if not 1 <= index <= len(state.plan):
        raise ValueError(f"there is no step {quote(index)} in a run of {len(state.plan)}")
    for _ in range(index - 1):
        [(state, _)] = policy.step([state])
    return state


def look(
    policy: DiffusionPolicy, settings: SampleSettings, row: int, index: int, start: Tensor | None, mask: Tensor | None
) -> Tensor:
    """`read_attention` of image `row` at step `index` of the run of these settings: [depth,M,N]. An image alone is the
    image in the batch, so it is made again from its seed up to that step.
    """
    state = policy.init_state(settings, start, mask)[row : row + 1]
    if not len(state):
        raise ValueError(f"there is no image {quote(row)} in a run of {settings.batch_size}")
    return read_attention(policy, replay(policy, state, index))[0]
