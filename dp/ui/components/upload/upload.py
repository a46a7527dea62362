"""Where people bring their pictures: a `gr.HTML` component that sends a folder, files or zips in pieces, and shows what
became of them. Names are drawn as text and never as markup.

Its value, all of it optional but `state`:

    state      'empty', 'checking', 'checked' or 'refused'
    done, total, name     how far the check has come
    sentences  what there is to say, a list
    refused    [name, reason] of files that are not used, and `more`, how many beyond those listed
    sheet      a data URI: some of the pictures as they will be trained on
    message    why nothing can be done
    draft      which pictures that is said of, where they were brought: a page that has left those does not listen

It triggers `brought` with the `draft` and the number of its `files`, and `cancelled` and `emptied` with the draft
that is left.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import gradio as gr

from dp.data.dataset import contact_sheet
from dp.data.report import DatasetReport
from dp.system.validation import message_of, quote
from dp.training.presets import Settings
from dp.training.run_folder import RunFolder
from dp.ui.auth import permission
from dp.ui.components.component import Component
from dp.ui.components.player.player import png
from dp.ui.training.uploads import LIMITS, Draft

LISTED = 300  # refused files and duplicates shown, at most
SHEET = 36  # pictures


class ImageUpload(Component):
    def __init__(self, **kwargs: Any):
        super().__init__(
            html="upload/upload.html",
            css=["upload/upload.css"],
            js=["upload/upload.js"],
            description="the report on the uploaded images",
            server_functions=[begin, receive],
            value={"state": "empty"},
            **kwargs,
        )


def begin(asked: Any, request: gr.Request) -> dict[str, Any]:
    """A draft for `files` files of `bytes` bytes. Anybody may call this, and the next one, with anything."""
    if why_not := permission.denial_reason(request):
        return {"problem": why_not}
    try:
        files, size = asked["files"], asked["bytes"]
        if not isinstance(files, int) or not isinstance(size, int) or files <= 0 or size < 0:
            raise ValueError
        if files > LIMITS.files:
            return {"problem": f"{quote(files)} files: the limit is {LIMITS.files:,}. Upload fewer, or a ZIP file"}
        if size > LIMITS.total_bytes:
            return {"problem": f"{quote(size)} bytes in total: the limit is {LIMITS.total_bytes:,}. Upload fewer"}
        return {"draft": Draft.begin().id}
    except (TypeError, KeyError, ValueError):
        return {"problem": "malformed request"}
    except OSError as error:
        return {"problem": f"the server could not create a folder for the images ({error.strerror})"}


def receive(asked: Any, request: gr.Request) -> dict[str, Any]:
    """Pieces of the files of a draft."""
    if why_not := permission.denial_reason(request):
        return {"problem": why_not}
    try:
        Draft(asked["draft"]).take(asked["pieces"])
    except (TypeError, KeyError):
        return {"problem": "malformed request"}
    except ValueError as error:
        return {"problem": message_of(error)}
    return {}


def images_of(run: RunFolder) -> dict[str, Any]:
    """Return a run's checked images: the `path` of their dataset, its name (`dataset`), their `count` and `size`.
    Raises ValueError or OSError.
    """
    config = run.config()
    dataset = config.get("dataset", {})
    count = dataset.get("count") or len(DatasetReport.load(run.dataset).accepted)
    known = {"path": run.dataset, "dataset": dataset.get("name") or run.name, "count": count}
    return known | {"size": Settings.from_config(config).image_size}


def brought_by(run: RunFolder) -> tuple[dict[str, Any], Settings]:
    """Return the value that shows a run's images again, and the run's settings. Raises ValueError or OSError."""
    shown = checked(DatasetReport.load(run.dataset), run.dataset)
    shown["sentences"] = [f"The images of {run.name}. Change any setting, then start."]
    return shown, Settings.from_config(run.config())


def checked(findings: DatasetReport, dataset: Path) -> dict[str, Any]:
    """The value that shows a checked dataset."""
    copies = [(name, f"the same image as {kept}") for name, kept in findings.duplicates]
    aside = [*findings.rejected, *copies]
    value = {"state": "checked", "sentences": findings.summary_lines(), "sheet": png(contact_sheet(dataset, SHEET))}
    return value | {"refused": aside[:LISTED], "more": max(len(aside) - LISTED, 0)}
