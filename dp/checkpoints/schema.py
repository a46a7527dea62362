"""The schema of config.json: the known fields with their types and bounds. Violations raise CheckpointError."""

from __future__ import annotations

from typing import Any

from dp.diffusion.samplers import SAMPLERS
from dp.diffusion.schedules import checked, make_schedule
from dp.diffusion.settings import MAX_GUIDANCE, OBJECTIVES
from dp.networks.rin import NETWORKS
from dp.system.records import readable
from dp.system.validation import MAX_CLASS_NAME, MAX_CLASSES, quote

# The allowed type and bounds of each field: (type, low, high) for a number, [element, maximum length] for a list, or a
# plain type.
POLICY_FIELDS: dict[str, Any] = {
    "timesteps": (int, 1, 100_000),
    "use_ddim": bool,
    "noise_schedule": str,
    "schedule_kwargs": dict,
    "objective": str,
    "time_difference": (float, 0, 1),
    "min_snr_loss_weight": bool,
    "min_snr_gamma": (float, 0, 1e6),
    "train_prob_self_cond": (float, 0, 1),
    "scale": (float, 0, 1),
    "condition_drop_prob": (float, 0, 1),
    "uniform_loss_weight": bool,
    "consistency": bool,
}
BLOCKS: dict[str, Any] = {  # of every RIN, whatever its interface
    "dim": (int, 8, 4096),
    "depth": (int, 1, 64),
    "latent_self_attn_depth": (int, 0, 32),
    "dim_latent": (int, 8, 4096),
    "num_latents": (int, 1, 8192),
    "heads": (int, 1, 64),
    "dim_head": (int, 1, 512),
    "conv_widths": [(int, 8, 4096), 6],
    "conv_blocks": (int, 1, 16),
    "qk_norm": bool,
    "latent_std": (float, 0, 10),
    "query_std": (float, 0, 10),
}
IMAGES: dict[str, Any] = {"image_size": (int, 1, 2048), "patch_size": (int, 1, 256), "channels": (int, 1, 4)}
SEQUENCES: dict[str, Any] = {"length": (int, 1, 4096), "channels": (int, 1, 64)}
OBSERVATIONS: dict[str, Any] = {"num_observations": (int, 0, 256), "observation_features": (int, 0, 256)}
NETWORK_FIELDS: dict[str, dict[str, Any]] = {
    "rin": BLOCKS | IMAGES | {"num_classes": (int, 0, MAX_CLASSES)},
    "sequence_rin": BLOCKS | SEQUENCES | OBSERVATIONS,
}
# Later fields. Without them a network is the one that it was before them: these are its defaults.
OPTIONAL = {"rin": {"num_classes", "qk_norm", "latent_std", "query_std"}, "sequence_rin": set()}
CARD_FIELDS: dict[str, Any] = {
    "step": (int, 0, 2**53),
    "dataset": str,
    "license": str,
    "classes": [str, MAX_CLASSES],
    "sampling": dict,
    "original": str,  # the model that this one makes fast: a bundled one, or "run/step"
    "training_set": dict,
}
# The settings with which page, API and command line begin for this model.
SAMPLING_FIELDS: dict[str, Any] = {
    "timesteps": (int, 1, 100_000),
    "sampler": str,
    "guidance": (float, 0, MAX_GUIDANCE),
    "guidance_interval": [(float, 0, 1), 2],
}
# Of a bundled model whose images.zip is its whole training set: whether training also mirrored the images.
TRAINING_SET_FIELDS: dict[str, Any] = {"mirrored": bool}


class CheckpointError(ValueError):
    """A folder is not a usable checkpoint. The message names the folder and states the problem."""

    def __init__(self, message: str):
        super().__init__(readable(message))  # a folder's name may not be valid UTF-8


def check_config(config: Any, where: str) -> None:
    """Raise CheckpointError, with a message that begins with `where`, unless every field is known, has its type and is
    within its bounds.
    """
    try:
        _check_fields(
            config, {"network": dict, "policy": dict, **CARD_FIELDS}, "config.json", required=("network", "policy")
        )
        kind = config["network"].get("type")
        if not isinstance(kind, str) or kind not in NETWORKS:
            raise CheckpointError(f"unknown network {quote(kind)}; this version supports: {', '.join(NETWORKS)}")
        fields = NETWORK_FIELDS[kind]
        required = ("type", *(name for name in fields if name not in OPTIONAL[kind]))
        _check_fields(config["network"], {"type": str, **fields}, "network", required)
        _check_fields(config["policy"], POLICY_FIELDS, "policy", required=())
        _check_policy(**config["policy"])
        _check_classes(config)
        _check_fields(config.get("sampling", {}), SAMPLING_FIELDS, "sampling", required=())
        _check_sampling(config["policy"].get("consistency", False), **config.get("sampling", {}))
        _check_fields(config.get("training_set", {}), TRAINING_SET_FIELDS, "training_set", required=())
    except (ValueError, TypeError, OverflowError) as error:  # includes CheckpointError
        raise CheckpointError(f"{where}: {error}") from None


def _check_policy(
    objective: str = "v",
    noise_schedule: str = "sigmoid",
    schedule_kwargs: dict[str, Any] | None = None,
    scale: float = 1,
    min_snr_gamma: float = 5,
    consistency: bool = False,
    **_: Any,
) -> None:
    """Check the constraints on policy fields that POLICY_FIELDS does not express. The defaults are those of
    DiffusionPolicy.
    """
    if objective not in OBJECTIVES:
        raise CheckpointError(f"unknown objective {quote(objective)}; choose one of: {', '.join(OBJECTIVES)}")
    if consistency and objective == "eps":
        raise CheckpointError("a consistency model predicts 'v' or 'x0', got objective 'eps'")
    if scale <= 0:
        raise CheckpointError(f"scale must lie in (0, 1], got {quote(scale)}")
    if min_snr_gamma <= 0:
        raise CheckpointError(f"min_snr_gamma must be positive, got {quote(min_snr_gamma)}")
    checked(make_schedule(noise_schedule, schedule_kwargs), scale)


def _check_classes(config: dict[str, Any]) -> None:
    """Check that the names of the classes are unique, short and printable, and as many as the network has classes."""
    names, count = config.get("classes", []), config["network"].get("num_classes", 0)
    if "classes" in config and len(names) != count:
        raise CheckpointError(f"classes has {len(names)} names, but the network has {count} classes")
    for name in names:
        if not name.strip() or not name.isprintable() or len(name) > MAX_CLASS_NAME:
            rule = f"must be printable text of at most {MAX_CLASS_NAME} characters"
            raise CheckpointError(f"the name of a class {rule}, got {quote(name)}")
    if len(set(names)) < len(names):
        twice = next(name for name in names if names.count(name) > 1)
        raise CheckpointError(f"two classes have the name {quote(twice)}")


def _check_sampling(
    is_tuned: bool,
    sampler: str = "ddim",
    guidance_interval: list[float] | None = None,
    **_: Any,
) -> None:
    """Check the constraints on `sampling` that SAMPLING_FIELDS does not express."""
    if sampler not in SAMPLERS:
        raise CheckpointError(f"unknown sampler {quote(sampler)} in sampling; choose one of: {', '.join(SAMPLERS)}")
    if sampler == "consistency" and not is_tuned:
        raise CheckpointError("the sampler 'consistency' in sampling needs a model whose policy has consistency = true")
    bounds = [0, 1] if guidance_interval is None else guidance_interval
    if len(bounds) != 2 or bounds[0] > bounds[1]:
        raise CheckpointError(f"guidance_interval in sampling must be [low, high], got {quote(bounds)}")


def _check_fields(values: Any, fields: dict[str, Any], where: str, required: tuple[str, ...]) -> None:
    if not isinstance(values, dict):
        raise CheckpointError(f"{where} must be an object, got {type(values).__name__}")
    if unknown := values.keys() - fields.keys():
        raise CheckpointError(f"unknown field {quote(min(unknown))} in {where}")
    if missing := [name for name in required if name not in values]:
        raise CheckpointError(f"{where} has no field {quote(missing[0])}, which is required")
    for name, value in values.items():
        _check_value(f"{quote(name)} in {where}", value, fields[name])


def _check_value(what: str, value: Any, rule: Any) -> None:
    if isinstance(rule, list):
        element, longest = rule
        if not isinstance(value, list) or len(value) > longest:
            raise CheckpointError(f"{what} must be a list of at most {longest} items, got {quote(value)}")
        for item in value:
            _check_value(what, item, element)
    elif isinstance(rule, tuple):
        kind, low, high = rule
        if isinstance(value, bool) or not isinstance(value, (int, kind)) or not low <= value <= high:
            raise CheckpointError(
                f"{what} must be {'a whole' if kind is int else 'a'} number from {low} to {high}, got {quote(value)}"
            )
    elif not isinstance(value, rule):
        kind = {bool: "true or false", str: "text", dict: "an object"}[rule]
        raise CheckpointError(f"{what} must be {kind}, got {quote(value)}")
