"""Rows: the images of one request on their way, and how the rows of many requests are put together and taken apart.

A request's rows share a plan and stand at the same step of it; rows of different requests may stand anywhere.
Everything that a step changes is a value here and is returned anew, except the random streams, which advance in place.

A run may start from a picture instead of from noise alone, and may keep a part of it. Kept pixels are put into every x0
that the network predicts, before the sampler's step: x_t then goes on to hold, at those pixels, the picture at the
noise level of the step, whatever the sampler, and the last x0 is the picture itself there.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from dp.noise import Stream, draw, streams
from dp.samplers import Plan, Sampler, SampleSettings, coefficients
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
    None before the first. memory: the sampler's. streams: the random numbers of each image. kept: `image` [B,C,H,W] in
    [-1, 1] and `mask` [B,1,H,W], True where it is kept; None where nothing is.
    """

    plan: Plan
    index: int
    x_t: Tensor
    carry: Fields | None
    memory: Fields
    streams: Sequence[Stream]
    kept: Fields | None = None

    def __len__(self) -> int:
        return len(self.x_t)

    def __getitem__(self, rows: slice) -> Rows:
        part = self._each(lambda tensor: tensor[rows])
        return replace(part, streams=self.streams[rows])

    def detached(self) -> Rows:
        """With tensors of their own: those that a tick returns are views of its whole batch, and keep all of it."""
        return self._each(torch.clone)

    def _each(self, change: Callable[[Tensor], Tensor]) -> Rows:
        fields = [f and {key: change(value) for key, value in f.items()} for f in (self.carry, self.memory, self.kept)]
        return replace(self, x_t=change(self.x_t), carry=fields[0], memory=fields[1], kept=fields[2])

    def cut(self, most: int) -> list[Rows]:
        """In parts of at most `most` rows."""
        return [self] if len(self) <= most else [self[i : i + most] for i in range(0, len(self), most)]

    @property
    def is_finished(self) -> bool:
        return self.index == len(self.plan)

    @property
    def nbytes(self) -> int:
        fields = [self.carry or {}, self.memory, self.kept or {}]
        return self.x_t.nbytes + sum(tensor.nbytes for field in fields for tensor in field.values())

    def rewound(self) -> Rows:
        """The same rows, their random streams made anew and brought to where they stood before the step at hand: one
        that failed half way may have drawn its noise already.
        """
        anew = [stream.anew() for stream in self.streams]
        for _ in range(1 + sum(map(self.plan.needs_noise, range(self.index)))):
            draw(anew, self.x_t)
        return replace(self, streams=anew)

    def noise(self) -> Tensor:
        """The fresh noise of the next step [B,C,H,W]; zeros, and nothing drawn, where the step adds none."""
        return draw(self.streams, self.x_t) if self.plan.needs_noise(self.index) else torch.zeros_like(self.x_t)

    def with_kept(self, x0: Tensor) -> Tensor:
        """The network's x0 [B,C,H,W], with the kept pixels in their place."""
        return torch.where(self.kept["mask"], self.kept["image"], x0) if self.kept else x0

    def step(self, x0: Tensor) -> Step:
        """The record of the step at which these rows stand, once the network has answered with x0."""
        t, s = self.plan.t.at(self.index), self.plan.s.at(self.index)
        return Step(self.index + 1, len(self.plan), t.t.item(), s.t.item(), t.log_snr.item(), self.x_t, x0)


def begin(
    plan: Plan, settings: SampleSettings, like: Tensor, start: Tensor | None = None, mask: Tensor | None = None
) -> Rows:
    """The rows of a new run of images like `like` [0,C,H,W]. Each image's noise at t = 1 comes from its own seed; with
    `start` [B or 1,C,H,W] in [0, 1] and a strength below 1, the run sets out from that picture under so much noise.
    mask [B or 1,1,H,W] or [H,W]: True where it is kept. Raises ValueError for shapes that do not fit.
    """
    own, shape = streams(settings), like.shape[1:]
    x_t = draw(own, like.new_empty(len(own), *shape))
    if start is None:
        if settings.strength < 1 or mask is not None:
            raise ValueError("a strength below 1, or a mask, needs a start: the picture to set out from")
        return Rows(plan, 0, x_t, None, plan.sampler.init(x_t), own)
    image = fitting("start", start, (len(own), *shape)).to(like) * 2 - 1
    if settings.strength < 1:
        alpha, sigma = coefficients(x_t, plan.t.alpha[:1], plan.t.sigma[:1])
        x_t = alpha * image + sigma * x_t
    kept = None
    if mask is not None:
        mask = mask[None] if mask.ndim == 2 else mask
        kept = {"image": image, "mask": fitting("mask", mask, (len(own), 1, *shape[1:])).to(like.device).bool()}
    return Rows(plan, 0, x_t, None, plan.sampler.init(x_t), own, kept)


def fitting(name: str, given: Tensor, shape: tuple[int, ...]) -> Tensor:
    """`given` for every row: of that shape, or of one row of it, with or without the leading axis."""
    rows = given[None] if given.ndim == len(shape) - 1 else given
    if rows.shape[1:] != shape[1:] or len(rows) not in (1, shape[0]):
        raise ValueError(f"{name} must be {shape} or {shape[1:]}, got {tuple(given.shape)}")
    return rows.expand(shape)


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
