"""The training state, on disk beside the weights of the last few checkpoints, for an exact resume:

    training-state/state.safetensors  model/..., ema/..., optimizer/<parameter>/<moment>
                   state.json         step, seed, ...

No random state is kept: see dp.training.batches. No pickle: the files are read as safely as a model.
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
from dp.system.records import NUMBER, WHOLE, check_fields, read
from dp.training.run_folder import RunFolder

KEEP_TRAINING_STATES = 3  # the weights of every milestone are kept; what resuming needs is three times as large
RECORD: dict[str, Any] = {"step": WHOLE, "seed": WHOLE, "lr_decay_steps": WHOLE, "lr_factor": NUMBER, "setbacks": WHOLE}


# ----------------------------------------------------------------------------
# What a step changes


def tensors_of(policy: nn.Module, ema: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """Copies of all that a resumed run starts from, under flat names, on the CPU."""
    parts = {f"model/{name}": value for name, value in policy.state_dict().items()}
    parts |= {f"ema/{name}": value for name, value in ema.state_dict().items()}
    for index, moments in optimizer.state_dict()["state"].items():
        parts |= {f"optimizer/{index}/{key}": value for key, value in moments.items()}
    return {name: value.detach().cpu().clone() for name, value in parts.items()}


def restore(flat: dict[str, Tensor], policy: nn.Module, ema: nn.Module, optimizer: torch.optim.Optimizer) -> None:
    """The reverse of `tensors_of`."""
    tensors: dict[str, dict[str, Tensor]] = {"model": {}, "ema": {}, "optimizer": {}}
    for name, value in flat.items():
        part, _, rest = name.partition("/")
        tensors[part][rest] = value
    policy.load_state_dict(tensors["model"])
    ema.load_state_dict(tensors["ema"])
    moments: dict[int, dict[str, Tensor]] = {}
    for name, value in tensors["optimizer"].items():
        index, _, key = name.partition("/")
        moments.setdefault(int(index), {})[key] = value
    optimizer.load_state_dict({"state": moments, "param_groups": optimizer.state_dict()["param_groups"]})


# ----------------------------------------------------------------------------
# On disk


def write_state(checkpoint: Path, tensors: dict[str, Tensor], record: dict[str, Any], is_milestone: bool) -> None:
    folder = checkpoint / "training-state"
    folder.mkdir()
    save_file(tensors, folder / "state.safetensors")
    (folder / "state.json").write_text(json.dumps(record | {"is_milestone": is_milestone}), encoding="utf-8")


def read_state(run: RunFolder, milestone: int) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Raises CheckpointError where there is none, or none that can be read."""
    folder = run.checkpoint(milestone)
    if milestone not in (there := resumable(run)):
        raise CheckpointError(
            f"cannot resume from step {milestone} in {run.path}: "
            f"only the last {KEEP_TRAINING_STATES} checkpoints keep what resuming needs; "
            + (f"there are: {', '.join(map(str, there))}" if there else "there are none")
        )
    with told_by_name(folder):
        record = read(folder / "training-state" / "state.json")
        check_fields(record, RECORD)
        if missing := [key for key in ("step", "seed", "lr_factor", "setbacks") if record.get(key) is None]:
            raise ValueError(f"state.json lacks {missing[0]!r}")
        if not (file := folder / "training-state" / "state.safetensors").is_file():
            raise ValueError("state.safetensors is missing")
        tensors = load_file(file)
        return {name: value.clone() for name, value in tensors.items()}, record  # they may lie in the file itself


@contextmanager
def told_by_name(checkpoint: Path) -> Iterator[None]:
    """Whatever is wrong with a training state is a CheckpointError."""
    try:
        yield
    except (OSError, ValueError, TypeError, KeyError, RuntimeError, SafetensorError) as error:
        raise CheckpointError(f"{checkpoint}: cannot resume from its training-state ({error})") from None


def resumable(run: RunFolder) -> list[int]:
    """The milestones with a training state, rising."""
    return [m for m in run.milestones() if os.path.isfile(run.checkpoint(m) / "training-state" / "state.json")]


def prune(run: RunFolder, milestone: int) -> None:
    """Before the last few checkpoints up to `milestone`, keep the weights of milestones, and nothing of the others.
    Later ones are of another run in this folder: this one has not come so far.
    """
    for old in [m for m in resumable(run) if m <= milestone][:-KEEP_TRAINING_STATES]:
        folder = run.checkpoint(old)
        gone = folder / "training-state"
        with suppress(OSError, ValueError, KeyError):  # where it does not say, it is kept
            gone = gone if read(gone / "state.json")["is_milestone"] else folder
        aside = folder.with_name(f".{folder.name}.{os.getpid()}.tmp")
        os.replace(gone, aside)  # at once, so that nobody sees half of it
        shutil.rmtree(aside)
