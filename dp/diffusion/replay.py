"""A step of a run again, to look at it: images do not depend on the rest of their batch, so one is enough."""

from __future__ import annotations

import torch
from torch import Tensor

from dp.diffusion.policy import DiffusionPolicy
from dp.diffusion.settings import SampleSettings
from dp.diffusion.state import SampleState
from dp.system.validation import quote


def replay(policy: DiffusionPolicy, state: SampleState, index: int) -> SampleState:
    """Return the state that is about to take step `index` (from 1), computed from a `state` before its first step.
    Raises ValueError if the run has no such step.
    """
    if not 1 <= index <= len(state.plan):
        raise ValueError(f"step must lie in 1 to {len(state.plan)}, the steps of this run; got {quote(index)}")
    for _ in range(index - 1):
        [(state, _)] = policy.step([state])
    return state


def state_at_step(
    policy: DiffusionPolicy, settings: SampleSettings, row: int, index: int, start: Tensor | None, mask: Tensor | None
) -> SampleState:
    """Return the state of image `row` alone that is about to take step `index` (from 1) of a run with these settings.
    Raises ValueError if there is no such image or step.
    """
    state = policy.init_state(settings, start, mask)[row : row + 1]
    if not len(state):
        raise ValueError(f"image must lie in 0 to {settings.batch_size - 1}, the images of this run; got {quote(row)}")
    return replay(policy, state, index)


@torch.no_grad()
def predictions_by_branch(policy: DiffusionPolicy, state: SampleState) -> Tensor:
    """Return x0 in [-1, 1] as the network predicts it in the next step of `state` without the class, with it, and as
    guidance combines the two: [3,B,C,H,W].
    """
    time = state.plan.network_time[state.index].expand(len(state))
    weights = (0.0, 1.0, state.step_guidance)
    every = [torch.full((len(state),), weight, dtype=torch.float64) for weight in weights]
    return torch.stack([policy.denoise(state.x_t, time, state.carry, state.condition, weight)[0] for weight in every])
