"""The form of the Train tab: the presets and the controls that they set."""

from __future__ import annotations

from collections.abc import Mapping

import gradio as gr
from gradio.components import Component

from dp.data.report import DatasetReport
from dp.training.presets import PRESETS, SIZES, Settings
from dp.ui.sampling import page_values
from dp.ui.sampling.panel import Given, Updates

LABELS = {"quick": "Small", "evening": "Medium", "overnight": "Large"}
QUICK = PRESETS["quick"]
CLASSES_HINT = "Then you can choose what to draw by the name of its folder."
MAX_SUGGESTED_CLASSES, MIN_PER_CLASS = 100, 10  # other folders of images are rarely meant as classes
FLIPS_HINT = "Turn off for images with text."


class Form:
    """Adds the controls to the page being built. The keys of `controls` are the fields of `Settings`."""

    def __init__(self):
        self.classes, self.preset = class_checkbox(), preset_radio()
        with gr.Accordion("Advanced settings", open=False, elem_id="advanced"):
            with gr.Row():
                name = gr.Textbox(
                    "",  # without a value, a page whose accordion was never opened would send None
                    label="Name",
                    elem_id="train-name",
                    max_lines=1,
                    info="Name of the run. If empty, it is named after the uploaded images.",
                )
                size = gr.Dropdown(
                    [(f"{side} × {side}", side) for side in SIZES],
                    value=QUICK.image_size,
                    label="Image size",
                    elem_id="train-size",
                    info="Doubling it takes about four times as long.",
                )
            with gr.Row():
                width = number_field("Network width", "width", "A multiple of 16. Wider is better but slower.")
                depth = number_field("Network depth", "depth", "The number of RIN blocks.")
            with gr.Row():
                batch = number_field("Batch size", "batch", "Images per step. Larger is steadier but slower.")
                lr = gr.Number(
                    QUICK.lr,
                    label="Learning rate",
                    elem_id="train-lr",
                    info="If the loss jumps, halve it.",
                    min_width=120,
                )
            with gr.Row():
                steps = number_field("Steps", "steps", "Training time grows in proportion.")
                save_every = number_field("Save every", "save_every", "Steps between checkpoints, each with samples.")
            with gr.Row():
                seed = number_field("Seed", "seed", "The same seed repeats the run.")
                flips = gr.Checkbox(
                    QUICK.flips, label="Mirror at random", elem_id="train-flips", info=FLIPS_HINT, min_width=120
                )
            measure = gr.Button("How long will this take?", size="sm", elem_id="measure")
        self.name, self.size, self.measure = name, size, measure
        self.controls: dict[str, Component] = {
            "name": name,
            "image_size": size,
            "width": width,
            "depth": depth,
            "batch": batch,
            "lr": lr,
            "steps": steps,
            "flips": flips,
            "save_every": save_every,
            "seed": seed,
            "classes": self.classes,
        }
        for control in (size, width, depth, batch, lr, steps, save_every, seed):
            page_values.skip_gradio_check(control)

    @property
    def preset_controls(self) -> list[Component]:
        """Return the controls that a preset sets: all but the name and the classes, which belong to the images."""
        return [control for control in self.controls.values() if control not in (self.name, self.classes)]

    def settings(self, given: Given) -> Settings:
        """Return the settings in the inputs of a handler. Raises ValueError for an invalid one."""
        return Settings(**{field: given[control] for field, control in self.controls.items()})

    def updates(self, settings: Settings) -> Updates:
        """Return the updates that show `settings` in the controls that a preset sets."""
        of = {control: field for field, control in self.controls.items()}
        return {control: getattr(settings, of[control]) for control in self.preset_controls}

    def preset_of(self, values: Given) -> str | None:
        """Return the preset that the values of the controls are equal to, or None."""
        shown = {name: self.updates(settings) for name, settings in PRESETS.items()}
        return next((name for name, preset in shown.items() if all(values[one] == preset[one] for one in preset)), None)


def preset_radio() -> gr.Radio:
    return gr.Radio(
        choices({}),
        value=next(iter(PRESETS)),
        label="How long do you want to train?",
        info="Once you have chosen images, each shows how long it takes on this machine.",
        elem_id="preset",
        elem_classes="presets",
    )


def class_checkbox() -> gr.Checkbox:
    return gr.Checkbox(
        False, label="Learn the folders as classes", elem_id="train-classes", info=CLASSES_HINT, visible=False
    )


def suggests_classes(report: DatasetReport) -> bool | None:
    """Return whether to learn the class folders unless the visitor chooses otherwise; None if there are none."""
    counts = report.class_counts().values()
    return len(counts) <= MAX_SUGGESTED_CLASSES and min(counts) >= MIN_PER_CLASS if counts else None


def number_field(label: str, key: str, info: str) -> gr.Number:
    value, elem_id = getattr(QUICK, key), "train-" + key.replace("_", "-")
    return gr.Number(value, precision=0, label=label, info=info, elem_id=elem_id, min_width=120)


def choices(times: Mapping[str, str]) -> list[tuple[str, str]]:
    """Return (label, name) of each preset: its image size and steps, and its time if it is in `times`."""
    sizes = {name: f"{p.image_size} × {p.image_size}, {p.steps:,} steps" for name, p in PRESETS.items()}
    parts = {name: [LABELS[name], size, *([times[name]] if name in times else [])] for name, size in sizes.items()}
    return [(" · ".join(texts), name) for name, texts in parts.items()]
