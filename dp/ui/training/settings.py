"""What is to be trained: the presets, the controls behind them, and the run's config that they amount to.

The networks are the shape that learnt fastest at small budgets and that the bundled model has: a convolutional
interface outside, RIN blocks on 8 x 8 tokens inside.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any

import gradio as gr

from dp.checkpoint import check_config
from dp.samplers import MAX_SEED
from dp.ui import controls

SIZES = (16, 32, 64, 128)  # of which 8 x 8 tokens can be made by halving
NAME_LENGTH = 60
SAMPLES, SAMPLE_STEPS = 16, 25  # at each milestone
WARMUP = 0.025  # of the steps
POLICY = {  # of the bundled model; benchmarks/README.md
    "timesteps": 50,
    "noise_schedule": "sigmoid",
    "schedule_kwargs": {"start": -3.0, "end": 7.0},
    "min_snr_loss_weight": False,
    "train_prob_self_cond": 0.5,
}


@dataclass(frozen=True)
class Settings:
    """What a run is made with, named and ordered as the controls of `Form`. Raises ValueError, which names the control
    that is wrong.
    """

    name: str = ""
    image_size: int = 32
    width: int = 128
    depth: int = 2
    batch: int = 32
    lr: float = 1.5e-3
    steps: int = 16_000
    flips: bool = True
    save_every: int = 1000
    seed: int = 0

    def __post_init__(self):
        if not isinstance(self.name, str) or len(self.name) > NAME_LENGTH or not self.name.isprintable():
            raise ValueError(f"Name must have at most {NAME_LENGTH} characters, all of them visible")
        if self.image_size not in SIZES:
            raise ValueError(f"Image size must be one of {', '.join(map(str, SIZES))}, got {self.image_size!r:.80}")
        for name, label, low, high in (
            ("width", "Network width", 16, 1024),
            ("depth", "Network depth", 1, 16),
            ("batch", "Batch", 1, 1024),
            ("steps", "Steps", 1, 10_000_000),
            ("save_every", "Save every", 1, 1_000_000),
            ("seed", "Seed", 0, MAX_SEED - 1),
        ):
            object.__setattr__(self, name, controls.within(label, getattr(self, name), low, high))
        object.__setattr__(self, "lr", controls.within("Learning rate", self.lr, 1e-6, 1, whole=False))
        if self.width % 16:
            raise ValueError(f"Network width must be a multiple of 16, got {self.width}")

    def config(self, dataset: str, count: int, created: float) -> dict[str, Any]:
        """The run's config.json."""
        levels = max((self.image_size // 16).bit_length() - 1, 1)  # halvings, down to 8 x 8 tokens after the folding
        network = {
            "type": "rin",
            "dim": self.width,
            "image_size": self.image_size,
            "patch_size": self.image_size // 8,
            "channels": 3,
            "depth": self.depth,
            "latent_self_attn_depth": 2,
            "dim_latent": self.width,
            "num_latents": min(self.image_size, 64),
            "heads": 4,
            "dim_head": max(self.width // 4, 8),
            "conv_widths": [-(-self.width * (i + 1) // (levels + 1) // 8) * 8 for i in range(levels)],
            "conv_blocks": 2,
        }
        check_config({"network": network, "policy": POLICY}, "these settings make no network")
        trainer = {
            "train_batch_size": self.batch,
            "train_lr": self.lr,
            "train_num_steps": self.steps,
            "lr_warmup_steps": round(self.steps * WARMUP),
            "lr_decay_steps": self.steps,
            "augment_horizontal_flip": self.flips,
            "ema_decay": 0.99,
            "weight_decay": 0.01,
            "save_and_sample_every": self.save_every,
            "num_samples": SAMPLES,
            "sample_steps": SAMPLE_STEPS,
            "seed": self.seed,
        }
        facts = {"name": self.name or dataset, "created": created, "image_size": self.image_size, "network": network}
        facts |= {"policy": POLICY, "trainer": trainer, "dataset": {"name": dataset, "count": count}}
        return facts | {"processes": 1, "licence": None}

    @classmethod
    def of(cls, config: Mapping[str, Any]) -> Settings:
        """Those of a run. What its config does not say is the default."""
        trainer, network = config.get("trainer", {}), config.get("network", {})
        said = {"image_size": network.get("image_size"), "width": network.get("dim"), "depth": network.get("depth")}
        keys = {"batch": "train_batch_size", "lr": "train_lr", "steps": "train_num_steps", "seed": "seed"}
        keys |= {"flips": "augment_horizontal_flip", "save_every": "save_and_sample_every"}
        said |= {ours: trainer.get(theirs) for ours, theirs in keys.items()}
        return cls(name=config.get("name", ""), **{key: value for key, value in said.items() if value is not None})


QUICK = Settings(width=96, depth=1, lr=2e-3, steps=2000, save_every=200)
PRESETS = {
    "A quick look": QUICK,
    "An evening": Settings(),
    "Overnight": Settings(image_size=64, width=192, lr=1e-3, steps=30_000),
}


class Form:
    """Adds the controls to the page being built; `values` are those of `Settings`, in its order."""

    def __init__(self):
        first = next(iter(PRESETS))
        self.preset = gr.Radio(
            choices({}), value=first, label="How much time have you got?", elem_id="preset", elem_classes="presets"
        )
        with gr.Accordion("Advanced settings", open=False, elem_id="advanced"):
            with gr.Row():
                name = gr.Textbox(
                    "",  # or a page on which the fold was never open would send None
                    label="Name",
                    elem_id="train-name",
                    max_lines=1,
                    info="Of the run; empty: that of the pictures.",
                )
                size = gr.Dropdown(
                    [(f"{side} × {side}", side) for side in SIZES],
                    value=QUICK.image_size,
                    label="Image size",
                    elem_id="train-size",
                    info="Twice the side takes about four times as long.",
                )
            with gr.Row():
                width = number("Network width", "width", "A multiple of 16. Wider draws better, and takes longer.")
                depth = number("Network depth", "depth", "RIN blocks, one after another.")
            with gr.Row():
                batch = number("Batch", "batch", "Pictures in each step. More: steadier, slower.")
                lr = gr.Number(
                    QUICK.lr,
                    label="Learning rate",
                    elem_id="train-lr",
                    info="If the loss jumps, halve it.",
                    min_width=120,
                )
            with gr.Row():
                steps = number("Steps", "steps", "Double them, and it takes twice as long.")
                save_every = number("Save every", "save_every", "Steps from one row of samples to the next.")
            with gr.Row():
                seed = number("Seed", "seed", "Same seed, same run.")
                flips = gr.Checkbox(
                    QUICK.flips, label="Mirror at random", elem_id="train-flips", info="Not for letters.", min_width=120
                )
            measure = gr.Button("How long will this take?", size="sm", elem_id="measure")
        self.name, self.size, self.measure = name, size, measure
        self.values = [name, size, width, depth, batch, lr, steps, flips, save_every, seed]
        for control in (size, width, depth, batch, lr, steps, save_every, seed):
            controls.unchecked(control)

    def set(self, settings: Settings) -> list[Any]:
        """Values for the controls but the name."""
        return [getattr(settings, field.name) for field in fields(settings)[1:]]


def number(label: str, key: str, info: str) -> gr.Number:
    value, elem_id = getattr(QUICK, key), "train-" + key.replace("_", "-")
    return gr.Number(value, precision=0, label=label, info=info, elem_id=elem_id, min_width=120)


def choices(measured: Mapping[str, str]) -> list[tuple[str, str]]:
    """Those of the radio: what each preset trains, and how long that takes as far as it has been measured."""
    said = {name: f"{p.image_size} × {p.image_size}, {p.steps:,} steps" for name, p in PRESETS.items()}
    return [(f"{name} · {words} · {measured.get(name, 'not timed yet')}", name) for name, words in said.items()]
