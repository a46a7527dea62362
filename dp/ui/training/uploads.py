"""Drafts: images that were uploaded but not yet trained on, in folders below DP_HOME that are deleted after a day.

    .drafts/trial-...            where a benchmark runs
    .drafts/<id>/upload/000000   an uploaded file, under a number: names from outside are only ever shown
                 names.jsonl     those names, a line for each: {"file": number, "name": text}
                 dataset/        the accepted images, decoded at one size
                 draft.json      the number of files, and of checked ones what to call the dataset, its size and count

The page uploads files in pieces, and refers to them by the draft's unguessable id, which it alone holds. Everything
else is kept here: Gradio's session store forgets the least recent sessions, and anybody may invent new ones. Gradio's
own uploads would lose the folders, fail for one hidden file, and leave files behind.
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
from contextlib import suppress
from pathlib import Path
from typing import Any

from dp.data.archives.tar_blocks import RESERVED_BYTES
from dp.data.limits import Limits
from dp.system.environment import runs_dir
from dp.system.validation import check_encodable, quote

UPLOAD_TTL_S = 24 * 3600
PIECE_BYTES = 8 << 20  # in one message, at most
NAMES = "names.jsonl"
MAX_NAME = 1000  # characters that are kept of a file's name: the last ones, with its suffix
ID = re.compile(r"[0-9a-f]{32}")
LIMITS = Limits.from_environment()
CLOCK_SET = time.time() - time.monotonic()  # where the wall clock stood when this process began


class Draft:
    """The draft of an id. Raises ValueError where there is none."""

    def __init__(self, name: Any):
        if not isinstance(name, str) or not ID.fullmatch(name) or not (drafts() / name).is_dir():
            raise ValueError("the server no longer has these images: upload them again")
        self.id, self.path = name, drafts() / name
        self.upload, self.dataset, self._facts = self.path / "upload", self.path / "dataset", self.path / "draft.json"

    @classmethod
    def begin(cls) -> Draft:
        """A new one; those that nobody has touched for a day are deleted."""
        for old in drafts().glob("*"):
            with suppress(OSError):  # another app has just deleted it
                # By the clock and by what it said before somebody may have set it.
                ages = [now - old.stat().st_mtime for now in (time.time(), time.monotonic() + CLOCK_SET)]
                if min(ages) > UPLOAD_TTL_S:
                    shutil.rmtree(old, ignore_errors=True)
                elif max(ages) < 0:  # from the future: its day begins now
                    os.utime(old)
        name = secrets.token_hex(16)
        (drafts() / name / "upload").mkdir(parents=True)
        return cls(name)

    def file(self, number: Any) -> Path:
        if not isinstance(number, int) or isinstance(number, bool) or not 0 <= number < LIMITS.files:
            raise ValueError(f"more than {LIMITS.files:,} files: upload fewer, or a ZIP file")
        return self.upload / f"{number:06d}"

    def take(self, pieces: Any) -> None:
        """Write pieces of files: each a `file` number, an `offset` and base64 `data`, and the file's first piece its
        `name`. Raises ValueError.
        """
        try:
            if shutil.disk_usage(self.path).free < RESERVED_BYTES:
                raise ValueError("the server's disk is nearly full: delete a run, or upload fewer images")
            for piece in pieces:
                path, data = self.file(piece["file"]), base64.b64decode(piece["data"], validate=True)
                there = path.stat().st_size if path.exists() else 0
                if not isinstance(piece["offset"], int) or not 0 <= piece["offset"] <= there or len(data) > PIECE_BYTES:
                    raise ValueError("a piece of a file does not continue the previous one: upload the images again")
                with path.open("r+b" if path.exists() else "wb") as file:
                    file.seek(piece["offset"])
                    file.write(data)
                if "name" in piece:
                    name = str(piece["name"])[-MAX_NAME:]
                    check_encodable("a file's name", name)
                    line = json.dumps({"file": piece["file"], "name": name})
                    with (self.path / NAMES).open("a", encoding="utf-8") as file:
                        file.write(line + "\n")
        except (KeyError, TypeError, binascii.Error):
            raise ValueError("malformed request") from None
        except OSError as error:
            raise ValueError(f"the server could not store the images ({error.strerror})") from None

    def names(self, count: Any) -> list[str]:
        """Return the names of the first `count` files, which the page sends with them. Raises ValueError."""
        if not isinstance(count, int) or isinstance(count, bool) or not 0 < count <= LIMITS.files:
            raise ValueError("malformed request")
        known: dict[int, str] = {}
        if (self.path / NAMES).exists():
            with (self.path / NAMES).open(encoding="utf-8") as lines:
                known = {said["file"]: said["name"] for said in map(json.loads, lines)}
        return [known.get(i, f"file {i + 1}") for i in range(count)]

    def sources(self, names: list[str]) -> list[Path]:
        """The files of those names, in their order. Raises ValueError where one did not arrive."""
        paths = [self.file(number) for number in range(len(names))]
        for path, name in zip(paths, names):
            if not path.exists():
                raise ValueError(f"{quote(name)} was not received: upload the images again")
        return paths

    def facts(self) -> dict[str, Any]:
        """Return the number of `files`; of checked images also their `dataset`'s name, `size` and `count`. Raises
        ValueError where nothing is known.
        """
        try:
            return dict(json.loads(self._facts.read_text(encoding="utf-8")))
        except (OSError, ValueError):
            raise ValueError("the server no longer has these images: upload them again") from None

    def keep(self, facts: dict[str, Any]) -> None:
        """Write the facts, whole or not at all. Raises ValueError where the draft was deleted: it stays deleted."""
        aside = self._facts.with_suffix(".tmp")
        try:
            aside.write_text(json.dumps(facts), encoding="utf-8")
            os.replace(aside, self._facts)
        except FileNotFoundError:
            raise ValueError("the server no longer has these images: upload them again") from None

    def delete(self) -> None:
        """Delete the draft, also while a check is writing to it: what is out of its place gets nothing new."""
        gone = self.path.with_name(f"gone-{self.id}")
        with suppress(OSError):
            os.replace(self.path, gone)
        shutil.rmtree(gone, ignore_errors=True)

    def delete_remains(self) -> None:
        """Delete what a check has written to a draft that was deleted meanwhile."""
        if not self.upload.is_dir():
            shutil.rmtree(self.path, ignore_errors=True)


def drafts() -> Path:
    return runs_dir() / ".drafts"
