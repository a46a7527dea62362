"""The upload of images to train on: a `gr.HTML` component that sends files, folders or archives to the server in pieces
and shows the report about them. File names are inserted as text, never as markup.

Its value, all of it optional but `state`:

    state      'empty', 'checking' or 'checked'
    done, total, name     the progress of the check
    summary    the lines of the report
    rejected   [name, reason] of files that are not used, and `more`, the number of those not listed
    sheet      a data URI: some of the images, cropped and scaled for training
    message    why the images cannot be used
    upload     the id of the upload that the value is about; a page that has left that upload ignores the value

It triggers `uploaded` with the id of an `upload` and the number of its `files`, and `canceled` or `removed` with the
`upload` that the visitor leaves.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import gradio as gr

from dp.data.prepared import contact_sheet
from dp.data.report import DatasetReport
from dp.system.validation import message_of, quote
from dp.training.presets import Settings
from dp.training.run_folder import RunFolder
from dp.ui.auth import permission
from dp.ui.components.component import Component
from dp.ui.components.data_uri import png_uri
from dp.ui.training.uploads import LIMITS, Upload

MAX_LISTED = 300  # rejected files and duplicates
SHEET_IMAGES = 36


class ImageUpload(Component):
    """samples: archives of images on this machine that a visitor without images may try, by name."""

    def __init__(self, samples: Mapping[str, Path], **kwargs: Any):
        def borrow(data: Any, request: gr.Request) -> dict[str, Any]:
            return borrow_sample(samples, data, request)

        super().__init__(
            html="upload/upload.html",
            css=["upload/upload.css"],
            js=[
                "shared/format.js",
                "shared/elements.js",
                "shared/drop_zone.js",
                "upload/transfer.js",
                "upload/chooser.js",
                "upload/upload.js",
            ],
            description="the report on the uploaded images",
            server_functions=[begin, receive, borrow],
            value={"state": "empty"},
            samples=list(samples),
            **kwargs,
        )


def begin(data: Any, request: gr.Request) -> dict[str, Any]:
    """Create an upload for `files` files of `bytes` bytes. Anyone can call this, and `receive`, with anything."""
    if reason := permission.denial_reason(request):
        return {"problem": reason}
    try:
        files, size = data["files"], data["bytes"]
        if not isinstance(files, int) or not isinstance(size, int) or files <= 0 or size < 0:
            raise ValueError
        if files > LIMITS.files:
            return {"problem": f"{quote(files)} files: the limit is {LIMITS.files:,}. Upload fewer, or a ZIP file"}
        if size > LIMITS.total_bytes:
            return {"problem": f"{quote(size)} bytes in total: the limit is {LIMITS.total_bytes:,}. Upload fewer"}
        return {"upload": Upload.create().id}
    except (TypeError, KeyError, ValueError):
        return {"problem": "malformed request"}
    except OSError as error:
        return {"problem": f"the server could not create a folder for the images ({error.strerror})"}


def receive(data: Any, request: gr.Request) -> dict[str, Any]:
    """Store `pieces` of the files of an upload."""
    if reason := permission.denial_reason(request):
        return {"problem": reason}
    try:
        Upload(data["upload"]).write_pieces(data["pieces"])
    except (TypeError, KeyError):
        return {"problem": "malformed request"}
    except ValueError as error:
        return {"problem": message_of(error)}
    return {}


def borrow_sample(samples: Mapping[str, Path], data: Any, request: gr.Request) -> dict[str, Any]:
    """Create an upload of the sample with the `name`. Anyone can call this with anything."""
    if reason := permission.denial_reason(request):
        return {"problem": reason}
    name = data.get("name") if isinstance(data, dict) else None
    if not isinstance(name, str) or name not in samples:
        return {"problem": "malformed request"}
    try:
        upload = Upload.create()
        upload.copy_file(samples[name])
    except (ValueError, OSError) as error:
        return {"problem": message_of(error)}
    return {"upload": upload.id}


def images_of(run: RunFolder) -> dict[str, Any]:
    """Return a run's checked images: the `path` of their dataset, its name (`dataset`), their `count`, `size` and
    `classes`. Raises ValueError or OSError.
    """
    config, report = run.config(), DatasetReport.load(run.dataset)
    dataset = config.get("dataset", {})
    count = dataset.get("count") or len(report.accepted)
    known = {"path": run.dataset, "dataset": dataset.get("name") or run.name, "count": count}
    return known | {"size": Settings.from_config(config).image_size, "classes": report.classes}


def value_of_run(run: RunFolder) -> tuple[dict[str, Any], Settings]:
    """Return the value that shows a run's images again, and the run's settings. Raises ValueError or OSError."""
    shown = value_of_report(DatasetReport.load(run.dataset), run.dataset)
    shown["summary"] = [f"The images of {run.name}. Change any setting, then start."]
    return shown, Settings.from_config(run.config())


def value_of_report(report: DatasetReport, dataset: Path) -> dict[str, Any]:
    """Return the value that shows the report about a checked dataset."""
    copies = [(name, f"the same image as {kept}") for name, kept in report.duplicates]
    rejected = [*report.rejected, *copies]
    value = {
        "state": "checked",
        "summary": report.summary_lines(),
        "sheet": png_uri(contact_sheet(dataset, SHEET_IMAGES)),
    }
    return value | {"rejected": rejected[:MAX_LISTED], "more": max(len(rejected) - MAX_LISTED, 0)}
