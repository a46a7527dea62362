"""The training state that is stored beside the weights of the last few checkpoints, for an exact resume:

    training-state/state.safetensors  model/..., ema/..., optimizer/<parameter>/<moment>
                   state.json         step, seed, ...

No random state is stored; see dp.training.batches. No pickle is used, so the files are as safe to read as a model.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from dp.checkpoints.schema import CheckpointError
from dp.checkpoints.tensor_names import current_names
from dp.system.records import NUMBER, WHOLE, check_fields, read
from dp.training.run_folder import RunFolder

KEEP_TRAINING_STATES = 3  # a training state is three times as large as the weights, which are all kept
FIELDS: dict[str, Any] = {"step": WHOLE, "seed": WHOLE, "lr_decay_steps": WHOLE, "lr_factor": NUMBER}
FIELDS |= {"rollbacks": WHOLE, "precision": str}


# ----------------------------------------------------------------------------
# In memory


def state_tensors(policy: nn.Module, ema: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """Return copies, on the CPU and under flat names, of all tensors that a resumed run starts from."""
    parts = {f"model/{name}": value for name, value in policy.state_dict().items()}
    parts |= {f"ema/{name}": value for name, value in ema.state_dict().items()}
    names = parameter_names(policy, optimizer)
    for index, moments in optimizer.state_dict()["state"].items():
        parts |= {f"optimizer/{names[index]}/{key}": value for key, value in moments.items()}
    return {name: value.detach().cpu().clone() for name, value in parts.items()}


def restore(flat: dict[str, Tensor], policy: nn.Module, ema: nn.Module, optimizer: torch.optim.Optimizer) -> None:
    """Load the tensors that `state_tensors` returned. Files of the first version number the optimizer's parameters
    instead of naming them.
    """
    tensors: dict[str, dict[str, Tensor]] = {"model": {}, "ema": {}, "optimizer": {}}
    for name, value in flat.items():
        part, _, rest = name.partition("/")
        tensors[part][rest] = value
    policy.load_state_dict(tensors["model"])
    ema.load_state_dict(tensors["ema"])
    indices = {name: index for index, name in enumerate(parameter_names(policy, optimizer))}
    moments: dict[int, dict[str, Tensor]] = {}
    for path, value in tensors["optimizer"].items():
        name, _, key = path.rpartition("/")
        moments.setdefault(int(name) if name.isdecimal() else indices[name], {})[key] = value
    optimizer.load_state_dict({"state": moments, "param_groups": optimizer.state_dict()["param_groups"]})


def parameter_names(policy: nn.Module, optimizer: torch.optim.Optimizer) -> list[str]:
    """Return the names of the optimizer's parameters in the order of its state."""
    names = {id(value): name for name, value in policy.named_parameters()}
    return [names[id(value)] for group in optimizer.param_groups for value in group["params"]]


# ----------------------------------------------------------------------------
# On disk


def write_state(checkpoint: Path, tensors: dict[str, Tensor], record: dict[str, Any], is_scheduled: bool) -> None:
    """Write the training state into a checkpoint folder. is_scheduled: keep the weights when the state is pruned."""
    folder = checkpoint / "training-state"
    folder.mkdir()
    save_file(tensors, folder / "state.safetensors")
    (folder / "state.json").write_text(json.dumps(record | {"is_milestone": is_scheduled}), encoding="utf-8")


def read_state(run: RunFolder, step: int) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Return the tensors and the record of a training state. Raises CheckpointError if it is missing or damaged."""
    folder = run.checkpoint(step)
    if step not in (available := resumable_steps(run)):
        raise CheckpointError(
            f"cannot resume from step {step} in {run.path}: only the last {KEEP_TRAINING_STATES} checkpoints keep a "
            f"training state; available: {', '.join(map(str, available)) or 'none'}"
        )
    with translate_errors(folder):
        record = _parse_record(read(folder / "training-state" / "state.json"))
        if not (file := folder / "training-state" / "state.safetensors").is_file():
            raise ValueError("state.safetensors is missing")
        tensors = load_file(file)
        # Clone: the tensors may be memory mapped from the file.
        return {name: tensors[stored].clone() for name, stored in current_names(tensors).items()}, record


def _parse_record(record: dict[str, Any]) -> dict[str, Any]:
    """Check a state.json. Version 1 wrote `setbacks` for `rollbacks`."""
    if "setbacks" in record:
        record = {"rollbacks": record["setbacks"]} | {key: record[key] for key in record if key != "setbacks"}
    check_fields(record, FIELDS)
    if missing := [key for key in ("step", "seed", "lr_factor", "rollbacks") if record.get(key) is None]:
        raise ValueError(f"state.json lacks {missing[0]!r}")
    return record


@contextmanager
def translate_errors(checkpoint: Path) -> Iterator[None]:
    """Raise CheckpointError for any error while a training state is read or loaded."""
    try:
        yield
    except (OSError, ValueError, TypeError, KeyError, RuntimeError, SafetensorError) as error:
        raise CheckpointError(f"{checkpoint}: cannot resume from its training-state ({error})") from None


def resumable_steps(run: RunFolder) -> list[int]:
    """Return the steps of the checkpoints that have a training state, in increasing order."""
    steps = run.checkpoint_steps()
    return [step for step in steps if os.path.isfile(run.checkpoint(step) / "training-state" / "state.json")]


def prune(run: RunFolder, step: int) -> None:
    """Prune all but the last few checkpoints up to `step`: delete the training state of a scheduled checkpoint, and all
    of one that was saved on request. Later checkpoints belong to an earlier run in this folder.
    """
    for old in [s for s in resumable_steps(run) if s <= step][:-KEEP_TRAINING_STATES]:
        folder = run.checkpoint(old)
        trash = folder / "training-state"
        with suppress(OSError, ValueError, KeyError):  # if state.json is damaged, keep the weights
            trash = trash if read(trash / "state.json")["is_milestone"] else folder
        renamed = folder.with_name(f".{folder.name}.{os.getpid()}.tmp")
        os.replace(trash, renamed)  # readers must not see it half deleted
        shutil.rmtree(renamed)
