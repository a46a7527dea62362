"""Inspect a RIN: how strongly its latents read from each patch of the image at one step of a run."""

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
    """Return the read attention in the next step of `state`, [B,depth,M,N] on the CPU, averaged over heads. M is the
    number of latents and N the number of patches, row by row; each [N] sums to 1. Of a guided image it is the
    conditional branch's. Raises ValueError if the network is not a RIN.
    """
    if not isinstance(policy.model, RIN):
        raise ValueError(
            f"attention can be shown only for a RIN, not for a {type(policy.model).__name__}: it has no latents"
        )
    time = state.plan.network_time[state.index].expand(len(state))
    *_, blocks = policy.predict(state.x_t, time, state.carry, state.condition, return_attention=True)
    return torch.stack([weights.float().mean(dim=1) for weights in blocks], dim=1).cpu()


def replay(policy: DiffusionPolicy, state: SampleState, index: int) -> SampleState:
    """Return the state that is about to take step `index` (from 1), computed from a `state` before its first step.
    Raises ValueError if the run has no such step.
    """
    if not 1 <= index <= len(state.plan):
        raise ValueError(f"step must lie in 1 to {len(state.plan)}, the steps of this run; got {quote(index)}")
    for _ in range(index - 1):
        [(state, _)] = policy.step([state])
    return state


def attention_at_step(
    policy: DiffusionPolicy, settings: SampleSettings, row: int, index: int, start: Tensor | None, mask: Tensor | None
) -> Tensor:
    """Return the read attention for image `row` at step `index` (from 1) of a run with these settings, [depth,M,N].
    Only this image is sampled again up to that step, because images do not depend on the rest of their batch. Raises
    ValueError if there is no such image or step, or the network is not a RIN.
    """
    state = policy.init_state(settings, start, mask)[row : row + 1]
    if not len(state):
        raise ValueError(f"image must lie in 0 to {settings.batch_size - 1}, the images of this run; got {quote(row)}")
    return read_attention(policy, replay(policy, state, index))[0]
