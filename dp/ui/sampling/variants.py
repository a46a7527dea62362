"""The variants of a comparison: runs that differ in one setting and start from the same noise."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from dp.diffusion.settings import SampleSettings
from dp.serving.engine import Engine
from dp.system.validation import quote, within
from dp.ui.sampling import page_values
from dp.ui.sampling.links import number

MOST = 6
SHORT_RUNS = "short runs"  # the axis that shows x0 at step k of N beside the result of a k-step run
SETTINGS = {  # an axis -> its parameter of `page_values.read`
    "checkpoint": "checkpoint",
    "timesteps": "timesteps",
    "sampler": "sampler",
    "schedule": "noise_schedule",
    "difference": "time_difference_steps",
    "eta": "eta",
}

Run = tuple[str, SampleSettings]


class Variant(NamedTuple):
    """until: the last step of the run that is shown; None shows all of it."""

    label: str
    checkpoint: str
    settings: SampleSettings
    until: int | None = None

    @property
    def calls(self) -> int:
        return self.until or self.settings.timesteps

    @property
    def run(self) -> Run:
        """A key that is equal for variants that show the same run."""
        return self.checkpoint, self.settings


def make_variants(engine: Engine, axis: str, chosen: Sequence[Any], values: Mapping[str, Any]) -> list[Variant]:
    """Return one variant for each value in `chosen` of `axis` (a key of SETTINGS, or SHORT_RUNS). values: the arguments
    of `page_values.read` that all variants share. Raises gr.Error.
    """
    if axis not in [*SETTINGS, SHORT_RUNS]:
        raise page_values.user_error(f"cannot compare by {quote(axis)}: choose {', '.join(SETTINGS)} or {SHORT_RUNS}")
    chosen = chosen if isinstance(chosen, list) else []
    chosen = [value for i, value in enumerate(chosen) if value not in chosen[:i]]
    if axis not in ("sampler", "schedule", "checkpoint"):
        chosen = [number(value) if isinstance(value, str) else value for value in chosen]
    most = MOST // 2 if axis == SHORT_RUNS else MOST
    if not 1 <= len(chosen) <= most:
        raise page_values.user_error(f"choose 1 to {most} values to compare, got {len(chosen)}")
    values = dict(values)
    if axis == "eta":
        values["sampler"] = "ddim"  # the only sampler with an eta
    _, first = page_values.read(engine, **values)
    values |= {"seed": first.seed, "random_seed": False}  # all variants share a random seed, too
    if axis == SHORT_RUNS:
        return pairs(engine, chosen, first.timesteps, values)
    variants = []
    for value in chosen:
        changed = values | {SETTINGS[axis]: value}
        run = page_values.read(engine, **changed)
        variants.append(Variant(label_of(engine, axis, changed), *run))
    return variants


def pairs(engine: Engine, steps: Sequence[Any], whole: int, values: dict[str, Any]) -> list[Variant]:
    """For each k in `steps`: the run of `whole` steps, shown up to step k, and a run of k steps."""
    try:
        steps = sorted(within("Step k", k, 1, whole - 1) for k in steps)
    except ValueError as error:
        raise page_values.user_error(error) from None
    variants = []
    for k in steps:
        variants.append(Variant(f"step {k} of {whole}", *page_values.read(engine, **values), until=k))
        variants.append(Variant(f"end of a {k}-step run", *page_values.read(engine, **values | {"timesteps": k})))
    return variants


def label_of(engine: Engine, axis: str, values: Mapping[str, Any]) -> str:
    value = values[SETTINGS[axis]]
    if axis == "sampler":
        return dict(map(reversed, page_values.SAMPLERS)).get(value, str(value))
    if axis == "schedule":
        choices = page_values.schedule_choices(engine, values["checkpoint"])
        return next((label for label, choice in choices if choice == value), str(value))
    if axis == "checkpoint":
        return str(value)
    words = {"timesteps": "{} steps", "difference": "difference {}", "eta": "eta {}"}[axis]
    return words.format(f"{value:g}" if isinstance(value, float) else value)
