"""Convert the values of the sampling controls to the library's settings and back, for every tab that samples."""

from __future__ import annotations

import html
import secrets
from abc import ABCMeta
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import gradio as gr

from dp.checkpoints.catalog import CheckpointInfo
from dp.checkpoints.classes import classes_of, label_of
from dp.diffusion.schedules import SCHEDULES
from dp.diffusion.settings import IMAGES, SAMPLER, TIMESTEPS, SampleSettings
from dp.serving.backends import BACKENDS
from dp.serving.engine import Engine
from dp.serving.handle import RunHandle, Runner
from dp.system.records import readable
from dp.system.text import escape
from dp.system.validation import MAX_SEED, check_number, message_of, quote
from dp.ui import words
from dp.ui.auth import permission
from dp.ui.sampling.links import NAMES, NUMBERS, parse_number

MAX_IMAGES, MAX_TIMESTEPS, MAX_TIME_DIFFERENCE_STEPS = 64, 1000, 3
TRAINED = "trained"  # the choice of noise schedule that stands for the checkpoint's own
SAMPLERS = [
    ("DPM-Solver++(2M)", "dpmpp_2m"),
    ("DDIM", "ddim"),
    ("DDPM", "ddpm"),
    ("DPM-Solver++(2M) SDE", "dpmpp_2m_sde"),
]
CONSISTENCY = "consistency"  # the sampler of models tuned for few calls, and of no others
FAST_SAMPLERS = [("Consistency", CONSISTENCY), *SAMPLERS]
SAMPLER_TITLES = {value: title for title, value in FAST_SAMPLERS}
CLASSES_SHOWN = 3  # by name, of a run
ANY, EACH = "", "one of each"  # choices of the class, beside the names of the classes
MAX_GUIDANCE = 10  # on the page; the library's limit is higher


def parse_settings(
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
    label: str = ANY,
    guidance: float | None = None,
) -> tuple[str, SampleSettings]:
    """Return the checkpoint's name and the settings, with a seed drawn if `random_seed`.

    time_difference_steps: in steps, 0 to 3. walk_to: a seed, or None or "" for no interpolation. strength: 0 to 1.
    label: ANY, EACH, or the name or number of a class. guidance: None for the model's own. Raises gr.Error, which names
    the control, for a bad value.
    """
    try:
        images = check_number("Images", images, 1, MAX_IMAGES)
        timesteps = check_number("Timesteps", timesteps, 1, MAX_TIMESTEPS)
        steps = check_number("Time difference", time_difference_steps, 0, MAX_TIME_DIFFERENCE_STEPS, whole=False)
        if seed is None and not random_seed:
            raise ValueError("Seed is empty: enter a whole number or select Random seed")
        seed = secrets.randbelow(MAX_SEED) if random_seed else check_number("Seed", seed, 0, MAX_SEED - 1)
        walk_to = parse_number(walk_to.strip()) if isinstance(walk_to, str) else walk_to
        walk_to = None if walk_to in (None, "") else check_number("Walk to seed", walk_to, 0, MAX_SEED - 1)
        if walk_to is not None:
            images = check_number("Images of a walk", images, 2, MAX_IMAGES)
        config = config_of(engine, checkpoint)
        if sampler == CONSISTENCY and not is_fast(config):
            raise ValueError(f"{checkpoint} was not tuned for the sampler {CONSISTENCY!r}: choose another sampler")
        classes = parse_classes(config, label, guidance, images)
        strength = check_number("Strength", strength, 0, 1, whole=False)
        settings = SampleSettings(
            batch_size=images,
            timesteps=timesteps,
            sampler=sampler,
            noise_schedule=None if noise_schedule == TRAINED else noise_schedule,
            time_difference=min(steps * strength / timesteps, 1.0),  # the whole run at most
            eta=check_number("eta", eta, 0, 1, whole=False),
            seed=seed,
            walk_to=walk_to,
            strength=strength,
            **classes,
        )
    except ValueError as error:
        raise user_error(error) from None
    return checkpoint, settings


def parse_classes(config: Mapping[str, Any], name: str, guidance: float | None, images: int) -> dict[str, Any]:
    """Return the label, guidance and guidance interval of `SampleSettings`. Raises ValueError."""
    if not isinstance(name, str) or name == ANY:
        if guidance not in (None, 1):
            raise ValueError("Guidance needs a class: choose one, or set Guidance to 1")
        return {}
    names = classes_of(config)
    if name == EACH and names and EACH not in names:
        label: Any = tuple(1 + i % len(names) for i in range(images))
    else:
        label = label_of(name, names) or None
    guidance = own_guidance(config) if guidance is None else guidance
    guidance = check_number("Guidance", guidance, 0, MAX_GUIDANCE, whole=False) if label else 1
    return {"label": label, "guidance": guidance, "guidance_interval": own_interval(config)}


def is_fast(config: Mapping[str, Any]) -> bool:
    """Return whether a model was tuned to draw in a few calls."""
    return config.get("policy", {}).get("consistency", False)


def sampler_choices(config: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Return (title, name) of a model's samplers."""
    return FAST_SAMPLERS if is_fast(config) else SAMPLERS


def fast_pairs(engine: Engine) -> list[tuple[str, str]]:
    """Return the names of each fast model and of the model that it was made from, where the visitor may see both."""
    usable = [entry for entry in visible_checkpoints(engine) if not (entry.problem or entry.is_exact or entry.hub)]
    names = {f"{entry.path.parent.parent.name}/" * bool(entry.run) + entry.path.name: entry.name for entry in usable}
    pairs = [(entry.name, names.get(entry.config.get("original"))) for entry in usable if is_fast(entry.config)]
    return [(fast, original) for fast, original in pairs if original]


def own_interval(config: Mapping[str, Any]) -> tuple[float, float]:
    """Return the times in which the page guides a model."""
    low, high = config.get("sampling", {}).get("guidance_interval", (0.0, 1.0))
    return low, high


def class_choices(config: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Return (label, value) of the choices of the class; none for a model without classes."""
    names = classes_of(config)
    each = [] if EACH in names else [(EACH, EACH)]
    return [("any", ANY), *((name, name) for name in names), *each] if names else []


def saved_class(config: Mapping[str, Any], saved: Mapping[str, Any]) -> str:
    """Return the choice of the class for settings from a PNG or a link. Raises ValueError if the page has none, or if
    the model's classes are not those of the settings.
    """
    label, names = saved.get("label"), classes_of(config)
    if isinstance(label, str):  # from a link
        number = 0 if label == ANY else label_of(label, names) if label != EACH or EACH in names else None
        return EACH if number is None else names[number - 1] if number else ANY
    labels = [label] if isinstance(label, int) else label or [0]
    if not isinstance(labels, list) or not all(isinstance(one, int) and 0 <= one <= len(names) for one in labels):
        there = f"this model has {len(names)} classes" if names else "this model has no classes"
        raise ValueError(f"there is no class {quote(label)}: {there}")
    then = saved.get("classes")
    for one in set(labels) - {0}:
        was = then.get(str(one), names[one - 1]) if isinstance(then, dict) else names[one - 1]
        if was != names[one - 1]:
            raise ValueError(f"class {one} was {quote(was)}, and is {quote(names[one - 1])} in this model")
    if len(set(labels)) == 1:
        return names[labels[0] - 1] if labels[0] else ANY
    if labels == [1 + i % len(names) for i in range(len(labels))] and EACH not in names:
        return EACH
    raise ValueError(f"the page has no control for these classes of single images: {quote(labels)}")


def to_page_values(engine: Engine, saved: Mapping[str, Any]) -> dict[str, Any]:
    """Convert settings from a PNG or a link, named as in `SampleSettings`, to the arguments of `parse_settings`.

    Missing settings get the page's defaults. Raises gr.Error for settings that the page cannot show.
    """
    checkpoint = saved.get("checkpoint", next(iter(usable_checkpoints(engine)), None))
    images, timesteps = saved.get("batch_size", IMAGES), saved.get("timesteps", TIMESTEPS)
    try:
        config = config_of(engine, checkpoint)
        policy = config["policy"]
        difference = saved.get("time_difference", 0)
        strength = check_number("Strength", saved.get("strength", 1), 0.01, 1, whole=False)
        steps = check_number("time_difference", difference, 0, 1, whole=False) / strength
        steps *= check_number("Timesteps", timesteps, 1, MAX_TIMESTEPS)
        name, kwargs = saved.get("noise_schedule"), saved.get("schedule_kwargs") or {}
        own = policy.get("noise_schedule", "sigmoid"), policy.get("schedule_kwargs", {})
        schedule = TRAINED if name is None or (name, kwargs) == own else name
        label = saved_class(config, saved)
        guidance = saved.get("guidance")
        own_times = own_interval(config)  # meant by a link, which has none
        if guidance not in (None, 1) and tuple(saved.get("guidance_interval", own_times)) != own_times:
            raise ValueError("the page has no control for the interval of the guidance")
        if schedule != TRAINED and kwargs:
            raise ValueError(f"the page has no control for these schedule parameters: {quote(kwargs)}")
    except ValueError as error:
        raise user_error(error) from None
    values = {
        "checkpoint": checkpoint,
        "images": images,
        "timesteps": timesteps,
        "sampler": saved.get("sampler", SAMPLER),
        "noise_schedule": schedule,
        "time_difference_steps": round(steps, 6),
        "eta": saved.get("eta", 0),
        "seed": saved.get("seed"),
        "random_seed": saved.get("seed") is None,
        "walk_to": saved.get("walk_to"),
        "strength": strength,
        "label": label,
        "guidance": guidance if label and guidance is not None else own_guidance(config),
    }
    parse_settings(engine, **arguments_of(values))
    return values


def arguments_of(values: Mapping[str, Any]) -> dict[str, Any]:
    """Return the arguments of `parse_settings` from the controls' values: without a class, guidance does not count."""
    return dict(values) | ({} if values["label"] else {"guidance": None})


def count_rows(engine: Engine, saved: Mapping[str, Any]) -> int:
    """Return the network rows of a run with settings from a link, with the page's defaults for those that it lacks."""
    _, settings = parse_settings(engine, **arguments_of(to_page_values(engine, saved)))
    return settings.most_rows * settings.timesteps


def own_guidance(config: Mapping[str, Any]) -> float:
    """Return the guidance with which the page begins for a model."""
    return min(config.get("sampling", {}).get("guidance", 1), MAX_GUIDANCE)


def parse_link(engine: Engine, query: Mapping[str, str]) -> tuple[dict[str, Any], str]:
    """Return the valid settings of a link's query, named as in `SampleSettings`, and a sentence (as markup) that lists
    the invalid ones with the reasons, or "".
    """
    valid: dict[str, Any] = {}
    ignored = []
    for key in [key for key in NAMES if key in query]:
        value = parse_number(query[key]) if key in NUMBERS else query[key]
        try:
            if key == "difference":
                steps = check_number("Time difference", value, 0, MAX_TIME_DIFFERENCE_STEPS, whole=False)
                value = min(steps / valid.get("timesteps", TIMESTEPS), 1.0)
            to_page_values(engine, valid | {NAMES[key]: value})
        except (ValueError, gr.Error) as error:
            ignored.append(f"{key} ({error.message if isinstance(error, gr.Error) else user_error(error).message})")
        else:
            valid[NAMES[key]] = value
    return valid, f"Ignored from the link: {'; '.join(ignored)}." if ignored else ""


def skip_gradio_check(control: gr.components.Component) -> None:
    """Pass the control's value to the handlers unchecked: `parse_settings` checks it, with a message that names the
    setting. Gradio would round it, or reject it without a name.

    An update of the control makes Gradio create another instance of its class for the page, so the class is replaced.
    It is created past Gradio's metaclass, which would look for its source. Checked on Gradio 6.31.
    """
    kind = type(control)
    own = {"__module__": kind.__module__, "preprocess": lambda self, payload: payload}
    control.__class__ = ABCMeta.__new__(type(kind), kind.__name__, (kind,), own)


def visible_checkpoints(engine: Engine) -> list[CheckpointInfo]:
    """Return the checkpoints of images that the visitor of the current request may see: those of training runs are
    visible only to visitors who may train.
    """
    may_train = permission.denial_reason() is None
    return [entry for entry in engine.checkpoints() if entry.kind == "image" and (may_train or not entry.run)]


def may_see(runner: Runner, checkpoint: str, request: Any = None) -> bool:
    """Return whether the visitor may see the runs of a checkpoint. request: as in `permission.denial_reason`."""
    entries = runner.checkpoints()
    return permission.denial_reason(request) is None or any(x.name == checkpoint and not x.run for x in entries)


def find_run(runner: Runner, request_id: str, request: Any = None) -> RunHandle | None:
    """Return a sampling run that the visitor may see, or None. To know its id is not enough: it may show the training
    images of someone else.
    """
    handle = runner.find(request_id)
    return handle if handle and may_see(runner, handle.checkpoint, request) else None


def usable_checkpoints(engine: Engine) -> list[str]:
    """Return the names of the visible checkpoints that can be loaded."""
    return [entry.name for entry in visible_checkpoints(engine) if not entry.problem]


def find_recording(engine: Engine, name: str) -> Path | None:
    """Return the recording of that file name of the model with which the page begins, if it comes with one."""
    usable = [entry for entry in engine.checkpoints() if not entry.problem and entry.kind == "image"]
    path = usable[0].path / name if usable and not usable[0].run and not usable[0].hub else None
    return path if path and path.is_file() else None


def checkpoint_choices(engine: Engine) -> list[tuple[str, str]]:
    """Return (label, name) of the checkpoints that `usable_checkpoints` returns."""
    return [(entry.title, entry.name) for entry in visible_checkpoints(engine) if not entry.problem]


def schedule_choices(engine: Engine, checkpoint: str) -> list[tuple[str, str]]:
    """Return (label, value) pairs: the trained schedule first, then the others with their default parameters."""
    policy = config_of(engine, checkpoint)["policy"]
    name, kwargs = policy.get("noise_schedule", "sigmoid"), policy.get("schedule_kwargs", {})
    own = ", ".join([name, *(f"{key} {value:g}".replace("-", "−") for key, value in kwargs.items())])
    return [(f"As trained ({own})", TRAINED)] + [(other, other) for other in SCHEDULES if other != name or kwargs]


def describe(engine: Engine, checkpoint: str | None) -> str:
    """Return a line of Markdown about a checkpoint, and one for each checkpoint folder that cannot be loaded."""
    if checkpoint is None:
        hint = "No checkpoints found: put a checkpoint folder into `checkpoints/` and reload the page."
        return hint + describe_problems(engine)
    config = config_of(engine, checkpoint)
    network, policy = config["network"], config["policy"]
    if "images" in config:
        return words.EXACT.format(count=f"{config['images']:,}") + describe_problems(engine)
    prediction = words.PREDICTIONS[policy.get("objective", "v")]
    facts = [escape(f"Trained on {config['dataset']}")] if "dataset" in config else []
    if "step" in config:
        text = f"made fast in {config['step']:,} steps" if is_fast(config) else f"{config['step']:,} training steps"
        facts.append(f'<abbr title="{prediction}">{text}</abbr>')
    facts += [f"{network['image_size']} × {network['image_size']} pixels"]
    return " · ".join(facts) + describe_problems(engine)


def describe_run(made_with: Mapping[str, Any]) -> list[str]:
    """Return the settings of a run in words, from `RunHandle.provenance`."""
    names = list(made_with.get("classes", {}).values())
    classes = [", ".join(names) if len(names) <= CLASSES_SHOWN else f"{len(names)} classes"] if names else []
    if classes and made_with["guidance"] != 1:
        classes += [f"guidance {made_with['guidance']:g}"]
    timesteps = made_with["timesteps"]
    steps = f"{timesteps} step" if timesteps == 1 else f"{timesteps} steps"
    parts = [made_with["checkpoint"], *classes, steps, SAMPLER_TITLES[made_with["sampler"]]]
    parts += [f"{made_with['noise_schedule']} schedule"]
    difference = made_with["time_difference"] * timesteps / made_with["strength"]
    parts += [f"time difference {difference:g}"] if difference else []
    parts += [f"eta {made_with['eta']:g}"] if made_with["eta"] else []
    parts += ["bfloat16"] if made_with.get("backend") == BACKENDS["bf16"] else []
    seed, count, walk_to = made_with["seed"], made_with["batch_size"], made_with["walk_to"]
    seeds = f"seed {seed}" if count == 1 else f"seeds {seed} to {seed + count - 1}"
    return [*parts, seeds if walk_to is None else f"from seed {seed} to {walk_to}"]


def describe_problems(engine: Engine) -> str:
    broken = [entry for entry in visible_checkpoints(engine) if entry.problem]
    return "".join(f"\n\n⚠️ {escape(entry.problem.replace(readable(str(entry.path)), entry.name))}" for entry in broken)


def config_of(engine: Engine, checkpoint: str) -> dict[str, Any]:
    """Return the validated config of a checkpoint. Raises ValueError, with the available names, if there is none."""
    configs = {entry.name: entry.config for entry in visible_checkpoints(engine) if not entry.problem}
    if not isinstance(checkpoint, str) or checkpoint not in configs:
        raise ValueError(f"there is no checkpoint {quote(checkpoint)}; there are: {', '.join(configs) or 'none'}")
    return configs[checkpoint]


def user_error(error: object) -> gr.Error:
    """Return an error to raise in a handler. The page renders its text as markup, and the text may quote a visitor's
    input, so it is escaped.
    """
    text = message_of(error) if isinstance(error, Exception) else str(error)
    return gr.Error(html.escape(readable(text), quote=False), print_exception=False)
