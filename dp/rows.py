"""Rows: the images of one request on their way, and how the rows of many requests are put together and taken apart.

A request's rows share a plan and stand at the same step of it; rows of different requests may stand anywhere.
Everything that a step changes is a value here and is returned anew, except the random streams, which advance in place.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from dp.samplers import Plan, Sampler
from dp.schedules import Level

Fields = dict[str, Tensor]  # tensors with the same leading axis [B, ...]


@dataclass(frozen=True)
class Step:
    """One network call of a run. `index` counts from 1 to `timesteps`; `time` and `time_next` (after the time
    difference) lie in [0, 1]; `log_snr` is the level at `time`, finite. `x_t` [B,C,H,W] is what the network was given,
    unbounded; `x0` its prediction in [-1, 1].
    """

    index: int
    timesteps: int
    time: float
    time_next: float
    log_snr: float
    x_t: Tensor
    x0: Tensor


@dataclass(frozen=True)
class Rows:
    """index: the next step, from 0. x_t: [B,C,H,W]. carry: x0 [B,C,H,W] and latents [B,N,D] of the last network call,
    None before the first. memory: the sampler's. generators: one random stream per image.
    """

    plan: Plan
    index: int
    x_t: Tensor
    carry: Fields | None
    memory: Fields
    generators: Sequence[torch.Generator]

    def __len__(self) -> int:
        return len(self.x_t)

    def __getitem__(self, rows: slice) -> Rows:
        carry = self.carry and {key: value[rows] for key, value in self.carry.items()}
        memory = {key: value[rows] for key, value in self.memory.items()}
        return Rows(self.plan, self.index, self.x_t[rows], carry, memory, self.generators[rows])

    def detached(self) -> Rows:
        """With tensors of their own: those that a tick returns are views of its whole batch, and keep all of it."""
        copies = [{key: value.clone() for key, value in (fields or {}).items()} for fields in (self.carry, self.memory)]
        return replace(self, x_t=self.x_t.clone(), carry=copies[0] or None, memory=copies[1])

    def cut(self, most: int) -> list[Rows]:
        """In parts of at most `most` rows."""
        return [self] if len(self) <= most else [self[i : i + most] for i in range(0, len(self), most)]

    @property
    def is_finished(self) -> bool:
        return self.index == len(self.plan)

    @property
    def nbytes(self) -> int:
        return sum(tensor.nbytes for tensor in (self.x_t, *(self.carry or {}).values(), *self.memory.values()))

    def rewound(self) -> Rows:
        """The same rows, their random streams made anew and brought to where they stood before the step at hand: one
        that failed half way may have drawn its noise already.
        """
        generators = [image_generator(generator.initial_seed()) for generator in self.generators]
        for _ in range(1 + sum(map(self.plan.needs_noise, range(self.index)))):
            draw(generators, self.x_t)
        return replace(self, generators=generators)

    def noise(self) -> Tensor:
        """The fresh noise of the next step [B,C,H,W]; zeros, and nothing drawn, where the step adds none."""
        return draw(self.generators, self.x_t) if self.plan.needs_noise(self.index) else torch.zeros_like(self.x_t)

    def step(self, x0: Tensor) -> Step:
        """The record of the step at which these rows stand, once the network has answered with x0."""
        t, s = self.plan.t.at(self.index), self.plan.s.at(self.index)
        return Step(self.index + 1, len(self.plan), t.t.item(), s.t.item(), t.log_snr.item(), self.x_t, x0)


def image_generator(seed: int) -> torch.Generator:
    """The random stream of one image: its noise at t = 1, then one draw for each step that needs noise. On the CPU, so
    that a seed is the same image on every device.
    """
    return torch.Generator("cpu").manual_seed(int(seed))


def draw(generators: Sequence[torch.Generator], like: Tensor) -> Tensor:
    """Standard normal noise of the shape of `like` [B,C,H,W], each row from its own stream."""
    noise = torch.stack([torch.randn(like.shape[1:], generator=generator) for generator in generators])
    return noise.to(like.dtype).to(like.device)


def join_carries(batch: Sequence[Rows]) -> Fields | None:
    """The carries of all rows in one, zeros (which mean none) for requests at their first step; None if all are."""
    given = next((r.carry for r in batch if r.carry is not None), None)
    if given is None:
        return None
    none = {key: torch.zeros_like(value[:1]) for key, value in given.items()}
    return join(
        [r.carry or {key: value.expand(len(r), *value.shape[1:]) for key, value in none.items()} for r in batch]
    )


def step_group(sampler: Sampler, group: Sequence[Rows], x0s: Sequence[Tensor]) -> list[tuple[Tensor, Fields]]:
    """One step of `sampler` for the rows of every request in `group`, each at its own level: (x_s, memory) of each."""
    sizes = [len(r) for r in group]
    t = join_levels([r.plan.t.at(r.index) for r in group], sizes)
    s = join_levels([r.plan.s.at(r.index) for r in group], sizes)
    noise = None
    if sampler.is_stochastic:
        noise = torch.cat([r.noise() for r in group])
    x_t, memory = torch.cat([r.x_t for r in group]), join([r.memory for r in group])
    x_s, memory = sampler.step(x_t, torch.cat(list(x0s)), t, s, noise, memory)
    return list(zip(x_s.split(sizes), split(memory, sizes)))


def join_levels(levels: Sequence[Level], sizes: Sequence[int]) -> Level:
    """One level for each request -> one for each row, [B]."""
    return Level(*(torch.cat([v.expand(n) for v, n in zip(values, sizes)]) for values in zip(*levels)))


def join(parts: Sequence[Fields]) -> Fields:
    return {key: torch.cat([part[key] for part in parts]) for key in parts[0]}


def split(whole: Fields, sizes: Sequence[int]) -> list[Fields]:
    pieces = {key: value.split(list(sizes)) for key, value in whole.items()}
    return [{key: piece[i] for key, piece in pieces.items()} for i in range(len(sizes))]
