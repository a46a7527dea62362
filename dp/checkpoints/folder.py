"""Checkpoint folders: config.json, model.safetensors and README.md. Bundled checkpoints, training runs and downloads
all use this format.

config.json holds the arguments that rebuild the model: {"network": {"type": ..., ...}, "policy": {...}}, and optionally
"step", "dataset" and "license". `load` checks every field before it allocates anything, and checks the shapes in the
weights' header against the config before it reads the weights. It never loads a pickle.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import nn

from dp.checkpoints.model_card import model_card
from dp.checkpoints.schema import CheckpointError, check_config
from dp.checkpoints.tensor_names import current_names
from dp.networks.rin import NETWORKS
from dp.system.records import parse
from dp.system.validation import quote

MAX_PARAMETERS = 2_000_000_000
MAX_CONFIG = 1_000_000  # size limit of config.json in bytes
FLOATS = ("F64", "F32", "F16", "BF16")  # dtypes accepted on disk, by their safetensors names


def save(
    folder: str | Path, network: nn.Module, config: Mapping[str, Any], *, dtype: torch.dtype | None = None
) -> None:
    """Write a checkpoint folder, and overwrite one that exists. config: "policy", and optionally "step", "dataset" and
    "license"; the network's own arguments are added. dtype: the dtype of the weights on disk, by default the network's.
    An existing README.md is kept.
    """
    folder = Path(folder)
    config = config_of(network, config)
    folder.mkdir(parents=True, exist_ok=True)
    weights = {name: value.detach().to("cpu", dtype).contiguous() for name, value in network.state_dict().items()}
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    (folder / "config.json").write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
    if not (folder / "README.md").exists():
        count = sum(value.numel() for value in weights.values())
        (folder / "README.md").write_text(model_card(config, count, "path/to/this/folder"), encoding="utf-8")


def config_of(network: nn.Module, config: Mapping[str, Any]) -> dict[str, Any]:
    """Return the full content of config.json: `config`, as in `save`, and the network's arguments. Raises
    CheckpointError if `load` could not read the result.
    """
    kind = next((name for name, known in NETWORKS.items() if type(network) is known), None)
    if kind is None:
        raise CheckpointError(
            f"cannot save a {type(network).__name__}; a checkpoint supports only these networks: {', '.join(NETWORKS)}"
        )
    whole = {"network": {"type": kind, **network.config}} | {key: config[key] for key in config if key != "network"}
    try:
        whole = json.loads(json.dumps(whole, default=lambda number: number.item()))  # convert NumPy scalars
    except (TypeError, AttributeError) as error:
        raise CheckpointError(
            f"this model cannot be saved because its config cannot be written as JSON ({error})"
        ) from None
    check_config(whole, "this model cannot be saved")
    return whole


def load(folder: str | Path) -> tuple[nn.Module, dict[str, Any]]:
    """Return the network of a checkpoint folder, on the CPU in float32, and its checked config.
    `DiffusionPolicy(network, **config["policy"])` builds the model. Raises CheckpointError, which states the problem.
    """
    folder = Path(folder)
    if not os.path.isdir(folder):
        raise CheckpointError(f"{quote(str(folder))}: the folder does not exist")
    network, config = inspect(folder)
    with safe_open(folder / "model.safetensors", "pt") as file:
        # Copy: `get_tensor` may return memory mapped from the file, which another process may overwrite.
        names = current_names(file.keys())
        weights = {name: file.get_tensor(stored).to(torch.float32, copy=True) for name, stored in names.items()}
    network.load_state_dict(weights, assign=True)
    return network, config


def load_weights(folder: str | Path, network: nn.Module) -> None:
    """Load the weights of a checkpoint folder into a network with the same arguments. Raises CheckpointError."""
    other, _ = load(folder)
    if type(other) is not type(network) or other.config != network.config:
        raise CheckpointError(f"{folder}: its network is not the one that its weights are needed for")
    network.load_state_dict(other.state_dict())


def build(config: dict[str, Any], where: str, device: str = "cpu") -> nn.Module:
    """Return a new network for a config that has been checked, initialized from torch's global generator. Raises
    CheckpointError with a message that begins with `where`.
    """
    options = dict(config["network"])
    try:
        with torch.device(device):
            return NETWORKS[options.pop("type")](**options)
    except (ValueError, TypeError, OverflowError) as error:
        raise CheckpointError(f"{where}: {error}") from None


def inspect(folder: Path) -> tuple[nn.Module, dict[str, Any]]:
    """Return the network of a checkpoint folder on the meta device, and its config. Everything except the values of the
    weights is checked. Raises CheckpointError.
    """
    config = read_config(folder)
    network = build(config, str(folder), device="meta")  # allocate nothing before the weights are checked
    weights = network.state_dict()
    check_weights(folder / "model.safetensors", {name: tuple(value.shape) for name, value in weights.items()})
    return network, config


def read_config(folder: Path) -> dict[str, Any]:
    """Return the checked config.json of a checkpoint folder. Raises CheckpointError, also if the weights are
    missing.
    """
    if not os.path.isdir(folder):  # also False for a name that is too long
        raise CheckpointError(f"{folder}: the folder does not exist")
    for name in ("config.json", "model.safetensors"):
        if not (folder / name).is_file():
            raise CheckpointError(f"{folder}: {name} is missing")
    return parse_config(folder / "config.json")


def parse_config(path: Path) -> dict[str, Any]:
    """Return the checked content of a config.json file. Raises CheckpointError."""
    try:
        with path.open("rb") as file:
            text = file.read(MAX_CONFIG + 1)
    except OSError as error:
        raise CheckpointError(f"{path.parent}: config.json cannot be read ({error.strerror})") from None
    if len(text) > MAX_CONFIG:
        raise CheckpointError(f"{path.parent}: config.json is larger than {MAX_CONFIG:,} bytes, the limit")
    try:
        config = parse(text.decode("utf-8"))
    except ValueError as error:
        raise CheckpointError(f"{path.parent}: config.json is not valid JSON ({error})") from None
    check_config(config, str(path.parent))
    return config


def check_weights(path: Path, shapes: dict[str, tuple[int, ...]]) -> None:
    """Raise CheckpointError unless the header of a safetensors file lists exactly the tensors and shapes in `shapes`,
    under their current names or under those of the first version.
    """
    if sum(torch.Size(shape).numel() for shape in shapes.values()) > MAX_PARAMETERS:
        raise CheckpointError(f"{path.parent}: the model has more than {MAX_PARAMETERS:,} parameters, the limit")
    try:
        with safe_open(path, "pt") as file:
            slices = {name: file.get_slice(stored) for name, stored in current_names(file.keys()).items()}
            found = {name: tuple(value.get_shape()) for name, value in slices.items()}
            dtypes = {name: value.get_dtype() for name, value in slices.items()}
    except (SafetensorError, OSError, ValueError) as error:
        raise CheckpointError(f"{path.parent}: model.safetensors cannot be read ({error})") from None
    if wrong := [name for name in sorted(found.keys() | shapes.keys()) if found.get(name) != shapes.get(name)]:
        name = wrong[0]
        expected = f"the config requires {shapes[name]}" if name in shapes else "the config has no such tensor"
        raise CheckpointError(
            f"{path.parent}: {len(wrong)} tensors do not match the config; first {name}: "
            f"the file holds {found.get(name, 'none')}, {expected}"
        )
    if other := [name for name in sorted(dtypes) if dtypes[name] not in FLOATS]:
        raise CheckpointError(
            f"{path.parent}: {other[0]} has dtype {dtypes[other[0]]}; supported are {', '.join(FLOATS)}"
        )
