"""Samplers: how a run goes from pure noise to an image, one step at a time, given the network's x0.

A sampler is a frozen dataclass of its settings with

    init(x_t) -> memory
    step(x_t [B,C,H,W], x0 [B,C,H,W], t: Level [B], s: Level [B], noise, memory) -> (x_s, memory)

where `t` is the level at which we are and `s < t` the level to which we go. Everything is per row: rows of one call may
stand at different times. `memory` is a dict of [B, ...] tensors that the caller keeps; `noise` [B,C,H,W] is an
argument, never drawn here. The network is not called here either: one call per step, outside, so that many requests can
share it.

Notation: lambda = log_snr / 2, and c = -expm1(log_snr_t - log_snr_s), the share of sigma_t's noise that the step from t
to s removes.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from numbers import Real
from typing import Any

import torch
from torch import Tensor

from dp.checks import MAX_SEED, MAX_TIMESTEPS, check_integer, quote
from dp.schedules import TINY, Level, Schedule, level, make_schedule

# What the app and the command line begin with. Sampler and steps are those of benchmarks/steps.py, see
# benchmarks/README.md: with 2M, more than 20 network calls score no better.
IMAGES, TIMESTEPS, SAMPLER = 16, 20, "dpmpp_2m"


@dataclass(frozen=True)
class DDPM:
    """Ancestral sampling. Ho et al. 2020, arXiv 2006.11239, eq. 6-7, in continuous time as Kingma et al. 2021, arXiv
    2107.00630, eq. 32-33.
    """

    @property
    def is_stochastic(self) -> bool:
        return True

    def init(self, x_t: Tensor) -> dict[str, Tensor]:
        return {}

    def step(self, x_t: Tensor, x0: Tensor, t: Level, s: Level, noise: Tensor, memory: dict[str, Tensor]):
        c = removed(t, s)
        # A step that reaches t = 0 adds no noise by itself, because sigma_s is 0 there.
        from_x_t, from_x0, spread = coefficients(x_t, s.alpha * (1 - c) / t.alpha, s.alpha * c, s.sigma * c.sqrt())
        return from_x_t * x_t + from_x0 * x0 + spread * noise, memory


@dataclass(frozen=True)
class DDIM:
    """Song et al. 2021, arXiv 2010.02502, eq. 12 and 16. eta = 0 is deterministic; eta = 1 has DDPM's variance."""

    eta: float = 0.0

    def __post_init__(self):
        if isinstance(self.eta, bool) or not isinstance(self.eta, Real) or not 0 <= self.eta <= 1:
            raise ValueError(f"eta must lie in [0, 1], got {quote(self.eta)}")

    @property
    def is_stochastic(self) -> bool:
        return self.eta > 0

    def init(self, x_t: Tensor) -> dict[str, Tensor]:
        return {}

    def step(self, x_t: Tensor, x0: Tensor, t: Level, s: Level, noise: Tensor | None, memory: dict[str, Tensor]):
        if not self.is_stochastic:
            return towards(x0, x_t, t, s, s.sigma), memory
        c = removed(t, s)
        (fresh,) = coefficients(x_t, s.sigma * self.eta * c.sqrt())
        return towards(x0, x_t, t, s, s.sigma * (1 - self.eta**2 * c).sqrt()) + fresh * noise, memory


@dataclass(frozen=True)
class DPMSolverPP2M:
    """DPM-Solver++(2M), the multistep solver of second order. Lu et al. 2022, arXiv 2211.01095, Algorithm 2.

    memory: `x0` [B,C,H,W] and `log_snr` [B] of the previous network call, and `seen` [B], False until there has been
    one.
    """

    @property
    def is_stochastic(self) -> bool:
        return False

    def init(self, x_t: Tensor) -> dict[str, Tensor]:
        b = len(x_t)
        return {
            "x0": torch.zeros_like(x_t),
            "log_snr": torch.zeros(b, dtype=torch.float64),
            "seen": torch.zeros(b, dtype=torch.bool),
        }

    def step(self, x_t: Tensor, x0: Tensor, t: Level, s: Level, noise: Tensor | None, memory: dict[str, Tensor]):
        # D is x0 extrapolated to the middle of the step in lambda, from this call and the one before. Not on the first
        # step, not where a clipped schedule stood still, and not on a step that reaches t = 0, where the middle lies at
        # infinity.
        past = t.log_snr - memory["log_snr"]
        usable = memory["seen"] & (s.sigma > 0) & (past > 0)
        ratio = torch.where(usable, (s.log_snr - t.log_snr) / (2 * torch.where(usable, past, 1.0)), 0.0)
        (ratio,) = coefficients(x_t, ratio)
        d = x0 + ratio * (x0 - memory["x0"])
        return towards(d, x_t, t, s, s.sigma), {"x0": x0, "log_snr": t.log_snr, "seen": torch.ones_like(memory["seen"])}


Sampler = DDPM | DDIM | DPMSolverPP2M
SAMPLERS: dict[str, type[Sampler]] = {"ddim": DDIM, "ddpm": DDPM, "dpmpp_2m": DPMSolverPP2M}


def towards(d: Tensor, x_t: Tensor, t: Level, s: Level, sigma: Tensor) -> Tensor:
    """alpha_s d + sigma eps, with eps = (x_t - alpha_t d) / sigma_t: the step from t to s if the image were `d`,
    keeping `sigma` [B] of x_t's own noise. With sigma = sigma_s it is DDIM at eta = 0, and the solver's update. It
    divides by no alpha, and is alpha_s d at sigma = 0.
    """
    # A steep schedule can round sigma_t to 0 above t = 0; sigma_s is 0 then too, and 0 / 0 must be 0.
    ratio = sigma / t.sigma.clamp(min=math.sqrt(TINY))
    keep, move = coefficients(x_t, ratio, s.alpha - t.alpha * ratio)
    return keep * x_t + move * d


def removed(t: Level, s: Level) -> Tensor:
    """c = 1 - SNR_t / SNR_s in [0, 1], [B]."""
    return -torch.expm1(t.log_snr - s.log_snr).clamp(max=0)


def coefficients(x: Tensor, *coefficients: Tensor) -> tuple[Tensor, ...]:
    """Coefficients [B], float64 on the CPU -> [B,1,1,1] in x's dtype, on x's device, in one transfer."""
    return torch.stack(coefficients).to(x.dtype).to(x.device)[..., None, None, None].unbind()


# ----------------------------------------------------------------------------
# What a caller may ask for, and the tables that a request turns into.


@dataclass(frozen=True)
class SampleSettings:
    """What `policy.sample` takes. None means the policy's own; `filled_from` fills it in. Every value is checked here,
    but for keywords of a schedule that is yet to be named.

    batch_size: number of images, at least 1. timesteps: network calls, 1 to 100,000. sampler: 'ddim', 'ddpm' or
    'dpmpp_2m'. noise_schedule, schedule_kwargs: as in `make_schedule`; they travel together. time_difference: in units
    of t, 0 to 1. eta: DDIM's noise, 0 to 1. seed: image i has seed + i; 0 <= seed < 2**31. walk_to: instead, the images
    are a walk on the sphere from the noise of `seed` to that of this one; at least 2. strength: the t from which the
    grid runs, above 0; below 1 the run sets out from a picture (Meng et al. 2021, arXiv 2108.01073).
    """

    batch_size: int = 16
    timesteps: int | None = None
    sampler: str | None = None
    noise_schedule: str | None = None
    schedule_kwargs: Mapping[str, Any] | None = None
    time_difference: float | None = None
    eta: float = 0.0
    seed: int | None = None
    walk_to: int | None = None
    strength: float = 1.0

    def __post_init__(self):
        check_integer("batch_size", self.batch_size, 1)
        if self.timesteps is not None:
            check_integer("timesteps", self.timesteps, 1, MAX_TIMESTEPS)
        if self.seed is not None:
            check_integer("seed", self.seed, 0, MAX_SEED - 1)
        if self.walk_to is not None:
            check_integer("walk_to", self.walk_to, 0, MAX_SEED - 1)
            check_integer("batch_size of a walk", self.batch_size, 2)
        if isinstance(self.strength, bool) or not isinstance(self.strength, Real) or not 0 < self.strength <= 1:
            raise ValueError(f"strength must lie above 0 and up to 1, got {quote(self.strength)}")
        if self.sampler is not None and self.sampler not in list(SAMPLERS):
            raise ValueError(f"unknown sampler {quote(self.sampler)}; choose one of: {', '.join(SAMPLERS)}")
        if self.time_difference is not None:
            value = self.time_difference
            if isinstance(value, bool) or not isinstance(value, Real) or not 0 <= value <= 1:
                raise ValueError(f"time_difference is in units of t and must lie in [0, 1], got {quote(value)}")
        DDIM(self.eta)
        if self.eta and self.sampler not in (None, "ddim"):
            raise ValueError(f"eta = {self.eta} has no meaning for the {self.sampler} sampler; only ddim takes it")
        if self.noise_schedule is not None:
            make_schedule(self.noise_schedule, self.schedule_kwargs)

    def filled_from(self, own: SampleSettings) -> SampleSettings:
        """Every None replaced by the policy's own value, but for the seed. A schedule's name and its keywords travel
        together: neither means the policy's, a name alone that schedule's defaults, keywords alone the policy's name.
        """
        name, kwargs = self.noise_schedule, self.schedule_kwargs
        if name is None:
            name, kwargs = own.noise_schedule, own.schedule_kwargs if kwargs is None else kwargs
        return replace(
            self,
            timesteps=own.timesteps if self.timesteps is None else self.timesteps,
            sampler=own.sampler if self.sampler is None else self.sampler,
            noise_schedule=name,
            schedule_kwargs=dict(kwargs or {}),
            time_difference=own.time_difference if self.time_difference is None else self.time_difference,
        )

    def make_sampler(self) -> Sampler:
        """The sampler of resolved settings."""
        return DDIM(self.eta) if self.sampler == "ddim" else SAMPLERS[self.sampler]()


@dataclass(frozen=True)
class Plan:
    """One request's tables, made once on admission; a tick only indexes them. Step k (from 0) goes from `t.at(k)` to
    `s.at(k)`.

    t, s: sampling levels, each [K]; s after the time difference. network_time: [K] float64, the time that the network
    is told.
    """

    sampler: Sampler
    t: Level
    s: Level
    network_time: Tensor

    def __len__(self) -> int:
        return len(self.network_time)

    def needs_noise(self, k: int) -> bool:
        return self.sampler.is_stochastic and self.s.t[k].item() > 0


def make_plan(
    sampler: Sampler,
    schedule: Schedule,
    trained: Schedule,
    timesteps: int,
    time_difference: float,
    scale: float,
    strength: float = 1.0,
) -> Plan:
    """Times run from `strength` to 0 in equal intervals; each target is then pulled down by the time difference
    (Chen et al. 2022, arXiv 2208.04202, sec. 2.3). The network knows only the schedule it was trained with, so under
    another one each level's gamma is carried back through the trained schedule's inverse.
    """
    grid = torch.linspace(strength, 0, timesteps + 1, dtype=torch.float64)
    target = grid[1:] - time_difference
    target = torch.where(target > 1e-12, target, 0.0)  # 0.3 - 3 / 10 reaches t = 0, though it rounds to 6e-17
    t, s = level(schedule, grid[:-1], scale), level(schedule, target, scale)
    return Plan(sampler, t, s, t.t if schedule == trained else trained.time(t.gamma))
