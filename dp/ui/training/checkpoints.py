"""Open the checkpoints of a run in another tab, and download them."""

from __future__ import annotations

import re
import secrets
import zipfile
from collections.abc import Mapping
from pathlib import Path

import gradio as gr
from gradio.utils import get_upload_folder

from dp.serving.engine import Engine
from dp.training.run_folder import RunFolder
from dp.ui import scripts
from dp.ui.components.run_board.run_board import RunBoard, run_of
from dp.ui.sampling import page_values
from dp.ui.sampling.panel import QUIET, Given, Opening, Updates
from dp.ui.training.access import check_permission

EVENT = QUIET | {"concurrency_limit": None}


def wire_opening(board: RunBoard, engine: Engine, tabs: gr.Tabs, openings: Mapping[str, Opening]) -> None:
    """Open a run's checkpoint in another tab. openings: how these tabs do that, by their ids."""

    def open_in(request: gr.Request, event: gr.EventData, given: Given) -> Updates:
        check_permission(request)
        try:
            path = run_of(event.run).checkpoint(int(event.checkpoint)).resolve()
            name = next(entry.name for entry in page_values.visible_checkpoints(engine) if entry.path.resolve() == path)
            updates = openings[event.tab].select(name, given)
        except (ValueError, TypeError, KeyError, OverflowError, OSError) as error:
            raise page_values.user_error(error) from None
        except StopIteration:
            raise page_values.user_error("this checkpoint no longer exists") from None
        return {tabs: gr.Tabs(selected=event.tab)} | updates

    inputs = {control for opening in openings.values() for control in opening.inputs}
    outputs = [tabs, *(one for opening in openings.values() for one in opening.outputs)]
    board.opened(open_in, inputs, outputs, **EVENT).success(None, js=scripts.SHOW_OPENED, api_visibility="private")


def wire_download(board: RunBoard) -> None:
    """Download a run's checkpoint as a zip."""

    def download(request: gr.Request, event: gr.EventData) -> Updates:
        check_permission(request)
        try:
            archive = zip_checkpoint(run_of(event.run), int(event.checkpoint))
        except (ValueError, TypeError, OverflowError, OSError) as error:
            raise page_values.user_error(error) from None
        return {board: {"file": gr.FileData(path=str(archive), orig_name=archive.name).model_dump()}}

    board.downloaded(download, None, board, **EVENT)


def zip_checkpoint(run: RunFolder, milestone: int) -> Path:
    """Write a checkpoint's files, without the training state, to a new zip, and return its path."""
    folder = run.checkpoint(milestone)
    files = [path for path in sorted(folder.iterdir()) if path.is_file()]
    name = re.sub(r"[^\w.-]+", "-", f"{run.name}-{folder.name}")
    path = Path(get_upload_folder()) / secrets.token_hex(16) / f"{name}.zip"  # the random name is the permission
    path.parent.mkdir(parents=True)
    with zipfile.ZipFile(path, "w") as archive:  # uncompressed: weights do not compress
        for file in files:
            archive.write(file, f"{name}/{file.name}")
    return path
