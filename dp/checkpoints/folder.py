"""One folder = one model: config.json, model.safetensors, README.md. The same whether bundled, saved by training or
handed over.

config.json rebuilds the model: {"network": {"type": ..., ...}, "policy": {...}, and optionally "step", "dataset",
"license"}. It is checked field by field before anything is allocated, and the weights' shapes against it before they
are read. No pickle is ever loaded.
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
from dp.networks.rin import NETWORKS
from dp.system.records import parse
from dp.system.validation import quote

MAX_PARAMETERS = 2_000_000_000
MAX_CONFIG = 100_000  # bytes of config.json
FLOATS = ("F64", "F32", "F16", "BF16")  # what weights may be on disk, as safetensors names it


def save(
    folder: str | Path, network: nn.Module, config: Mapping[str, Any], *, dtype: torch.dtype | None = None
) -> None:
    """Write a checkpoint folder, over one that may stand there. config: "policy", and optionally "step", "dataset" and
    "license"; the network describes itself. dtype: of the weights on disk, the network's own by default. A README.md
    that stands in the folder is kept.
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
    """Return the whole of config.json: `config`, as in `save`, and the network's own. Raises CheckpointError where it
    could not be read back.
    """
    kind = next((name for name, known in NETWORKS.items() if type(network) is known), None)
    if kind is None:
        raise CheckpointError(
            f"cannot save a {type(network).__name__}: a checkpoint may name only {', '.join(NETWORKS)}"
        )
    whole = {"network": {"type": kind, **network.config}} | {key: config[key] for key in config if key != "network"}
    try:
        whole = json.loads(json.dumps(whole, default=lambda number: number.item()))  # NumPy's numbers as plain ones
    except (TypeError, AttributeError) as error:
        raise CheckpointError(f"this model cannot be saved: its config is not JSON ({error})") from None
    check_config(whole, "this model cannot be saved")
    return whole


def load(folder: str | Path) -> tuple[nn.Module, dict[str, Any]]:
    """Return the network of a checkpoint folder, on the CPU in float32, and its checked config, of which
    `DiffusionPolicy(network, **config["policy"])` makes the model. Raises CheckpointError with what is wrong.
    """
    folder = Path(folder)
    if not os.path.isdir(folder):
        raise CheckpointError(f"{quote(str(folder))}: there is no such folder")
    network, config = inspect(folder)
    with safe_open(folder / "model.safetensors", "pt") as file:
        # Copies: what `get_tensor` gives may lie in the file itself, which someone may write over.
        weights = {name: file.get_tensor(name).to(torch.float32, copy=True) for name in file.keys()}  # noqa: SIM118
    network.load_state_dict(weights, assign=True)
    return network, config


def build(config: dict[str, Any], where: str, device: str = "cpu") -> nn.Module:
    """Return a new network for a config that has been checked; its weights come from torch's global generator. Raises
    CheckpointError, which begins with `where`.
    """
    options = dict(config["network"])
    try:
        with torch.device(device):
            return NETWORKS[options.pop("type")](**options)
    except (ValueError, TypeError, OverflowError) as error:
        raise CheckpointError(f"{where}: {error}") from None


def inspect(folder: Path) -> tuple[nn.Module, dict[str, Any]]:
    """Return the network of a checkpoint folder without its weights, and its config, after checking all but the values
    of the weights.
    """
    config = read_config(folder)
    network = build(config, str(folder), device="meta")  # nothing is allocated before the file shows that it holds it
    weights = network.state_dict()
    check_weights(folder / "model.safetensors", {name: tuple(value.shape) for name, value in weights.items()})
    return network, config


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
