"""Lists of checkpoints: the folders below a root that hold a model, and what is wrong with those that are damaged."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from dp.checkpoints.folder import inspect
from dp.checkpoints.schema import CheckpointError
from dp.system.records import name_of, readable


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
        return Entry(path, inspect(path)[1])
    except CheckpointError as error:
        return Entry(path, problem=str(error))
