"""The settings of a training run, presets for them, and their conversion to and from the run's config.json.

Needs the standard library only. All networks have the architecture that learned fastest at small budgets, which is also
that of the bundled models: a convolutional interface around RIN blocks on 8 x 8 tokens.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from dp.system.validation import MAX_SEED, check_number, quote

SIZES = (16, 32, 64, 128)  # powers of two, as halvings lead to 8 x 8 tokens
MAX_NAME_LENGTH = 60
MAX_STEPS = 10_000_000
SAMPLES, SAMPLE_STEPS = 16, 25  # with each checkpoint
WARMUP_FRACTION = 0.025  # of the steps
POLICY = {  # as for the bundled models; see benchmarks/README.md
    "timesteps": 50,
    "noise_schedule": "sigmoid",
    "schedule_kwargs": {"start": -3.0, "end": 7.0},
    "train_prob_self_cond": 0.5,
    "consistency": False,  # also if the settings are those of a run that made a model fast
}
FAST_SHARE, FAST_LR = 0.15, 0.1  # of the run that a model is from: how many steps it is tuned, at which learning rate


@dataclass(frozen=True)
class Settings:
    """The settings of a run, named and ordered as the controls of the Train tab. Raises ValueError for one out of
    range.
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
    classes: bool = False

    def __post_init__(self):
        if not isinstance(self.name, str) or len(self.name) > MAX_NAME_LENGTH or not self.name.isprintable():
            raise ValueError(f"Name must have at most {MAX_NAME_LENGTH} characters, all printable")
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
            object.__setattr__(self, name, check_number(label, getattr(self, name), low, high))
        for label, value in (("Mirror at random", self.flips), ("Classes", self.classes)):
            if not isinstance(value, bool):
                raise ValueError(f"{label} must be true or false, got {quote(value)}")
        object.__setattr__(self, "lr", check_number("Learning rate", self.lr, 1e-6, 1, whole=False))
        if self.width % 16:
            raise ValueError(f"Network width must be a multiple of 16, got {quote(self.width)}")

    def config(self, dataset: str, count: int, created: float, classes: Sequence[str] = ()) -> dict[str, Any]:
        """Return the config.json of a run on `count` images of the dataset named `dataset`, whose class folders are
        `classes`. created: Unix seconds. Raises ValueError if the run is to learn classes and there are none.
        """
        if self.classes and not classes:
            raise ValueError(
                f"no classes in {quote(dataset)}: they need at least two folders of images directly below it"
            )
        levels = max((self.image_size // 16).bit_length() - 1, 1)  # downsamplings from the patches to 8 x 8 tokens
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
            # With these two the latents stay distinct: see "The latents" in benchmarks/README.md.
            "qk_norm": True,
            "latent_std": 1.0,
        } | ({"num_classes": len(classes)} if self.classes else {})
        trainer = {
            "train_batch_size": self.batch,
            "train_lr": self.lr,
            "train_num_steps": self.steps,
            "lr_warmup_steps": round(self.steps * WARMUP_FRACTION),
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
        facts |= {
            "policy": POLICY,
            "trainer": trainer,
            "dataset": {"name": dataset, "count": count},
        }
        return facts | {"processes": 1, "license": None}

    @classmethod
    def from_config(cls, config: Mapping[str, Any]) -> Settings:
        """Return the settings in a run's config, with defaults for those it lacks."""
        return cls(**cls.values_from_config(config))

    @staticmethod
    def values_from_config(config: Mapping[str, Any]) -> dict[str, Any]:
        """Return the settings in a run's config by name; unlike those of the form, they may be out of range."""
        trainer, network = config.get("trainer", {}), config.get("network", {})
        found = {"image_size": network.get("image_size"), "width": network.get("dim"), "depth": network.get("depth")}
        found["classes"] = bool(network.get("num_classes"))
        keys = {"batch": "train_batch_size", "lr": "train_lr", "steps": "train_num_steps", "seed": "seed"}
        keys |= {"flips": "augment_horizontal_flip", "save_every": "save_and_sample_every"}
        found |= {name: trainer.get(key) for name, key in keys.items()}
        # The name of a run may be longer than that of the form.
        name = "".join(c for c in config.get("name") or "" if c.isprintable())[:MAX_NAME_LENGTH]
        return {"name": name} | {key: value for key, value in found.items() if value is not None}


PRESETS = {
    "quick": Settings(width=96, depth=1, lr=2e-3, steps=2000, save_every=200),
    "evening": Settings(),
    "overnight": Settings(image_size=64, width=192, lr=1e-3, steps=30_000),
}


def fast_config(config: Mapping[str, Any]) -> dict[str, Any]:
    """Return the changes to a finished run's config with which a new run makes its model fast: see
    `dp.diffusion.consistency`. Raises ValueError for a model that cannot be.
    """
    policy, trainer = config.get("policy", {}), config.get("trainer", {})
    if policy.get("consistency"):
        raise ValueError("this model is fast already")
    if policy.get("objective") == "eps":
        raise ValueError("this model predicts the noise, and only models that predict v or x0 can be made fast")
    steps = max(1, round(FAST_SHARE * check_number("train_num_steps", trainer.get("train_num_steps"), 1, MAX_STEPS)))
    lr = FAST_LR * check_number("train_lr", trainer.get("train_lr", 1e-4), 0, 1, whole=False)
    tuning = {"train_num_steps": steps, "train_lr": lr, "lr_decay_steps": steps, "num_samples": SAMPLES}
    tuning |= {"lr_warmup_steps": round(WARMUP_FRACTION * steps), "save_and_sample_every": max(1, steps // 10)}
    return {"policy": {"consistency": True, "timesteps": 4}, "trainer": tuning}
