"""One folder = one model: config.json, model.safetensors, README.md. The same whether bundled, saved by training or
handed over.

config.json rebuilds the model: {"network": {"type": ..., ...}, "policy": {...}, and optionally "step", "dataset",
"license"}. It is checked field by field before anything is allocated, and the weights' shapes against it before they
are read. No pickle is ever loaded.

Over budget: a third of this file is the table of what a config may say, which belongs beside the check.
"""

from __future__ import annotations

import json
import os
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from dp.checkpoints.model_card import model_card
from dp.diffusion.policy import DiffusionPolicy
from dp.networks.rin import NETWORKS
from dp.system.records import name_of, parse, readable
from dp.system.validation import quote

# What config.json may say, and within which bounds: a number's (type, low, high), a list's (element, longest), or a
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
}
NETWORK_FIELDS: dict[str, dict[str, Any]] = {
    "rin": {
        "dim": (int, 8, 4096),
        "image_size": (int, 1, 2048),
        "patch_size": (int, 1, 256),
        "channels": (int, 1, 4),
        "depth": (int, 1, 64),
        "latent_self_attn_depth": (int, 0, 32),
        "dim_latent": (int, 8, 4096),
        "num_latents": (int, 1, 8192),
        "heads": (int, 1, 64),
        "dim_head": (int, 1, 512),
        "conv_widths": [(int, 8, 4096), 6],
        "conv_blocks": (int, 1, 16),
    }
}
CARD_FIELDS: dict[str, Any] = {"step": (int, 0, 2**53), "dataset": str, "license": str}
MAX_PARAMETERS = 2_000_000_000
MAX_CONFIG = 100_000  # bytes of config.json
FLOATS = ("F64", "F32", "F16", "BF16")  # what weights may be on disk, as safetensors names it


class CheckpointError(ValueError):
    """A folder that is not a usable checkpoint; the message names the folder and says what is wrong with it."""

    def __init__(self, message: str):
        super().__init__(readable(message))  # it names a folder, and a folder's name may be anything


@dataclass(frozen=True)
class Entry:
    """One folder of a list of checkpoints: its config if it is whole, else what is wrong with it. run: what the
    training run is called of which it is a milestone. hub: "user/name" of a model from the Hugging Face Hub.
    """

    path: Path
    config: dict[str, Any] | None = None
    problem: str | None = None
    run: str | None = None
    hub: str | None = None

    @property
    def name(self) -> str:
        return self.hub or (f"{self.run}/{name_of(self.path)}" if self.run else name_of(self.path))


def save(policy: DiffusionPolicy, folder: str | Path, *, dtype: torch.dtype | None = None, **card: Any) -> None:
    """Write `policy` as a checkpoint folder, over one that may stand there. dtype: of the weights on disk, the model's
    own by default. card: step, dataset, license. A README.md that stands in the folder is kept.
    """
    folder = Path(folder)
    config = config_of(policy, **card)
    folder.mkdir(parents=True, exist_ok=True)
    weights = {name: value.detach().to("cpu", dtype).contiguous() for name, value in policy.model.state_dict().items()}
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    (folder / "config.json").write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
    if not (folder / "README.md").exists():
        count = sum(value.numel() for value in weights.values())
        (folder / "README.md").write_text(model_card(config, count, "path/to/this/folder"), encoding="utf-8")


def config_of(policy: DiffusionPolicy, **card: Any) -> dict[str, Any]:
    """What config.json says of `policy`. Raises CheckpointError where it could not be read back."""
    kind = next((name for name, network in NETWORKS.items() if type(policy.model) is network), None)
    if kind is None:
        raise CheckpointError(
            f"cannot save a {type(policy.model).__name__}: a checkpoint may name only {', '.join(NETWORKS)}"
        )
    config = {"network": {"type": kind, **policy.model.config}, "policy": policy.config, **card}
    try:
        config = json.loads(json.dumps(config, default=lambda number: number.item()))  # NumPy's numbers as plain ones
    except (TypeError, AttributeError) as error:
        raise CheckpointError(f"this model cannot be saved: its config is not JSON ({error})") from None
    check_config(config, "this model cannot be saved")
    return config


def load(folder: str | Path) -> DiffusionPolicy:
    """The model of a checkpoint folder, on the CPU in float32. Raises CheckpointError with what is wrong."""
    folder = Path(folder)
    if not os.path.isdir(folder):
        raise CheckpointError(f"{quote(str(folder))}: there is no such folder")
    _, policy = inspect(folder)
    with safe_open(folder / "model.safetensors", "pt") as file:
        # Copies: what `get_tensor` gives may lie in the file itself, which someone may write over.
        weights = {name: file.get_tensor(name).to(torch.float32, copy=True) for name in file.keys()}  # noqa: SIM118
    policy.model.load_state_dict(weights, assign=True)
    return policy


def build(config: dict[str, Any], where: str, device: str = "cpu") -> DiffusionPolicy:
    """A new model of a config that has been checked; its weights come from torch's global generator. Raises
    CheckpointError, which begins with `where`.
    """
    network = dict(config["network"])
    try:
        with torch.device(device):
            model = NETWORKS[network.pop("type")](**network)
        return DiffusionPolicy(model, **config["policy"])
    except (ValueError, TypeError, OverflowError) as error:
        raise CheckpointError(f"{where}: {error}") from None


def inspect(folder: Path) -> tuple[dict[str, Any], DiffusionPolicy]:
    """The config of a checkpoint folder and its model without weights, after all but their values has been checked."""
    config = read_config(folder)
    policy = build(config, str(folder), device="meta")  # nothing is allocated before the file shows that it holds it
    weights = policy.model.state_dict()
    check_weights(folder / "model.safetensors", {name: tuple(value.shape) for name, value in weights.items()})
    return config, policy


def list_checkpoints(*roots: str | Path) -> list[Entry]:
    """Every folder directly below the roots that holds a config.json or weights, by name; those that cannot be used say
    why.
    """
    found = (look_at(path) for root in roots for path in sorted(Path(root).glob("[!.]*")))
    return [entry for entry in found if entry]


def look_at(path: Path) -> Entry | None:
    """The entry of one folder; None where it holds neither a config.json nor weights."""
    try:
        files = {file.name: file.stat().st_mtime_ns if file.exists() else 0 for file in path.iterdir()}
    except NotADirectoryError:
        return None
    except OSError as error:
        return Entry(path, problem=readable(f"{path}: {error.strerror}"))
    return entry_of(path, frozenset(files.items())) if files.keys() & {"config.json", "model.safetensors"} else None


@lru_cache(maxsize=4096)
def entry_of(path: Path, files: frozenset[tuple[str, int]]) -> Entry:
    """The entry of one folder, looked at again only when one of its files has another time."""
    try:
        return Entry(path, inspect(path)[0])
    except CheckpointError as error:
        return Entry(path, problem=str(error))


def read_config(folder: Path) -> dict[str, Any]:
    """config.json of a checkpoint folder, checked. Raises CheckpointError."""
    if not os.path.isdir(folder):  # False also for a name that is too long
        raise CheckpointError(f"{folder}: there is no such folder")
    for name in ("config.json", "model.safetensors"):
        if not (folder / name).is_file():
            raise CheckpointError(f"{folder}: {name} is missing")
    return parse_config(folder / "config.json")


def parse_config(path: Path) -> dict[str, Any]:
    """The same of the file alone."""
    try:
        with path.open("rb") as file:
            text = file.read(MAX_CONFIG + 1)
    except OSError as error:
        raise CheckpointError(f"{path.parent}: config.json cannot be read ({error.strerror})") from None
    if len(text) > MAX_CONFIG:
        raise CheckpointError(f"{path.parent}: config.json is larger than {MAX_CONFIG:,} bytes")
    try:
        config = parse(text.decode("utf-8"))
    except ValueError as error:
        raise CheckpointError(f"{path.parent}: config.json is not JSON ({error})") from None
    check_config(config, str(path.parent))
    return config


def check_config(config: Any, where: str) -> None:
    """Raises CheckpointError, which begins with `where`, unless every field is known, of its type and in its bounds."""
    try:
        _check_fields(
            config, {"network": dict, "policy": dict, **CARD_FIELDS}, "config.json", required=("network", "policy")
        )
        kind = config["network"].get("type")
        if not isinstance(kind, str) or kind not in NETWORKS:
            raise CheckpointError(f"unknown network {quote(kind)}; this version knows: {', '.join(NETWORKS)}")
        fields = NETWORK_FIELDS[kind]
        _check_fields(config["network"], {"type": str, **fields}, "network", required=("type", *fields))
        _check_fields(config["policy"], POLICY_FIELDS, "policy", required=())
    except CheckpointError as error:
        raise CheckpointError(f"{where}: {error}") from None


def check_weights(path: Path, shapes: dict[str, tuple[int, ...]]) -> None:
    """Raises CheckpointError unless the header of a safetensors file shows exactly `shapes`."""
    if sum(torch.Size(shape).numel() for shape in shapes.values()) > MAX_PARAMETERS:
        raise CheckpointError(f"{path.parent}: more than {MAX_PARAMETERS:,} parameters")
    try:
        with safe_open(path, "pt") as file:
            found = {name: tuple(file.get_slice(name).get_shape()) for name in file.keys()}  # noqa: SIM118 (not a dict)
            if wrong := [name for name in sorted(found.keys() | shapes.keys()) if found.get(name) != shapes.get(name)]:
                name = wrong[0]
                expected = (
                    f"the config asks for {shapes[name]}" if name in shapes else "the config knows no such tensor"
                )
                raise CheckpointError(
                    f"{path.parent}: {len(wrong)} tensors do not fit; first {name}: "
                    f"the file holds {found.get(name, 'none')}, {expected}"
                )
            kinds = {name: file.get_slice(name).get_dtype() for name in shapes}
            if other := [name for name in sorted(kinds) if kinds[name] not in FLOATS]:
                raise CheckpointError(
                    f"{path.parent}: {other[0]} holds {kinds[other[0]]}, not one of {', '.join(FLOATS)}"
                )
    except (SafetensorError, OSError) as error:
        raise CheckpointError(f"{path.parent}: model.safetensors cannot be read ({error})") from None


def _check_fields(values: Any, fields: dict[str, Any], where: str, required: tuple[str, ...]) -> None:
    if not isinstance(values, dict):
        raise CheckpointError(f"{where} must be an object, got {type(values).__name__}")
    if unknown := values.keys() - fields.keys():
        raise CheckpointError(f"unknown field {quote(min(unknown))} in {where}")
    if missing := [name for name in required if name not in values]:
        raise CheckpointError(f"{where} lacks the field {quote(missing[0])}")
    for name, value in values.items():
        _check_value(f"{quote(name)} in {where}", value, fields[name])


def _check_value(what: str, value: Any, rule: Any) -> None:
    if isinstance(rule, list):
        element, longest = rule
        if not isinstance(value, list) or len(value) > longest:
            raise CheckpointError(f"{what} must be a list of at most {longest}, got {quote(value)}")
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
