"""The Hub's models that are at hand here. A note for each, `.hub/user--name` below DP_HOME, holds the path of its
folder in the Hugging Face cache, where the files stay. The note's time is that of the last use, in whichever process.
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
    """Have the model of a folder that `hub.pull` gave at hand, under its name on the Hub."""
    with replacing(_note(home, repo_id)) as aside:
        aside.write_text(str(folder), encoding="utf-8")


def listed(home: str | Path) -> list[Entry]:
    """Those whose folders are there, the one used last first."""
    notes = []
    for note in Path(home).glob(".hub/[!.]*--*"):
        with suppress(OSError, ValueError):  # just given up, perhaps
            folder = Path(note.read_text(encoding="utf-8"))
            if folder.is_dir() and name_of(note) == note.name:
                notes.append((note.stat().st_mtime_ns, note.name, folder))
    found = [(name, look_at(folder)) for _, name, folder in sorted(notes, reverse=True)]
    return [replace(entry, hub=name.replace("--", "/")) for name, entry in found if entry]


def used(home: str | Path, repo_id: str) -> None:
    with suppress(OSError):
        _note(home, repo_id).touch()


def trim(home: str | Path, most: int, most_bytes: int) -> None:
    """Give up those that have not been used for longest, with their files, beyond `most` or so many bytes in all; the
    one used last stays in any case.
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
