"""SampleState: the images of one request on their way from noise, and how the states of many requests are joined.

The images of a state share a plan and are at the same step of it; states of different requests may be at any step.
Everything that a step changes is a value here and is returned anew, except the noise streams, which advance in place.

A run may start from an image instead of from pure noise, and may keep a part of it. The known pixels replace those of
every x0 that the network predicts, before the sampler's update: whatever the sampler, x_t then holds the image at the
noise level of the step in those pixels, and the last x0 holds the image itself.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from dp.diffusion.guidance import needs_both
from dp.diffusion.noise import NoiseStream, draw, make_streams
from dp.diffusion.plan import Plan
from dp.diffusion.samplers import expand_rows
from dp.diffusion.settings import SampleSettings

TensorDict = dict[str, Tensor]  # tensors with the same leading axis [B, ...]


@dataclass(frozen=True)
class Step:
    """One step of a run. `index` counts from 1 to `timesteps`; `time` and `time_next` (after the time difference) lie
    in [0, 1]; `log_snr` is the level at `time`, finite. `x_t` [B,C,H,W], or [B,C,L] of sequences, is the network's
    input, unbounded; `x0` its prediction in [-1, 1].
    """

    index: int
    timesteps: int
    time: float
    time_next: float
    log_snr: float
    x_t: Tensor
    x0: Tensor


@dataclass(frozen=True)
class SampleState:
    """index: the next step, from 0. x_t: [B,C,H,W], or [B,C,L] of sequences, which have one axis also below. carry: x0
    [B,C,H,W] of the last network call, and the latents [B,N,D] of its conditional branch and of its unconditional one,
    `latents_none`, zeros for one that did not run; None before the first call. streams: the noise stream of each image.
    known: `image` [B,C,H,W] in [-1, 1] and `mask` [B,1,H,W], True where the image is kept; None if nothing is.
    condition: the class of each image, [B] int64, or its observation, [B,O,F], on the CPU (`dp.diffusion.conditions`);
    zeros for none. guidance: its weight in the plan's guided steps.
    """

    plan: Plan
    index: int
    x_t: Tensor
    carry: TensorDict | None
    streams: Sequence[NoiseStream]
    known: TensorDict | None
    condition: Tensor
    guidance: float = 1.0

    def __len__(self) -> int:
        return len(self.x_t)

    def __getitem__(self, rows: slice) -> SampleState:
        per_row = {"streams": self.streams[rows], "condition": self.condition[rows]}
        return replace(self._map(lambda tensor: tensor[rows]), **per_row)

    def repeated(self, count: int) -> SampleState:
        """Return the state with each image `count` times, one after the other. The copies share a noise stream."""
        streams = [stream for stream in self.streams for _ in range(count)]
        per_row = {"streams": streams, "condition": self.condition.repeat_interleave(count)}
        return replace(self._map(lambda tensor: tensor.repeat_interleave(count, dim=0)), **per_row)

    def cloned(self) -> SampleState:
        """Return a copy with its own tensors. Those that a step returns are views of its whole batch, which they keep
        in memory.
        """
        return self._map(torch.clone)

    def _map(self, change: Callable[[Tensor], Tensor]) -> SampleState:
        carry, known = (
            tensors and {key: change(value) for key, value in tensors.items()} for tensors in (self.carry, self.known)
        )
        return replace(self, x_t=change(self.x_t), carry=carry, known=known)

    @property
    def step_guidance(self) -> float:
        """Return the guidance of the next step: 1 where that is not guided."""
        return self.guidance if self.plan.guided[self.index] else 1.0

    @property
    def network_rows(self) -> int:
        """Return how many rows the next step takes in the network call: two for each image with both branches."""
        return len(self) + int(needs_both(self.condition, self.step_guidance).sum())

    def split(self, most_rows: int) -> list[SampleState]:
        """Return the state in parts of at most `most_rows` rows of the next network call, or of one image."""
        if self.network_rows <= most_rows:
            return [self]
        most = max(1, most_rows // 2) if self.network_rows > len(self) else most_rows
        return [self[i : i + most] for i in range(0, len(self), most)]

    @property
    def is_finished(self) -> bool:
        return self.index == len(self.plan)

    @property
    def nbytes(self) -> int:
        return sum(tensor.nbytes for tensor in [self.x_t, *(self.carry or {}).values(), *(self.known or {}).values()])

    def with_noise_rewound(self) -> SampleState:
        """Return the state with its noise streams as they were before the current step. A step that failed may have
        drawn its noise already.
        """
        streams = [stream.restarted() for stream in self.streams]
        for _ in range(1 + int(self.plan.draws[: self.index].sum())):
            draw(streams, self.x_t)
        return replace(self, streams=streams)

    def draw_noise(self) -> Tensor:
        """Draw the fresh noise of the next step [B,C,H,W]; zeros, without a draw, where the step adds none."""
        return draw(self.streams, self.x_t) if self.plan.draws[self.index] else torch.zeros_like(self.x_t)

    def advanced(self, x_s: Tensor, carry: TensorDict) -> tuple[SampleState, Step]:
        """Return the state after a step to `x_s`, and the record of that step."""
        t, s = self.plan.t.at(self.index), self.plan.s.at(self.index)
        after = replace(self, index=self.index + 1, x_t=x_s, carry=carry)
        numbers = after.index, len(self.plan), t.t.item(), s.t.item(), t.log_snr.item()
        return after, Step(*numbers, self.x_t, carry["x0"])


def init_state(
    plan: Plan, settings: SampleSettings, like: Tensor, start: Tensor | None = None, mask: Tensor | None = None
) -> SampleState:
    """Return the state of a new run of images like `like` [0,C,H,W], or of sequences like [0,C,L]. Each image's noise
    at t = 1 comes from its own seed. With `start` [B or 1,C,H,W] in [0, 1] and a strength below 1, the run starts from
    that image with noise added. mask [B or 1,1,H,W] or [H,W], for sequences [B or 1,1,L] or [L]: True where the image
    is kept. Raises ValueError for shapes that do not fit.
    """
    streams, shape = make_streams(settings), like.shape[1:]
    label = {"condition": condition_of(settings), "guidance": settings.guidance}
    x_t = draw(streams, like.new_empty(len(streams), *shape))
    if start is None:
        if settings.strength < 1 or mask is not None:
            raise ValueError("a strength below 1, or a mask, needs a start: the image to start from")
        return SampleState(plan, 0, x_t, None, streams, None, **label)
    image = broadcast_rows("start", start, (len(streams), *shape)).to(like) * 2 - 1
    if settings.strength < 1:
        alpha, sigma = expand_rows(x_t, plan.t.alpha[:1], plan.t.sigma[:1])
        x_t = alpha * image + sigma * x_t
    known = None
    if mask is not None:
        mask = mask[None] if mask.ndim == len(shape) - 1 else mask
        mask = broadcast_rows("mask", mask, (len(streams), 1, *shape[1:]))
        known = {"image": image, "mask": mask.to(like.device).bool()}
    return SampleState(plan, 0, x_t, None, streams, known, **label)


def condition_of(settings: SampleSettings) -> Tensor:
    """Return the condition of each image: its class [B], or its observation [B,O,F]."""
    if settings.observation is None:
        return torch.tensor(settings.labels)
    observation = torch.tensor(settings.observation)
    return observation.expand(settings.batch_size, *observation.shape[-2:])


def broadcast_rows(name: str, given: Tensor, shape: tuple[int, ...]) -> Tensor:
    """Return `given` expanded to `shape`. It has that shape, or one row of it, with or without the leading axis."""
    rows = given[None] if given.ndim == len(shape) - 1 else given
    if rows.shape[1:] != shape[1:] or len(rows) not in (1, shape[0]):
        raise ValueError(f"{name} must be {shape} or {shape[1:]}, got {tuple(given.shape)}")
    return rows.expand(shape)


# ----------------------------------------------------------------------------
# The states of many requests in one network call


def join(parts: Sequence[TensorDict]) -> TensorDict:
    return {key: torch.cat([part[key] for part in parts]) for key in parts[0]}


def split(whole: TensorDict, sizes: Sequence[int]) -> list[TensorDict]:
    pieces = {key: value.split(list(sizes)) for key, value in whole.items()}
    return [{key: piece[i] for key, piece in pieces.items()} for i in range(len(sizes))]


def join_plans(states: Sequence[SampleState]) -> tuple[Tensor, Tensor]:
    """Return what each image's plan says of its next step: the network's time [B], and the row of the table [B,4]."""
    sizes = torch.tensor([len(state) for state in states])
    times = torch.stack([state.plan.network_time[state.index] for state in states])
    rows = torch.stack([state.plan.table[state.index] for state in states])
    return times.repeat_interleave(sizes), rows.repeat_interleave(sizes, dim=0)


def join_guidance(states: Sequence[SampleState]) -> tuple[Tensor, Tensor]:
    """Return each image's condition, [B] or [B,O,F], zeros for none, and its guidance in the next step [B] float64."""
    guidance = torch.tensor([state.step_guidance for state in states], dtype=torch.float64)
    sizes = torch.tensor([len(state) for state in states])
    return torch.cat([state.condition for state in states]), guidance.repeat_interleave(sizes)


def join_carries(states: Sequence[SampleState]) -> TensorDict | None:
    """Join the carries of all states, with zeros (which mean none) for those at their first step; None if all are."""
    given = next((state.carry for state in states if state.carry is not None), None)
    if given is None:
        return None
    return join(
        [
            state.carry or {key: value.new_zeros(len(state), *value.shape[1:]) for key, value in given.items()}
            for state in states
        ]
    )


def join_noise(states: Sequence[SampleState]) -> Tensor | None:
    """Draw the fresh noise of all states' next step [B,C,H,W]; None if none of them adds any."""
    if not any(state.plan.draws[state.index] for state in states):
        return None
    return torch.cat([state.draw_noise() for state in states])


def apply_known(states: Sequence[SampleState], x0: Tensor) -> Tensor:
    """Return the joint prediction [B,C,H,W] with the known pixels of each state put in."""
    if all(state.known is None for state in states):
        return x0
    parts = x0.split([len(state) for state in states])
    known = [state.known for state in states]
    return torch.cat([torch.where(k["mask"], k["image"], part) if k else part for k, part in zip(known, parts)])
