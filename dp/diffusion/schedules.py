"""Noise schedules: continuous time t in [0, 1] <-> gamma, the signal power that is left.

A schedule is a frozen dataclass with two elementwise maps, `gamma(t)` and its closed-form inverse `time(gamma)`;
everything else (alpha, sigma, log-SNR) is derived once, in `level`. The convention of the whole project is fixed here:

    x_t = alpha x0 + sigma eps,   alpha = scale sqrt(gamma),   sigma = sqrt(1 - gamma),   log_snr = log(alpha² / sigma²)

with t = 1 pure noise and t = 0 the image. All of it is float64 on the CPU, on one value per image: in float32 a steep
sigmoid rounds 1 - gamma to 0 on several grid points, and inf - inf follows. Nothing here knows an image or a device.

Source: Chen, "On the Importance of Noise Scheduling for Diffusion Models", arXiv 2301.10972, Algorithm 1 and Table 1.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any, NamedTuple

import torch
from torch import Tensor

from dp.system.validation import is_number, quote

TINY = torch.finfo(torch.float64).tiny  # the floor under sigma², so that log_snr stays finite where gamma is 1


class Level(NamedTuple):
    """A noise level for each row: five [B] float64 tensors on the CPU. `alpha` already holds the policy's `scale`."""

    t: Tensor
    gamma: Tensor
    alpha: Tensor
    sigma: Tensor
    log_snr: Tensor

    def at(self, index) -> Level:
        """Return the same five values at `index`: an integer, a slice or a mask over the rows."""
        return Level(*(value[index] for value in self))


def level(schedule: Schedule, t: Tensor, scale: float = 1.0) -> Level:
    """Return the noise level of `schedule` at t [B] in [0, 1], with the signal scaled by `scale` in (0, 1]. Raises
    ValueError if it is not finite, which an extreme `end - start` or a tiny `scale` can cause.
    """
    t = t.to("cpu", torch.float64)
    gamma = schedule.gamma(t)
    alpha, sigma2 = scale * gamma.sqrt(), 1 - gamma
    log_snr = 2 * alpha.log() - sigma2.clamp(min=TINY).log()
    if not log_snr.isfinite().all():  # not finite if any other value is not
        raise ValueError(
            f"the noise levels of {schedule} with scale={scale} are not finite; choose less extreme values"
        )
    return Level(t, gamma, alpha, sigma2.sqrt(), log_snr)


def checked(schedule: Schedule, scale: float = 1.0) -> Schedule:
    """Return `schedule`. Raises ValueError unless its levels, and the times that its inverse gives, are finite."""
    at = level(schedule, torch.linspace(0, 1, 17, dtype=torch.float64, device="cpu"), scale)
    if not schedule.time(at.gamma).isfinite().all():
        raise ValueError(f"the inverse of {schedule} is not finite; choose less extreme keywords")
    return schedule


# ----------------------------------------------------------------------------
# The schedules. Each is gamma(t) = (v_end - v(u)) / (v_end - v_start), u = t (end - start) + start, for a simple v.


@dataclass(frozen=True)
class Linear:
    """gamma = 1 - t."""

    clip_min: float = 1e-9

    def __post_init__(self):
        _check_clip(self.clip_min)

    def gamma(self, t: Tensor) -> Tensor:
        return (1 - t).clamp(self.clip_min, 1)

    def time(self, gamma: Tensor) -> Tensor:
        return (1 - gamma).clamp(0, 1)


@dataclass(frozen=True)
class _Curve:
    """The common part of cosine and sigmoid: a segment of an elementary curve `v`, rescaled so that gamma falls from 1
    to 0.
    """

    start: float
    end: float
    tau: float = 1.0
    clip_min: float = 1e-9

    def __post_init__(self):
        _check_clip(self.clip_min)
        if not 0 < self.tau < math.inf:
            raise ValueError(f"tau must be positive and finite, got {self.tau}")
        if not -math.inf < self.start < self.end < math.inf:
            raise ValueError(f"start must be less than end, got start={self.start} and end={self.end}")
        if not self._ends().diff().abs() > TINY:
            raise ValueError(f"with start={self.start}, end={self.end} and tau={self.tau} all levels are the same")
        checked(self)

    def gamma(self, t: Tensor) -> Tensor:
        v_start, v_end = self._ends()
        u = t * (self.end - self.start) + self.start
        return ((v_end - self._v(u)) / (v_end - v_start)).clamp(self.clip_min, 1)

    def time(self, gamma: Tensor) -> Tensor:
        v_start, v_end = self._ends()
        u = self._v_inverse(v_end - gamma * (v_end - v_start))
        return ((u - self.start) / (self.end - self.start)).clamp(0, 1)

    def _ends(self) -> Tensor:
        return self._v(torch.tensor([self.start, self.end], dtype=torch.float64, device="cpu"))


@dataclass(frozen=True)
class Cosine(_Curve):
    """v(u) = cos(u π/2)^(2 tau), with 0 <= start < end <= 1."""

    start: float = 0.0
    end: float = 1.0

    def __post_init__(self):
        if not (self.start >= 0 and self.end <= 1):
            raise ValueError(
                f"start and end of the cosine schedule must lie in [0, 1], got start={self.start} and end={self.end}"
            )
        super().__post_init__()

    def _v(self, u: Tensor) -> Tensor:
        # In floating point cos(π/2) can be just below 0, and a fractional power of that is NaN everywhere.
        return (u * math.pi / 2).cos().clamp(min=0) ** (2 * self.tau)

    def _v_inverse(self, v: Tensor) -> Tensor:
        return (v.clamp(min=0) ** (1 / (2 * self.tau))).clamp(max=1).acos() * 2 / math.pi


@dataclass(frozen=True)
class Sigmoid(_Curve):
    """v(u) = sigmoid(u / tau)."""

    start: float = -3.0
    end: float = 3.0

    def _v(self, u: Tensor) -> Tensor:
        return (u / self.tau).sigmoid()

    def _v_inverse(self, v: Tensor) -> Tensor:
        return self.tau * v.clamp(0, 1).logit()


Schedule = Linear | Cosine | Sigmoid
SCHEDULES: dict[str, type[Schedule]] = {"linear": Linear, "cosine": Cosine, "sigmoid": Sigmoid}


def make_schedule(name: str, kwargs: Mapping[str, Any] | None = None) -> Schedule:
    """Return the schedule of that name. Raises ValueError for an unknown name or keyword, or a value out of range."""
    if name not in list(SCHEDULES):
        raise ValueError(f"unknown noise schedule {quote(name)}; choose one of: {', '.join(SCHEDULES)}")
    kwargs = {} if kwargs is None else kwargs
    if not isinstance(kwargs, Mapping):
        raise ValueError(f"schedule_kwargs must map keywords to numbers, got {quote(kwargs)}")
    numbers = {}
    known = [field.name for field in fields(SCHEDULES[name])]
    for key, value in kwargs.items():
        if key not in known:
            has = f"keyword {quote(key)} (= {quote(value)})"
            raise ValueError(f"the {name} schedule has no {has}; it takes: {', '.join(known)}")
        if not is_number(value):
            raise ValueError(f"{key} of the {name} schedule must be a number, got {quote(value)}")
        numbers[key] = float(value)
    return SCHEDULES[name](**numbers)


def _check_clip(clip_min: float):
    if not 0 < clip_min < 1:
        raise ValueError(f"clip_min must lie strictly between 0 and 1, got {clip_min}")
