"""Convert the sampling controls' values to the library's settings and back, for every tab that samples."""

from __future__ import annotations

import html
import secrets
from collections.abc import Mapping
from typing import Any

import gradio as gr

from dp.checkpoints.catalog import Entry
from dp.diffusion.schedules import SCHEDULES
from dp.diffusion.settings import IMAGES, SAMPLER, TIMESTEPS, SampleSettings
from dp.serving.engine import Engine
from dp.system.records import readable
from dp.system.text import escape
from dp.system.validation import MAX_SEED, message_of, quote, within
from dp.ui.auth import permission
from dp.ui.sampling.links import NAMES, NUMBERS, number

MAX_IMAGES, MAX_TIMESTEPS, MAX_TIME_DIFFERENCE_STEPS = 64, 1000, 3
TRAINED = "trained"  # the schedule choice that means the checkpoint's own
SAMPLERS = [
    ("DPM-Solver++(2M)", "dpmpp_2m"),
    ("DDIM", "ddim"),
    ("DDPM", "ddpm"),
    ("DPM-Solver++(2M) SDE", "dpmpp_2m_sde"),
]


def read(
    engine: Engine,
    checkpoint: str,
    images: int,
    timesteps: int,
    sampler: str,
    noise_schedule: str,
    time_difference_steps: float,
    eta: float,
    seed: int | None,
    random_seed: bool,
    walk_to: str | int | None = None,
    strength: float = 1.0,
) -> tuple[str, SampleSettings]:
    """The page's values -> checkpoint and settings, with the seed decided. A bad value is a gr.Error that names it."""
    try:
        images = within("Images", images, 1, MAX_IMAGES)
        timesteps = within("Timesteps", timesteps, 1, MAX_TIMESTEPS)
        steps = within("Time difference", time_difference_steps, 0, MAX_TIME_DIFFERENCE_STEPS, whole=False)
        if seed is None and not random_seed:
            raise ValueError("Seed is empty: enter a whole number or select Random seed")
        seed = secrets.randbelow(MAX_SEED) if random_seed else within("Seed", seed, 0, MAX_SEED - 1)
        walk_to = number(walk_to.strip()) if isinstance(walk_to, str) else walk_to
        walk_to = None if walk_to in (None, "") else within("Walk to seed", walk_to, 0, MAX_SEED - 1)
        if walk_to is not None:
            images = within("Images of a walk", images, 2, MAX_IMAGES)
        config_of(engine, checkpoint)
        strength = within("Strength", strength, 0, 1, whole=False)
        settings = SampleSettings(
            batch_size=images,
            timesteps=timesteps,
            sampler=sampler,
            noise_schedule=None if noise_schedule == TRAINED else noise_schedule,
            time_difference=min(steps * strength / timesteps, 1.0),  # more than the whole run is the whole run
            eta=within("eta", eta, 0, 1, whole=False),
            seed=seed,
            walk_to=walk_to,
            strength=strength,
        )
    except ValueError as error:
        raise user_error(error) from None
    return checkpoint, settings


def restored(engine: Engine, made_with: Mapping[str, Any]) -> dict[str, Any]:
    """Convert settings from a PNG or a link, named as in `SampleSettings`, to the arguments of `read`. Settings that
    are missing get the page's own values. Raises gr.Error for settings that the page could not have made.
    """
    checkpoint = made_with.get("checkpoint", next(iter(usable_names(engine)), None))
    images, timesteps = made_with.get("batch_size", IMAGES), made_with.get("timesteps", TIMESTEPS)
    try:
        policy = config_of(engine, checkpoint)["policy"]
        difference = made_with.get("time_difference", 0)
        strength = within("Strength", made_with.get("strength", 1), 0.01, 1, whole=False)
        steps = within("time_difference", difference, 0, 1, whole=False) / strength
        steps *= within("Timesteps", timesteps, 1, MAX_TIMESTEPS)
        name, kwargs = made_with.get("noise_schedule"), made_with.get("schedule_kwargs") or {}
        own = policy.get("noise_schedule", "sigmoid"), policy.get("schedule_kwargs", {})
        schedule = TRAINED if name is None or (name, kwargs) == own else name
        if schedule != TRAINED and kwargs:
            raise ValueError(f"the page has no control for these schedule keywords: {quote(kwargs)}")
    except ValueError as error:
        raise user_error(error) from None
    values = {
        "checkpoint": checkpoint,
        "images": images,
        "timesteps": timesteps,
        "sampler": made_with.get("sampler", SAMPLER),
        "noise_schedule": schedule,
        "time_difference_steps": round(steps, 6),
        "eta": made_with.get("eta", 0),
        "seed": made_with.get("seed"),
        "random_seed": made_with.get("seed") is None,
        "walk_to": made_with.get("walk_to"),
        "strength": strength,
    }
    read(engine, **values)
    return values


def of_link(engine: Engine, query: Mapping[str, str]) -> tuple[dict[str, Any], str]:
    """A link's query -> the settings in it that can be used, named as in `SampleSettings`, and a sentence about those
    that are ignored, as markup; empty where there are none.
    """
    usable: dict[str, Any] = {}
    ignored = []
    for key in [key for key in NAMES if key in query]:
        value = number(query[key]) if key in NUMBERS else query[key]
        try:
            if key == "difference":
                steps = within("Time difference", value, 0, MAX_TIME_DIFFERENCE_STEPS, whole=False)
                value = min(steps / usable.get("timesteps", TIMESTEPS), 1.0)
            restored(engine, usable | {NAMES[key]: value})
        except (ValueError, gr.Error) as error:
            ignored.append(f"{key} ({error.message if isinstance(error, gr.Error) else user_error(error).message})")
        else:
            usable[NAMES[key]] = value
    return usable, f"Ignored from the link: {'; '.join(ignored)}." if ignored else ""


def unchecked(control: gr.components.Component) -> None:
    """Let the control's value through as it comes: `read` checks all of them, and its messages name the setting. (Once
    its choices have been updated, a page has Gradio's own check again.)
    """
    control.preprocess = lambda payload: payload


def entries(engine: Engine) -> list[Entry]:
    """The checkpoints that the visitor of the handler under way may know of: those of training runs are for those only
    who may train.
    """
    may_train = permission.refusal() is None
    return [entry for entry in engine.checkpoints() if may_train or not entry.run]


def usable_names(engine: Engine) -> list[str]:
    return [entry.name for entry in entries(engine) if not entry.problem]


def schedule_choices(engine: Engine, checkpoint: str) -> list[tuple[str, str]]:
    """The trained schedule first, and said so; then the others with their default keywords."""
    policy = config_of(engine, checkpoint)["policy"]
    name, kwargs = policy.get("noise_schedule", "sigmoid"), policy.get("schedule_kwargs", {})
    own = ", ".join([name, *(f"{key} {value:g}".replace("-", "−") for key, value in kwargs.items())])
    return [(f"As trained ({own})", TRAINED)] + [(other, other) for other in SCHEDULES if other != name or kwargs]


def describe(engine: Engine, checkpoint: str | None) -> str:
    """One line about a checkpoint, and one for each folder among the checkpoints that cannot be used."""
    if checkpoint is None:
        return "No checkpoints found: put a checkpoint folder into `checkpoints/` and reload." + problems(engine)
    config = config_of(engine, checkpoint)
    network, policy = config["network"], config["policy"]
    facts = [f"{network['image_size']} × {network['image_size']} pixels", f"predicts {policy.get('objective', 'v')}"]
    facts += [f"{config['step']:,} training steps"] if "step" in config else []
    facts += [f"trained on {config['dataset']}"] if "dataset" in config else []
    return escape(" · ".join(facts)) + problems(engine)


def problems(engine: Engine) -> str:
    broken = [entry for entry in entries(engine) if entry.problem]
    return "".join(f"\n\n⚠️ {escape(entry.problem.replace(readable(str(entry.path)), entry.name))}" for entry in broken)


def config_of(engine: Engine, checkpoint: str) -> dict[str, Any]:
    """The checked config of a checkpoint. Raises ValueError, with the names there are, where it cannot be had."""
    configs = {entry.name: entry.config for entry in entries(engine) if not entry.problem}
    if not isinstance(checkpoint, str) or checkpoint not in configs:
        raise ValueError(f"there is no checkpoint {quote(checkpoint)}; there are: {', '.join(configs) or 'none'}")
    return configs[checkpoint]


def user_error(error: object) -> gr.Error:
    """An error for the page, which shows its text as markup: and it may quote what a stranger sent."""
    words = message_of(error) if isinstance(error, Exception) else str(error)
    return gr.Error(html.escape(readable(words), quote=False), print_exception=False)
