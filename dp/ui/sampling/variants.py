"""The arms of a comparison: runs that differ in one thing and start from the same noise."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

from dp.diffusion.settings import SampleSettings
from dp.serving.engine import Engine
from dp.system.validation import quote, within
from dp.ui.sampling import page_values
from dp.ui.sampling.links import number

MOST = 6
SHORT_RUNS = "short runs"  # x0 at step k of N beside the end of a run of k steps
PLACES = {  # an axis -> the place of its setting among the arguments of `controls.read`
    "checkpoint": 0,
    "timesteps": 2,
    "sampler": 3,
    "schedule": 4,
    "difference": 5,
    "eta": 6,
}


Run = tuple[str, SampleSettings]


class Arm(NamedTuple):
    """until: the step at which what is shown of the run ends; None for all of it."""

    label: str
    checkpoint: str
    settings: SampleSettings
    until: int | None = None

    @property
    def calls(self) -> int:
        return self.until or self.settings.timesteps

    @property
    def run(self) -> Run:
        """What is the same for arms that show the same run."""
        return self.checkpoint, self.settings


def make_arms(engine: Engine, axis: str, chosen: Sequence[Any], *values: Any) -> list[Arm]:
    """The page's values, and those of `axis` (of `PLACES`, or SHORT_RUNS) to compare. What is bad is a gr.Error."""
    if axis not in [*PLACES, SHORT_RUNS]:
        raise page_values.complaint(f"there is no such thing to compare as {quote(axis)}")
    chosen = chosen if isinstance(chosen, list) else []
    chosen = [value for i, value in enumerate(chosen) if value not in chosen[:i]]
    if axis not in ("sampler", "schedule", "checkpoint"):
        chosen = [number(value) if isinstance(value, str) else value for value in chosen]
    most = MOST // 2 if axis == SHORT_RUNS else MOST
    if not 1 <= len(chosen) <= most:
        raise page_values.complaint(f"choose 1 to {most} values to compare, got {len(chosen)}")
    values = list(values)
    if axis == "eta":
        values[PLACES["sampler"]] = "ddim"  # the others have no such setting
    first = page_values.read(engine, *values)[1]
    values[-2:] = [first.seed, False]  # decided once, for all
    if axis == SHORT_RUNS:
        return pairs(engine, chosen, first.timesteps, values)
    arms = []
    for value in chosen:
        values[PLACES[axis]] = value
        run = page_values.read(engine, *values)
        arms.append(Arm(label_of(engine, axis, values), *run))
    return arms


def pairs(engine: Engine, steps: Sequence[Any], whole: int, values: list[Any]) -> list[Arm]:
    """For each k in `steps`: the run of `whole` steps, shown up to step k, and a run of k steps."""
    try:
        steps = sorted(within("Each step to look at", k, 1, whole - 1) for k in steps)
    except ValueError as error:
        raise page_values.complaint(error) from None
    arms = []
    for k in steps:
        arms.append(Arm(f"step {k} of {whole}", *page_values.read(engine, *values), until=k))
        short = list(values)
        short[PLACES["timesteps"]] = k
        arms.append(Arm(f"end of a {k}-step run", *page_values.read(engine, *short)))
    return arms


def label_of(engine: Engine, axis: str, values: Sequence[Any]) -> str:
    value = values[PLACES[axis]]
    if axis == "sampler":
        return dict(map(reversed, page_values.SAMPLERS)).get(value, str(value))
    if axis == "schedule":
        choices = page_values.schedule_choices(engine, values[0])
        return next((label for label, choice in choices if choice == value), str(value))
    if axis == "checkpoint":
        return str(value)
    words = {"timesteps": "{} steps", "difference": "difference {}", "eta": "eta {}"}[axis]
    return words.format(f"{value:g}" if isinstance(value, float) else value)
