"""What is to be trained: the presets, what may be chosen, and the run's config that it amounts to. Standard library.

The networks are the shape that learnt fastest at small budgets and that the bundled model has: a convolutional
interface outside, RIN blocks on 8 x 8 tokens inside.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from dp.system.validation import MAX_SEED, quote, within

SIZES = (16, 32, 64, 128)  # of which 8 x 8 tokens can be made by halving
NAME_LENGTH = 60
MAX_STEPS = 10_000_000
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
    """What a run is made with, named and ordered as the controls of the Train tab. Raises ValueError, which names what
    is wrong.
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
            raise ValueError(f"Image size must be one of {', '.join(map(str, SIZES))}, got {quote(self.image_size)}")
        for name, label, low, high in (
            ("width", "Network width", 16, 1024),
            ("depth", "Network depth", 1, 16),
            ("batch", "Batch", 1, 1024),
            ("steps", "Steps", 1, MAX_STEPS),
            ("save_every", "Save every", 1, 1_000_000),
            ("seed", "Seed", 0, MAX_SEED - 1),
        ):
            object.__setattr__(self, name, within(label, getattr(self, name), low, high))
        if not isinstance(self.flips, bool):
            raise ValueError(f"Mirror at random must be true or false, got {quote(self.flips)}")
        object.__setattr__(self, "lr", within("Learning rate", self.lr, 1e-6, 1, whole=False))
        if self.width % 16:
            raise ValueError(f"Network width must be a multiple of 16, got {quote(self.width)}")

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
        """Return the settings of a run, with defaults for those that its config lacks."""
        return cls(**cls.values_of(config))

    @staticmethod
    def values_of(config: Mapping[str, Any]) -> dict[str, Any]:
        """Return the settings that the config of any run says, by their names; they need not be ones of the form."""
        trainer, network = config.get("trainer", {}), config.get("network", {})
        said = {"image_size": network.get("image_size"), "width": network.get("dim"), "depth": network.get("depth")}
        keys = {"batch": "train_batch_size", "lr": "train_lr", "steps": "train_num_steps", "seed": "seed"}
        keys |= {"flips": "augment_horizontal_flip", "save_every": "save_and_sample_every"}
        said |= {ours: trainer.get(theirs) for ours, theirs in keys.items()}
        name = "".join(c for c in config.get("name") or "" if c.isprintable())[:NAME_LENGTH]  # a run's may be longer
        return {"name": name} | {key: value for key, value in said.items() if value is not None}


PRESETS = {
    "quick": Settings(width=96, depth=1, lr=2e-3, steps=2000, save_every=200),
    "evening": Settings(),
    "overnight": Settings(image_size=64, width=192, lr=1e-3, steps=30_000),
}
