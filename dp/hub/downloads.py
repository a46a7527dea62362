"""The models from the Hub that the app lists. For each, a file `.hub/user--name` below DP_HOME holds the path of its
folder in the Hugging Face cache. The file's modification time is the time of the model's last use by any process.
"""

from __future__ import annotations

from contextlib import suppress
from dataclasses import replace
from pathlib import Path

from dp.checkpoints.catalog import CheckpointInfo, inspect_folder
from dp.hub import models
from dp.system.atomic_files import replacing
from dp.system.records import name_of


def add(home: str | Path, repo_id: str, folder: Path) -> None:
    """Add a model to the list under its name on the Hub. folder: the path that `models.download` returned."""
    with replacing(_note_path(home, repo_id)) as aside:
        aside.write_text(str(folder), encoding="utf-8")


def list_models(home: str | Path) -> list[CheckpointInfo]:
    """Return an entry for each model whose folder still exists, most recently used first."""
    notes = []
    for note in Path(home).glob(".hub/[!.]*--*"):
        with suppress(OSError, ValueError):  # another process may have removed it just now
            folder = Path(note.read_text(encoding="utf-8"))
            if folder.is_dir() and name_of(note) == note.name:
                notes.append((note.stat().st_mtime_ns, note.name, folder))
    found = [(name, inspect_folder(folder)) for _, name, folder in sorted(notes, reverse=True)]
    return [replace(entry, hub=name.replace("--", "/")) for name, entry in found if entry]


def mark_used(home: str | Path, repo_id: str) -> None:
    """Set the time of the last use of a model to now."""
    with suppress(OSError):
        _note_path(home, repo_id).touch()


def evict(home: str | Path, most: int, most_bytes: int) -> None:
    """Remove the least recently used models beyond `most` models or `most_bytes` of weights, with their files. The most
    recently used one is always kept.
    """
    total = 0
    for place, entry in enumerate(list_models(home)):
        with suppress(OSError):
            total += (entry.path / "model.safetensors").stat().st_size
        if place and (place >= most or total > most_bytes):
            _note_path(home, entry.name).unlink(missing_ok=True)
            models.delete_cached(entry.name)


def _note_path(home: str | Path, repo_id: str) -> Path:
    return Path(home) / ".hub" / repo_id.replace("/", "--")
