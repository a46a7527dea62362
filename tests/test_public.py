"""The public names: those that scripts rely on, with the defaults of the contract."""

from __future__ import annotations

import inspect
import re
from pathlib import Path

import pytest
from PIL import features

import dp

PUBLIC = {"DiffusionPolicy", "Engine", "ExactDenoiser", "RIN", "Trainer", "ImageDataset", "SampleSettings", "Step"}
PUBLIC |= {"prepare"}
REQUIRED = inspect.Parameter.empty

# Every parameter of a public constructor, in its order, with its default. `*` stands before those given by name only.
SIGNATURES = {
    "ExactDenoiser": {
        "images": REQUIRED,
        "*": None,
        "labels": None,
        "mirrored": False,
        "noise_schedule": "sigmoid",
        "schedule_kwargs": None,
    },
    "DiffusionPolicy": {
        "model": REQUIRED,
        "*": None,
        "timesteps": 1000,
        "use_ddim": True,
        "noise_schedule": "sigmoid",
        "schedule_kwargs": None,  # the schedule's defaults, like {}
        "objective": "v",
        "time_difference": 0.0,
        "min_snr_loss_weight": True,
        "min_snr_gamma": 5,
        "train_prob_self_cond": 0.9,
        "scale": 1.0,
        "condition_drop_prob": 0.1,
        "uniform_loss_weight": False,
        "consistency": False,
    },
    "ImageDataset": {
        "folder": REQUIRED,
        "image_size": REQUIRED,
        "exts": ("jpg", "jpeg", "jfif", "png", "tif", "tiff", "webp", "bmp", "gif")
        + ("avif",) * features.check("avif"),
        "augment_horizontal_flip": False,
        "convert_image_to": None,
        "classes": False,
    },
    "Trainer": {
        "diffusion_model": REQUIRED,
        "folder": REQUIRED,
        "*": None,
        "train_batch_size": 16,
        "gradient_accumulate_every": 1,
        "augment_horizontal_flip": True,
        "train_lr": 1e-4,
        "train_num_steps": 100_000,
        "max_grad_norm": 1.0,
        "ema_update_every": 10,
        "ema_decay": 0.995,
        "betas": (0.9, 0.99),
        "save_and_sample_every": 1000,
        "num_samples": 25,
        "results_folder": "./results",
        "amp": False,
        "mixed_precision_type": "fp16",
        "split_batches": True,
        "convert_image_to": None,
        "lr_warmup_steps": 0,
        "lr_decay_steps": None,
        "weight_decay": 0.0,
        "seed": 0,
        "sample_steps": 50,
        "log_with": None,
    },
    "RIN": {
        "dim": REQUIRED,
        "image_size": REQUIRED,
        "patch_size": 16,
        "channels": 3,
        "depth": 6,
        "latent_self_attn_depth": 2,
        "dim_latent": None,
        "num_latents": 256,
    },
}


def test_the_public_names_are_these_and_no_others():
    assert set(dp.__all__) == PUBLIC
    assert len(dp.__all__) == len(PUBLIC)
    assert set(dir(dp)) == PUBLIC


@pytest.mark.parametrize("name", sorted(PUBLIC))
def test_a_public_name_is_a_class_or_function_of_that_name_with_a_docstring(name):
    value = getattr(dp, name)
    assert (inspect.isclass(value) or inspect.isfunction(value)) and value.__name__ == name
    assert value.__doc__ and not value.__doc__.startswith(f"{name}(")  # the docstring that dataclass generates


def test_an_unknown_name_is_an_attribute_error_that_names_it():
    with pytest.raises(AttributeError, match="Difusion"):
        dp.Difusion  # noqa: B018 (reading it is the test)


@pytest.mark.parametrize("name", sorted(SIGNATURES))
def test_a_constructor_keeps_its_keywords_and_defaults(name):
    found: dict[str, object] = {}
    for parameter in inspect.signature(getattr(dp, name)).parameters.values():
        if parameter.kind is parameter.KEYWORD_ONLY:
            found.setdefault("*", None)
        found[parameter.name] = parameter.default
    expected = SIGNATURES[name]
    if name == "RIN":  # the contract ends with "...": more may follow
        found = dict(list(found.items())[: len(expected)])
    assert list(found.items()) == list(expected.items())


@pytest.mark.parametrize("method", ["train", "save", "load"])
def test_the_trainer_keeps_its_methods(method):
    parameters = list(inspect.signature(getattr(dp.Trainer, method)).parameters)
    assert parameters == (["self"] if method == "train" else ["self", "milestone"])


def test_a_step_keeps_its_fields():
    fields = ["index", "timesteps", "time", "time_next", "log_snr", "x_t", "x0"]
    assert list(dp.Step.__dataclass_fields__) == fields


@pytest.mark.parametrize("method", ["sample", "stream"])
def test_sampling_takes_the_keywords_of_the_contract(method):
    settings = dict(
        timesteps=1, sampler="ddim", noise_schedule="cosine", schedule_kwargs={"tau": 1.0}, time_difference=0.0, eta=0.0
    )
    dp.SampleSettings(16, **settings, seed=0)  # `sample(batch_size, **settings)` passes them to it
    first = list(inspect.signature(getattr(dp.DiffusionPolicy, method)).parameters.values())[1]
    assert (first.name, first.default) == ("batch_size", 16)


def test_the_readme_imports_only_public_names():
    text = (Path(__file__).resolve().parent.parent / "README.md").read_text(encoding="utf-8")
    named = {
        name.strip() for names in re.findall(r"^from dp import (.+)$", text, re.MULTILINE) for name in names.split(",")
    }
    assert named and named <= PUBLIC
