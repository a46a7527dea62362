"""The sampling controls of a tab, and the updates that put settings into them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import gradio as gr
from gradio.components import Component

from dp.serving.engine import Engine
from dp.system.validation import MAX_SEED
from dp.ui.sampling import page_values

QUIET: dict[str, Any] = {"api_visibility": "private", "show_progress": "hidden"}  # options of most events

Given = Mapping[Component, Any]  # the argument of a handler whose inputs are a set
Updates = dict[Component, Any]  # the result of a handler; outputs that it lacks stay as they are


class Controls(NamedTuple):
    """The controls, named like the parameters of `page_values.parse_settings`, in page order."""

    checkpoint: gr.Dropdown
    label: gr.Dropdown
    guidance: gr.Slider
    images: gr.Slider
    timesteps: gr.Slider
    sampler: gr.Radio
    seed: gr.Number
    random_seed: gr.Checkbox
    noise_schedule: gr.Radio
    time_difference_steps: gr.Slider
    eta: gr.Slider


class Opening(NamedTuple):
    """How a tab opens a checkpoint: `select` returns updates of the outputs, from its name and the inputs' values."""

    select: Callable[[str, Given], Updates]
    inputs: set[Component]
    outputs: list[Component]


@dataclass(frozen=True)
class Panel:
    """The controls of one tab. about: describes the checkpoint. more: the section with the settings that a newcomer
    does not need. folded: the components added by `fold` of `build_panel`.
    """

    engine: Engine
    controls: Controls
    about: gr.Markdown
    more: gr.Accordion
    folded: Any = None

    @property
    def outputs(self) -> list[Component]:
        """Return the outputs of `refresh` and `apply_settings`."""
        return [self.about, *self.controls]

    @property
    def checkpoint_outputs(self) -> list[Component]:
        """Return the outputs of `select` and `list_checkpoints`."""
        controls = self.controls
        own = [controls.label, controls.guidance, controls.timesteps, controls.sampler, controls.eta]
        return [controls.checkpoint, self.about, controls.noise_schedule, *own]

    @property
    def opening(self) -> Opening:
        """Return how to open a checkpoint in a tab that needs nothing else for it."""
        sampler = self.controls.sampler
        return Opening(lambda name, given: self.select(name, given[sampler]), {sampler}, self.checkpoint_outputs)

    def values(self, given: Given) -> dict[str, Any]:
        """Return the arguments of `page_values.parse_settings` from the inputs of a handler."""
        return page_values.arguments_of({name: given[control] for name, control in self.controls._asdict().items()})

    def refresh(self, settings: Mapping[str, Any] | None = None) -> Updates:
        """List the checkpoints that exist now, and apply `settings`, if any (checked, and named as in
        `SampleSettings`).
        """
        choices, checkpoint = page_values.checkpoint_choices(self.engine), self.controls.checkpoint
        names = [name for _, name in choices]
        if names and settings:
            return self.apply_settings(settings, choices=choices)
        if checkpoint.value in names:  # keep the value, which a quick visitor may have changed already
            return {checkpoint: gr.update(choices=choices), self.about: self._describe(checkpoint.value)}
        name = names[0] if names else None
        chosen = {checkpoint: gr.update(choices=choices, value=name)} | self.checkpoint_updates(name)
        return chosen | (self.own_settings(name) if name else {})

    def apply_settings(self, settings: Mapping[str, Any], **dropdown: Any) -> Updates:
        """Put settings from a PNG or a link into the controls; without a seed, the current seed stays. dropdown:
        further properties of the checkpoint's dropdown. Raises gr.Error.
        """
        values, controls = page_values.to_page_values(self.engine, settings), self.controls
        updates: Updates = {control: values[name] for name, control in controls._asdict().items()}
        updates[controls.checkpoint] = gr.update(value=values["checkpoint"], **dropdown)
        updates[controls.eta] = update_eta(values["sampler"], values["eta"])
        if values["seed"] is None:
            del updates[controls.seed]
        updates |= self.checkpoint_updates(values["checkpoint"], values["noise_schedule"])
        updates[controls.sampler] |= {"value": values["sampler"]}
        return updates | self.class_updates(values["checkpoint"], values["label"], values["guidance"])

    def select(self, name: str, sampler: str | None = None) -> Updates:
        """Select a checkpoint. sampler: the one that is selected, see `own_settings`."""
        choices = page_values.checkpoint_choices(self.engine)
        chosen = {self.controls.checkpoint: gr.update(choices=choices, value=name)}
        return chosen | self.checkpoint_updates(name) | self.own_settings(name, sampler)

    def list_checkpoints(self) -> Updates:
        """List the checkpoints that exist now, and keep the selection."""
        return {self.controls.checkpoint: gr.update(choices=page_values.checkpoint_choices(self.engine))}

    def checkpoint_updates(self, name: str | None, noise_schedule: str = page_values.TRAINED) -> Updates:
        """Update what depends on the checkpoint: its description, the samplers, the noise schedules and the classes."""
        choices = page_values.schedule_choices(self.engine, name) if name else []
        schedule = gr.update(choices=choices, value=noise_schedule)
        samplers = page_values.sampler_choices(page_values.config_of(self.engine, name) if name else {})
        updates = {self.about: self._describe(name), self.controls.noise_schedule: schedule}
        updates[self.controls.sampler] = gr.update(choices=samplers)
        return updates | self.class_updates(name)

    def class_updates(self, name: str | None, label: str = page_values.ANY, guidance: float | None = None) -> Updates:
        """Offer the checkpoint's classes. Without classes, both controls are hidden."""
        config = page_values.config_of(self.engine, name) if name else {"network": {}}
        choices = page_values.class_choices(config)
        guidance = page_values.own_guidance(config) if guidance is None else guidance
        return {
            self.controls.label: gr.update(choices=choices, value=label if choices else None, visible=bool(choices)),
            self.controls.guidance: gr.update(value=guidance, visible=bool(choices)),
        }

    def own_settings(self, name: str, sampler: str | None = None) -> Updates:
        """Apply the model's own timesteps and sampler, where its config has them, or the defaults where the `sampler`
        that is selected is not for this model.
        """
        config, controls = page_values.config_of(self.engine, name), self.controls
        own, choices = config.get("sampling", {}), page_values.sampler_choices(config)
        if sampler is not None and sampler not in [value for _, value in choices]:
            own = {"timesteps": page_values.TIMESTEPS, "sampler": page_values.SAMPLER} | own
        updates: Updates = {controls.timesteps: gr.update(value=own["timesteps"])} if "timesteps" in own else {}
        if "sampler" in own:
            chosen = gr.update(choices=choices, value=own["sampler"])
            updates |= {controls.sampler: chosen, controls.eta: update_eta(own["sampler"])}
        return updates

    def _describe(self, name: str | None) -> str:
        return page_values.describe(self.engine, name)


def build_panel(
    engine: Engine, prefix: str = "", images: int = page_values.IMAGES, fold: Callable[[], Any] = lambda: None
) -> Panel:
    """Add the controls to the page being built. prefix: of their element ids, since a page has several panels. images:
    the default number. fold: adds components below the checkpoint.
    """
    checkpoints = page_values.checkpoint_choices(engine)
    default = checkpoints[0][1] if checkpoints else None
    checkpoint = gr.Dropdown(
        checkpoints,
        value=default,
        label="Checkpoint",
        elem_id=prefix + "checkpoint",
        info="The trained model to sample from.",
    )
    about = gr.Markdown(page_values.describe(engine, default), elem_classes="about")
    folded = fold()
    schedules = page_values.schedule_choices(engine, default) if default else []
    config = page_values.config_of(engine, default) if default else {"network": {}}
    sampler = config.get("sampling", {}).get("sampler", page_values.SAMPLER)
    samplers = page_values.sampler_choices(config)
    basic = class_controls(prefix, config) | size_controls(prefix, images, config)
    basic |= sampler_control(prefix, samplers, sampler) | seed_controls(prefix)
    with gr.Accordion("More settings", open=False, elem_id=prefix + "more", elem_classes="more") as more:
        controls = Controls(checkpoint=checkpoint, **basic, **step_controls(prefix, schedules, sampler))
    panel = Panel(engine, controls, about, more, folded)
    for control in controls:
        if control is not controls.random_seed:
            page_values.skip_gradio_check(control)

    def choose(name: str, sampler: str) -> Updates:
        return panel.checkpoint_updates(name) | panel.own_settings(name, sampler)

    checkpoint.input(choose, [checkpoint, controls.sampler], panel.checkpoint_outputs[1:], **QUIET)
    controls.sampler.input(update_eta, controls.sampler, controls.eta, **QUIET)
    return panel


def class_controls(prefix: str, config: Mapping[str, Any]) -> dict[str, Component]:
    choices = page_values.class_choices(config)
    return {
        "label": gr.Dropdown(
            choices,
            value=page_values.ANY if choices else None,
            label="Class",
            elem_id=prefix + "class",
            info="What to draw. “Any” leaves it to the model.",
            visible=bool(choices),
        ),
        "guidance": gr.Slider(
            0,
            page_values.MAX_GUIDANCE,
            page_values.own_guidance(config),
            step=0.5,
            label="Guidance",
            elem_id=prefix + "guidance",
            info="How strongly to follow the class. 1 is the plain model; other values take twice the computation.",
            visible=bool(choices),
        ),
    }


def size_controls(prefix: str, images: int, config: Mapping[str, Any]) -> dict[str, Component]:
    return {
        "images": gr.Slider(
            1,
            page_values.MAX_IMAGES,
            images,
            step=1,
            label="Images",
            elem_id=prefix + "images",
            info="Image i uses seed + i.",
        ),
        "timesteps": gr.Slider(
            1,
            page_values.MAX_TIMESTEPS,
            config.get("sampling", {}).get("timesteps", page_values.TIMESTEPS),
            step=1,
            label="Timesteps",
            elem_id=prefix + "timesteps",
            info="Fewer is faster but coarser. 20 is usually enough with DPM-Solver++(2M).",
        ),
    }


def sampler_control(prefix: str, samplers: list[tuple[str, str]], sampler: str) -> dict[str, Component]:
    return {
        "sampler": gr.Radio(
            samplers,
            value=sampler,
            label="Sampler",
            elem_id=prefix + "sampler",
            info="DPM-Solver++ uses the last two predictions and needs the fewest steps. DDIM adds no noise. "
            "DDPM and SDE add new noise at every step. Fast models have Consistency, for 1 to 4 steps.",
        )
    }


def step_controls(prefix: str, schedules: list[tuple[str, str]], sampler: str) -> dict[str, Component]:
    return {
        "noise_schedule": gr.Radio(
            schedules,
            value=page_values.TRAINED,
            label="Noise schedule",
            elem_id=prefix + "schedule",
            info="Which noise levels get more steps, and which get fewer.",
        ),
        "time_difference_steps": gr.Slider(
            0,
            page_values.MAX_TIME_DIFFERENCE_STEPS,
            0,
            step=0.5,
            label="Time difference, in steps",
            elem_id=prefix + "difference",
            info="Removes a little more noise in each step than planned. 0 turns this off.",
        ),
        "eta": gr.Slider(
            0,
            1,
            0,
            step=0.05,
            label="eta",
            elem_id=prefix + "eta",
            info="Noise that DDIM adds at each step: 0 adds none, 1 as much as DDPM.",
            visible=sampler == "ddim",
        ),
    }


def seed_controls(prefix: str) -> dict[str, Component]:
    with gr.Row(equal_height=True):
        seed = gr.Number(
            0,
            precision=0,
            minimum=0,
            maximum=MAX_SEED - 1,
            label="Seed",
            elem_id=prefix + "seed",
            info="Same seed, same images.",
            min_width=120,
        )
        random_seed = gr.Checkbox(
            True, label="Random seed", elem_id=prefix + "random", info="New seed on each run.", min_width=120
        )
    return {"seed": seed, "random_seed": random_seed}


def update_eta(sampler: str, value: float = 0.0) -> Any:
    """Show eta for DDIM only, the only sampler that uses it."""
    return gr.update(value=value, visible=sampler == "ddim")
