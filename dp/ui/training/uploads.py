"""Uploads: images that were uploaded but not yet trained on, in folders below DP_HOME that are deleted after a day.

    .drafts/trial-...            a benchmark's run folder
    .drafts/<id>/upload/000000   an uploaded file, named by its number; its original name is only ever displayed
                 names.jsonl     the original names, one per line: {"file": number, "name": text}
                 dataset/        the accepted images, decoded at one size
                 draft.json      the number of files; after a check also the dataset's name, classes, size and count

The page uploads files in pieces and refers to them by the upload's random id, which only that page knows. Everything
else is stored here and not in Gradio's session store, which evicts the least recent sessions and lets anybody invent
new ones. Gradio's own upload component would lose the folders, fail because of one hidden file, and leave files behind.
"""

from __future__ import annotations

import base64
import binascii
import json
import os
import re
import secrets
import shutil
import time
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path, PurePath
from typing import Any

from dp.checkpoints.catalog import CheckpointInfo
from dp.data.archives import archive_kinds
from dp.data.archives.tar_blocks import RESERVED_BYTES
from dp.data.limits import Limits
from dp.system.environment import runs_dir
from dp.system.validation import check_encodable, quote

UPLOAD_TTL_S = 24 * 3600
MAX_PIECE_BYTES = 8 << 20  # in one message
NAMES = "names.jsonl"
MAX_NAME = 1000  # characters of a file's name; the last ones are kept, with the suffix
ID = re.compile(r"[0-9a-f]{32}")
LIMITS = Limits.from_environment()
CLOCK_OFFSET = time.time() - time.monotonic()  # of the wall clock, before somebody may set it


class Upload:
    """The upload with the id `name`. Raises ValueError if there is none."""

    def __init__(self, name: Any):
        if not isinstance(name, str) or not ID.fullmatch(name) or not (uploads_dir() / name).is_dir():
            raise ValueError("the server no longer has these images: upload them again")
        self.id, self.path = name, uploads_dir() / name
        self.files_dir, self.dataset = self.path / "upload", self.path / "dataset"
        self._metadata_file = self.path / "draft.json"

    @classmethod
    def create(cls) -> Upload:
        """Create an upload, and delete those that have not changed for a day."""
        for old in uploads_dir().glob("*"):
            with suppress(OSError):  # another process has just deleted it
                # By the wall clock, and by the wall clock as it was when this process started.
                ages = [now - old.stat().st_mtime for now in (time.time(), time.monotonic() + CLOCK_OFFSET)]
                if min(ages) > UPLOAD_TTL_S:
                    shutil.rmtree(old, ignore_errors=True)
                elif max(ages) < 0:  # dated in the future: count its day from now
                    os.utime(old)
        name = secrets.token_hex(16)
        (uploads_dir() / name / "upload").mkdir(parents=True)
        return cls(name)

    def file(self, number: Any) -> Path:
        """Return the path of file `number`. Raises ValueError if there may be no such file."""
        if not isinstance(number, int) or isinstance(number, bool) or not 0 <= number < LIMITS.files:
            raise ValueError(f"more than {LIMITS.files:,} files: upload fewer, or a ZIP file")
        return self.files_dir / f"{number:06d}"

    def write_pieces(self, pieces: Any) -> None:
        """Write pieces of files. Each has a `file` number, an `offset` and base64 `data`; the first piece of a file
        also has its `name`. Raises ValueError.
        """
        try:
            if shutil.disk_usage(self.path).free < RESERVED_BYTES:
                raise ValueError("the server's disk is nearly full: delete a run, or upload fewer images")
            for piece in pieces:
                path, data = self.file(piece["file"]), base64.b64decode(piece["data"], validate=True)
                size = path.stat().st_size if path.exists() else 0
                offset = piece["offset"]
                if not isinstance(offset, int) or not 0 <= offset <= size or len(data) > MAX_PIECE_BYTES:
                    raise ValueError("a piece of a file is missing or too large: upload the images again")
                with path.open("r+b" if path.exists() else "wb") as file:
                    file.seek(offset)
                    file.write(data)
                if "name" in piece:
                    self._add_name(piece["file"], str(piece["name"])[-MAX_NAME:])
        except (KeyError, TypeError, binascii.Error):
            raise ValueError("malformed request") from None
        except OSError as error:
            raise ValueError(f"the server could not store the images ({error.strerror})") from None

    def copy_file(self, path: Path) -> None:
        """Make a copy of a file of this machine the only one of the upload. Raises ValueError."""
        try:
            shutil.copyfile(path, self.file(0))
            self._add_name(0, f"{path.parent.name}{path.suffix}")
        except OSError as error:
            raise ValueError(f"the server could not store the images ({error.strerror})") from None

    def _add_name(self, number: int, name: str) -> None:
        check_encodable("a file's name", name)
        with (self.path / NAMES).open("a", encoding="utf-8") as file:
            file.write(json.dumps({"file": number, "name": name}) + "\n")

    def file_names(self, count: Any) -> list[str]:
        """Return the original names of the first `count` files. Raises ValueError for an invalid count."""
        if not isinstance(count, int) or isinstance(count, bool) or not 0 < count <= LIMITS.files:
            raise ValueError("malformed request")
        known: dict[int, str] = {}
        if (self.path / NAMES).exists():
            with (self.path / NAMES).open(encoding="utf-8") as lines:
                known = {line["file"]: line["name"] for line in map(json.loads, lines)}
        return [known.get(i, f"file {i + 1}") for i in range(count)]

    def file_paths(self, names: list[str]) -> list[Path]:
        """Return the paths of the first files, whose names are `names`. Raises ValueError if one was not received."""
        paths = [self.file(number) for number in range(len(names))]
        for path, name in zip(paths, names):
            if not path.exists():
                raise ValueError(f"{quote(name)} was not received: upload the images again")
        return paths

    def metadata(self) -> dict[str, Any]:
        """Return the number of `files` and, after a check, the name of the `dataset`, the image `size` and the image
        `count`. Raises ValueError if nothing was saved.
        """
        try:
            return dict(json.loads(self._metadata_file.read_text(encoding="utf-8")))
        except (OSError, ValueError):
            raise ValueError("the server no longer has these images: upload them again") from None

    def save_metadata(self, metadata: dict[str, Any]) -> None:
        """Write the metadata atomically. Raises ValueError if the upload was deleted."""
        temporary = self._metadata_file.with_suffix(".tmp")
        try:
            temporary.write_text(json.dumps(metadata), encoding="utf-8")
            os.replace(temporary, self._metadata_file)
        except FileNotFoundError:
            raise ValueError("the server no longer has these images: upload them again") from None

    def delete(self) -> None:
        """Delete the upload, even during a check: moved away first, it gets no new files."""
        trash = self.path.with_name(f"gone-{self.id}")
        with suppress(OSError):
            os.replace(self.path, trash)
        shutil.rmtree(trash, ignore_errors=True)

    def delete_leftovers(self) -> None:
        """Delete what a check has written to an upload that was deleted during the check."""
        if not self.files_dir.is_dir():
            shutil.rmtree(self.path, ignore_errors=True)


def uploads_dir() -> Path:
    return runs_dir() / ".drafts"


def bundled_files(checkpoints: Iterable[CheckpointInfo], name: str) -> dict[str, Path]:
    """Return the files of that name that come with the bundled models among the checkpoints, by the model's name: not
    those of fast models, whose images are those of their originals.
    """
    bundled = [entry for entry in checkpoints if not (entry.run or entry.hub or entry.is_exact)]
    bundled = [entry for entry in bundled if "original" not in (entry.config or {})]
    return {entry.name: entry.path / name for entry in bundled if (entry.path / name).is_file()}


def name_dataset(names: list[str]) -> str:
    """Return a name for a dataset, from the names of the uploaded files: the name of their archive or folder."""
    first = PurePath(names[0].replace("\\", "/")) if names else PurePath("images")
    text = first.parts[0] if len(first.parts) > 1 else archive_kinds.stem(first.name) or "images"
    return "".join(c for c in text if c.isprintable())[:60] or "images"
