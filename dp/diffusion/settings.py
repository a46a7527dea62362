"""SampleSettings: the settings of a sampling run, checked before anything is computed."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from numbers import Integral
from typing import Any

from dp.diffusion.conditions import Observation, has_tokens, parse_observation
from dp.diffusion.samplers import SAMPLERS
from dp.diffusion.schedules import make_schedule
from dp.system.validation import MAX_SEED, MAX_TIMESTEPS, check_integer, is_number, quote

# The app's and the command line's defaults. The sampler and the number of steps are those of benchmarks/steps.py, see
# benchmarks/README.md: with 2M, more than 20 steps score no better.
IMAGES, TIMESTEPS, SAMPLER = 16, 20, "dpmpp_2m"
MAX_GUIDANCE = 20
OBJECTIVES = ("x0", "eps", "v")  # what a network can be trained to predict


@dataclass(frozen=True)
class SampleSettings:
    """The settings of `DiffusionPolicy.sample`. None stands for the policy's own value, see `with_defaults`. Raises
    ValueError, with the value, for anything out of range; keywords of a schedule are checked once it is named.

    batch_size: number of images, at least 1. timesteps: steps, 1 to 100,000. sampler: a name in SAMPLERS.
    noise_schedule, schedule_kwargs: as in `make_schedule`; they travel together. time_difference: in units of t, 0 to
    1. eta: DDIM's noise, 0 to 1. seed: image i has seed + i; 0 <= seed < 2**31. walk_to: interpolate from the noise of
    `seed` to that of this seed instead, for at least 2 images. strength: the t from which the grid runs, above 0; below
    1 the run starts from an image (Meng et al. 2021, arXiv 2108.01073). label: the class of all images, or one per
    image; they count from 1, and 0 or None means no class. guidance: the weight of the class, 0 to 20, see
    `dp.diffusion.guidance`; 1 is the plain conditional model. guidance_interval: the network's times that are guided,
    (low, high) in [0, 1]. observation: [O,F] for all samples or [batch_size,O,F], see `dp.diffusion.conditions`; it may
    be a tensor, an array or nested sequences, and is kept as tuples.
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
    label: int | Sequence[int] | None = None
    guidance: float = 1.0
    guidance_interval: tuple[float, float] = (0.0, 1.0)
    observation: Observation | None = None

    def __post_init__(self):
        check_integer("batch_size", self.batch_size, 1)
        if self.timesteps is not None:
            check_integer("timesteps", self.timesteps, 1, MAX_TIMESTEPS)
        if self.seed is not None:
            check_integer("seed", self.seed, 0, MAX_SEED - 1)
        if self.walk_to is not None:
            check_integer("walk_to", self.walk_to, 0, MAX_SEED - 1)
            check_integer("batch_size of an interpolation", self.batch_size, 2)
        if not is_number(self.strength) or not 0 < self.strength <= 1:
            raise ValueError(f"strength must be above 0 and at most 1, got {quote(self.strength)}")
        if self.sampler is not None and self.sampler not in list(SAMPLERS):
            raise ValueError(f"unknown sampler {quote(self.sampler)}; choose one of: {', '.join(SAMPLERS)}")
        if self.time_difference is not None and not (
            is_number(self.time_difference) and 0 <= self.time_difference <= 1
        ):
            words = "time_difference is in units of t and must lie in [0, 1]"
            raise ValueError(f"{words}, got {quote(self.time_difference)}")
        if not is_number(self.eta) or not 0 <= self.eta <= 1:
            raise ValueError(f"eta must lie in [0, 1], got {quote(self.eta)}")
        if self.eta and self.sampler not in (None, "ddim"):
            raise ValueError(f"eta = {self.eta} does not apply to the {self.sampler} sampler; only ddim takes it")
        if self.noise_schedule is not None:
            make_schedule(self.noise_schedule, self.schedule_kwargs)
        if self.observation is not None:
            object.__setattr__(self, "observation", parse_observation(self.observation, self.batch_size))
        self._check_guidance()

    def _check_guidance(self) -> None:
        if self.label is not None and not isinstance(self.label, Integral):
            labels = list(self.label) if isinstance(self.label, Iterable) and not isinstance(self.label, str) else []
            if len(labels) != self.batch_size:
                expected = f"one class, or one for each of the {self.batch_size} images"
                raise ValueError(f"label must be {expected}, got {quote(self.label)}")
            object.__setattr__(self, "label", tuple(labels))
        for label in self.labels:
            check_integer("label", label, 0)
        if not is_number(self.guidance) or not 0 <= self.guidance <= MAX_GUIDANCE:
            raise ValueError(f"guidance must lie in [0, {MAX_GUIDANCE}], got {quote(self.guidance)}")
        if self.guidance != 1 and not any(self.labels) and not has_tokens(self.observation):
            raise ValueError(f"guidance = {self.guidance} needs a label: without a class there is nothing to guide to")
        bounds = self.guidance_interval
        is_pair = isinstance(bounds, (tuple, list)) and len(bounds) == 2 and all(map(is_number, bounds))
        if not is_pair or not 0 <= bounds[0] <= bounds[1] <= 1:
            rule = "guidance_interval must be (low, high) with 0 <= low <= high <= 1"
            raise ValueError(f"{rule}, got {quote(bounds)}")
        object.__setattr__(self, "guidance_interval", tuple(bounds))

    @property
    def most_rows(self) -> int:
        """Return the most rows that a network call of the run has: two for each image where it is guided."""
        return self.batch_size * (1 if self.guidance in (0, 1) else 2)

    @property
    def labels(self) -> tuple[int, ...]:
        """Return the class of each image, 0 for none."""
        given = self.label or 0
        return given if isinstance(given, tuple) else (given,) * self.batch_size

    def with_defaults(self, own: SampleSettings) -> SampleSettings:
        """Return the settings with each None, except the seed, replaced by the policy's own value. A schedule's name
        and its keywords travel together: neither means the policy's, a name alone means that schedule's defaults,
        keywords alone mean the policy's schedule with those keywords.
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
