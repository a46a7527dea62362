"""The variants of a comparison: runs that differ in one setting and start from the same noise."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from dp.diffusion.settings import SampleSettings
from dp.serving.engine import Engine
from dp.system.validation import check_number, quote
from dp.ui.sampling import page_values
from dp.ui.sampling.links import parse_number

MAX_VARIANTS = 6
SHORT_RUNS = "short runs"  # this axis shows x0 at step k of a long run next to the result of a k-step run
FAST = "fast"  # this axis shows a fast model in few steps, and the model that it was made from
CLASS_AXES = ("class", "guidance")  # for models with classes
PARAMETERS = {  # an axis -> its parameter of `page_values.parse_settings`
    "checkpoint": "checkpoint",
    "timesteps": "timesteps",
    FAST: "timesteps",
    "sampler": "sampler",
    "schedule": "noise_schedule",
    "difference": "time_difference_steps",
    "eta": "eta",
    "class": "label",
    "guidance": "guidance",
}

Run = tuple[str, SampleSettings]


class Variant(NamedTuple):
    """One column of a comparison. until: the last step of the run that is shown; None shows the whole run."""

    label: str
    checkpoint: str
    settings: SampleSettings
    until: int | None = None

    @property
    def calls(self) -> int:
        """Return the number of model calls until the last image that is shown."""
        return self.until or self.settings.timesteps

    @property
    def run(self) -> Run:
        """Return a key that is equal for variants that show the same run."""
        return self.checkpoint, self.settings


def make_variants(engine: Engine, axis: str, chosen: Sequence[Any], values: Mapping[str, Any]) -> list[Variant]:
    """Return one variant for each value in `chosen` of `axis` (a key of PARAMETERS, or SHORT_RUNS). values: the
    arguments of `page_values.parse_settings` that all variants share. Raises gr.Error.
    """
    if axis not in [*PARAMETERS, SHORT_RUNS]:
        raise page_values.user_error(f"cannot compare by {quote(axis)}: choose {', '.join(PARAMETERS)} or {SHORT_RUNS}")
    if axis in CLASS_AXES:
        check_has_classes(engine, values["checkpoint"])
    chosen = chosen if isinstance(chosen, list) else []
    chosen = [value for i, value in enumerate(chosen) if value not in chosen[:i]]
    if axis not in ("sampler", "schedule", "checkpoint", "class"):
        chosen = [parse_number(value) if isinstance(value, str) else value for value in chosen]
    most = most_values(axis)
    if not 1 <= len(chosen) <= most:
        raise page_values.user_error(f"Values: choose 1 to {most} to compare, got {len(chosen)}")
    values = dict(values)
    if axis == "eta":
        values["sampler"] = "ddim"  # the only sampler with an eta
    shared = values | ({"label": page_values.ANY, "guidance": None} if axis == "class" else {})
    if axis == FAST:  # the controls of sampler and eta are hidden
        shared |= {"sampler": page_values.SAMPLER, "eta": 0}
    _, first = page_values.parse_settings(engine, **shared)
    values |= {"seed": first.seed, "random_seed": False}  # variants share a random seed, too
    if axis == SHORT_RUNS:
        return make_pairs(engine, chosen, first.timesteps, values)
    if axis == FAST:
        return make_fast(engine, chosen, values)
    variants = []
    for value in chosen:
        changed = values | {PARAMETERS[axis]: value}
        if axis == "class" and value == page_values.ANY:
            changed["guidance"] = None  # there is nothing to guide to
        run = page_values.parse_settings(engine, **changed)
        variants.append(Variant(label_of(engine, axis, changed), *run))
    if axis == "checkpoint" and len(set(chosen)) == 1:
        raise page_values.user_error("choose two checkpoints or more; if there is only one, load or train another")
    return variants


def most_values(axis: str) -> int:
    """Return how many values of an axis can be compared."""
    return {SHORT_RUNS: MAX_VARIANTS // 2, FAST: MAX_VARIANTS - 1}.get(axis, MAX_VARIANTS)


def make_fast(engine: Engine, steps: Sequence[Any], values: dict[str, Any]) -> list[Variant]:
    """Return a variant of a fast model for each number of `steps`, and one of its original with that model's own
    settings: of the checkpoint in `values`, or of the first that is or has one.
    """
    pairs = page_values.fast_pairs(engine)
    if not pairs:
        raise page_values.user_error("there is no fast model here, or not the model that it was made from")
    fast, original = next((pair for pair in pairs if values["checkpoint"] in pair), pairs[0])
    own = {"timesteps": page_values.TIMESTEPS, "sampler": page_values.SAMPLER, "eta": 0, "checkpoint": original}
    sampling = page_values.config_of(engine, original).get("sampling", {})
    own |= {key: sampling[key] for key in ("timesteps", "sampler") if key in sampling}
    few = own | {"checkpoint": fast, "sampler": page_values.CONSISTENCY}
    runs = [(fast, few | {"timesteps": k}) for k in steps] + [(f"original {original}", own)]
    return [
        Variant(
            f"{name}, {of['timesteps']} step{'s' * (of['timesteps'] != 1)}",
            *page_values.parse_settings(engine, **values | of),
        )
        for name, of in runs
    ]


def check_has_classes(engine: Engine, checkpoint: str) -> None:
    try:
        config = page_values.config_of(engine, checkpoint)
    except ValueError as error:
        raise page_values.user_error(error) from None
    if not page_values.class_choices(config):
        raise page_values.user_error(f"{checkpoint} has no classes to compare: choose another checkpoint")


def make_pairs(engine: Engine, steps: Sequence[Any], whole: int, values: dict[str, Any]) -> list[Variant]:
    """Return two variants for each k in `steps`: the run of `whole` steps, shown up to step k, and a run of k steps."""
    try:
        steps = sorted(check_number("Step k", k, 1, whole - 1) for k in steps)
    except ValueError as error:
        raise page_values.user_error(error) from None
    variants = []
    for k in steps:
        variants.append(Variant(f"step {k} of {whole}", *page_values.parse_settings(engine, **values), until=k))
        variants.append(
            Variant(f"whole {k}-step run", *page_values.parse_settings(engine, **values | {"timesteps": k}))
        )
    return variants


def label_of(engine: Engine, axis: str, values: Mapping[str, Any]) -> str:
    """Return the label of the variant with these arguments of `page_values.parse_settings`."""
    value = values[PARAMETERS[axis]]
    if axis == "sampler":
        return dict(map(reversed, page_values.SAMPLERS)).get(value, str(value))
    if axis == "schedule":
        choices = page_values.schedule_choices(engine, values["checkpoint"])
        return next((label for label, choice in choices if choice == value), str(value))
    if axis == "checkpoint":
        return next((title for title, name in page_values.checkpoint_choices(engine) if name == value), str(value))
    if axis == "class":
        return str(value) or "any class"
    words = {"timesteps": "{} steps", "difference": "difference {}", "eta": "eta {}", "guidance": "guidance {}"}[axis]
    return words.format(f"{value:g}" if isinstance(value, float) else value)
