"""The models from the Hub that the app lists. For each, a file `.hub/user--name` below DP_HOME holds the path of its
folder in the Hugging Face cache. The file's modification time is the time of the model's last use by any process.
"""

from __future__ import annotations

from contextlib import suppress
from dataclasses import replace
from pathlib import Path

from dp.checkpoints.catalog import Entry, look_at
from dp.hub import models
from dp.system.atomic_files import replacing
from dp.system.records import name_of


def put(home: str | Path, repo_id: str, folder: Path) -> None:
    """Add a model to the list under its name on the Hub. folder: the path that `models.pull` returned."""
    with replacing(_note(home, repo_id)) as aside:
        aside.write_text(str(folder), encoding="utf-8")


def listed(home: str | Path) -> list[Entry]:
    """Return an entry for each model whose folder still exists, most recently used first."""
    notes = []
    for note in Path(home).glob(".hub/[!.]*--*"):
        with suppress(OSError, ValueError):  # another process may have removed it just now
            folder = Path(note.read_text(encoding="utf-8"))
            if folder.is_dir() and name_of(note) == note.name:
                notes.append((note.stat().st_mtime_ns, note.name, folder))
    found = [(name, look_at(folder)) for _, name, folder in sorted(notes, reverse=True)]
    return [replace(entry, hub=name.replace("--", "/")) for name, entry in found if entry]


def used(home: str | Path, repo_id: str) -> None:
    with suppress(OSError):
        _note(home, repo_id).touch()


def trim(home: str | Path, most: int, most_bytes: int) -> None:
    """Remove the least recently used models beyond `most` models or `most_bytes` of weights, with their files. The most
    recently used one is always kept.
    """
    total = 0
    for place, entry in enumerate(listed(home)):
        with suppress(OSError):
            total += (entry.path / "model.safetensors").stat().st_size
        if place and (place >= most or total > most_bytes):
            _note(home, entry.name).unlink(missing_ok=True)
            models.forget(entry.name)


def _note(home: str | Path, repo_id: str) -> Path:
    return Path(home) / ".hub" / repo_id.replace("/", "--")
