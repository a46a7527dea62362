"""List checkpoints: the folders below a root that hold a model, with the error of each damaged one."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from dp.checkpoints.folder import inspect
from dp.checkpoints.schema import CheckpointError
from dp.networks.rin import NETWORKS
from dp.system.records import name_of, readable


@dataclass(frozen=True)
class CheckpointInfo:
    """One folder in a list of checkpoints. `config` is None if the checkpoint is damaged, and `problem` then holds the
    error. run: the display name of the training run that saved the checkpoint. hub: "user/name" of a model from the
    Hugging Face Hub. is_exact: whether the entry stands for the best possible denoiser of the model's training images
    instead of its network; see `dp.serving.exact_models`.
    """

    path: Path
    config: dict[str, Any] | None = None
    problem: str | None = None
    run: str | None = None
    hub: str | None = None
    is_exact: bool = False

    @property
    def kind(self) -> str:
        """'image' or 'sequence', by what the model draws. A damaged checkpoint counts as one of images."""
        return NETWORKS[self.config["network"]["type"]].kind if self.config else "image"

    @property
    def name(self) -> str:
        if self.run:
            return f"{self.run}/{self._own_name}"
        return self.hub or (f"{self._own_name}, exact" if self.is_exact else self._own_name)

    @property
    def title(self) -> str:
        """Return the name as the page shows it: the step of a run's checkpoint comes first, as long names are cut."""
        return f"{self._own_name} · {self.run}" if self.run else self.name

    @property
    def _own_name(self) -> str:
        return "exact" if self.is_exact and self.run else name_of(self.path)


def list_checkpoints(*roots: str | Path) -> list[CheckpointInfo]:
    """Return an entry for each folder directly below the roots that holds a config.json or weights, sorted by name. A
    damaged checkpoint has its error in `problem`.
    """
    found = (inspect_folder(path) for root in roots for path in sorted(Path(root).glob("[!.]*")))
    return [entry for entry in found if entry]


def inspect_folder(path: Path) -> CheckpointInfo | None:
    """Return the entry of one folder, or None if it holds neither a config.json nor weights."""
    try:
        files = {file.name: file.stat().st_mtime_ns if file.exists() else 0 for file in path.iterdir()}
    except NotADirectoryError:
        return None
    except OSError as error:
        return CheckpointInfo(path, problem=readable(f"{path}: {error.strerror}"))
    return _cached_info(path, frozenset(files.items())) if files.keys() & {"config.json", "model.safetensors"} else None


@lru_cache(maxsize=4096)
def _cached_info(path: Path, files: frozenset[tuple[str, int]]) -> CheckpointInfo:
    """Return the entry of one folder. The folder is read again only when the modification time of one of its files
    changes.
    """
    try:
        return CheckpointInfo(path, inspect(path)[1])
    except CheckpointError as error:
        return CheckpointInfo(path, problem=str(error))
