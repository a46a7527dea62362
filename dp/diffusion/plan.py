"""Plan: settings and a training schedule -> everything a run needs, computed once."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from dp.diffusion.samplers import SAMPLERS, is_stochastic
from dp.diffusion.schedules import Level, Schedule, level, make_schedule
from dp.diffusion.settings import SampleSettings


@dataclass(frozen=True, eq=False)
class Plan:
    """The K steps of a run. Step k (from 0) goes from level `t.at(k)` to `s.at(k)`.

    t, s: sampling levels, [K] each; s after the time difference. network_time: [K] float64, the time that the network
    receives. table: [K,4] float64, see `dp.diffusion.samplers`. draws: [K] bool, whether the step consumes fresh noise.
    It is kept apart from the table's last column, which may round to 0, so that a seed's later draws never shift.
    guided: [K] bool, whether each step's network time is in the guidance interval.
    """

    t: Level
    s: Level
    network_time: Tensor
    table: Tensor
    draws: Tensor
    guided: Tensor

    def __len__(self) -> int:
        return len(self.network_time)


def make_plan(settings: SampleSettings, trained: Schedule, scale: float = 1.0) -> Plan:
    """Return the plan of settings without any None (`with_defaults`), for a network trained with the schedule `trained`
    and an input scale in (0, 1]. Raises ValueError where a level is not finite.

    Times run from `strength` to 0 in equal intervals. The time difference then lowers each target (Chen et al. 2022,
    arXiv 2208.04202, sec. 2.3). The network knows only the schedule it was trained with, so under another one each
    level's gamma is mapped back to a time through the inverse of the trained schedule.
    """
    schedule = make_schedule(settings.noise_schedule, settings.schedule_kwargs)
    grid = torch.linspace(settings.strength, 0, settings.timesteps + 1, dtype=torch.float64)
    target = grid[1:] - settings.time_difference
    target = torch.where(target > 1e-12, target, 0.0)  # 0.3 - 3 / 10 is t = 0, though it rounds to 6e-17
    t, s = level(schedule, grid[:-1], scale), level(schedule, target, scale)
    network_time = t.t if schedule == trained else trained.time(t.gamma)
    low, high = settings.guidance_interval
    return Plan(
        t,
        s,
        network_time=network_time,
        table=SAMPLERS[settings.sampler](t, s, settings.eta),
        draws=(s.t > 0) & is_stochastic(settings.sampler, settings.eta),
        guided=(network_time >= low - 1e-9) & (network_time <= high + 1e-9),
    )
