"""Load a model from the Hugging Face Hub: the field below the checkpoints of the Denoise tab, and its download.

Every visitor can use a loaded model. So only the owner's browser uses this machine's login; others use no token, and
can load public models only.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator, Mapping
from contextlib import aclosing, suppress
from typing import Any

import gradio as gr

from dp.checkpoints.catalog import inspect_folder
from dp.hub import downloads, models
from dp.hub.client import HubError
from dp.system.environment import runs_dir
from dp.system.text import escape
from dp.ui import words
from dp.ui.auth import permission
from dp.ui.sampling import page_values
from dp.ui.sampling.panel import QUIET, Panel, Updates

MAX_DOWNLOADS = 4  # at the same time
MAX_MODELS, MAX_BYTES = 6, 1 << 30  # kept on a public Space, where every visitor can load one
POLL_S = 0.3  # between two status updates of a download, at which a closed page is noticed


class Cancelled(Exception):
    """Raised in a download that the page has cancelled, or whose page was closed."""


class HubLoader:
    """Adds the field for a model's name, with its buttons, to the page being built."""

    def __init__(self):
        with gr.Accordion("Load a model from the Hub", open=False, elem_id="hub-fold") as self.fold:
            gr.Markdown(words.LOAD_IN_PUBLIC if permission.is_public() else words.LOAD, elem_classes="about")
            with gr.Row(equal_height=True):
                self.name = gr.Dropdown(
                    label="Model", allow_custom_value=True, elem_id="hub-name", container=False, scale=3, min_width=160
                )
                page_values.skip_gradio_check(self.name)
                self.load = gr.Button("Load", size="md", elem_id="hub-load", min_width=90)
                self.cancel = gr.Button("Cancel", size="md", elem_id="hub-cancel", min_width=90, visible=False)
            self.status = gr.Markdown(elem_id="hub-said", elem_classes="about")


def wire(panels: Mapping[str, Panel]) -> None:
    """Wire the HubLoader of the Denoise tab. It selects the loaded model in that tab and lists it in the others."""
    loader, running = panels["denoise"].folded, {}
    ready, busy = (
        {loader.load: gr.update(visible=idle), loader.cancel: gr.update(visible=not idle)} for idle in (True, False)
    )

    def list_models(request: gr.Request) -> Updates:
        """List the models on the Hub. If that fails, a name can still be typed."""
        try:
            return {loader.name: gr.update(choices=models.list_models(token=token_for(request))), loader.status: ""}
        except HubError as error:
            return {loader.status: f"⚠️ Cannot list the models on the Hub: {escape(str(error))}"}

    async def load(request: gr.Request, name: Any) -> AsyncIterator[Updates]:
        name, session = name.strip() if isinstance(name, str) else "", request.session_hash
        try:
            if session in running.values() or len(running) >= MAX_DOWNLOADS:
                raise HubError("another model is still downloading: try again in a moment")
            async with aclosing(download(name, request, running)) as updates:
                async for status in updates:
                    yield busy | {loader.status: f"Downloading {escape(name)}: {status}"}
        except (HubError, OSError) as error:
            yield ready | {loader.status: f"⚠️ {escape(str(error))}"}
            return
        shown = ready | {loader.status: f"{escape(name)} is loaded and selected."}
        for tab, panel in panels.items():
            shown |= panel.select(name) if tab == "denoise" else panel.list_checkpoints()
        yield shown

    quiet = QUIET | {"concurrency_limit": None}
    selected = [one for panel in panels.values() for one in panel.checkpoint_outputs]
    outputs = [loader.load, loader.cancel, loader.status]
    loader.fold.expand(list_models, None, [loader.name, loader.status], **quiet)
    run = loader.load.click(load, loader.name, [*outputs, *selected], **quiet)
    cancelled = loader.cancel.click(None, cancels=[run], api_visibility="private")
    cancelled.then(lambda: ready | {loader.status: ""}, None, outputs, **quiet)  # after the run's last update


def token_for(request: gr.Request) -> bool | None:
    """Return None, for this machine's login, to the owner's browser, and False, for no token, to others."""
    return None if permission.is_local_user(request) else False


async def download(name: str, request: gr.Request, running: dict[Any, str | None]) -> AsyncIterator[str]:
    """Download a model into this machine's cache, and yield the progress. The download is in `running` (task ->
    session) until it ends, and closing this generator cancels it. Raises HubError or OSError.
    """
    status, is_cancelled = "contacting the Hub…", threading.Event()
    is_public, token = permission.is_public(), token_for(request)

    def report(received: int, size: int) -> None:
        nonlocal status
        if is_cancelled.is_set():
            raise Cancelled
        if is_public and size > MAX_BYTES:
            raise HubError(f"{name} has {size:,} bytes; the limit on this page is {MAX_BYTES:,} bytes")
        if size > 100_000:  # the weights; other files take no time
            status = f"{received / 1e6:,.1f} of {size / 1e6:,.1f} MB"

    def work() -> None:
        with suppress(Cancelled):
            folder = models.download(name, token=token, progress=report)
            downloads.add(runs_dir(), name, folder)
            if is_public:
                downloads.evict(runs_dir(), MAX_MODELS, MAX_BYTES)
            if (entry := inspect_folder(folder)) and entry.kind != "image":  # kept, so that it counts and is evicted
                raise HubError(f"{name} is a model of sequences, and this page shows models of images; choose another")

    task = asyncio.create_task(asyncio.to_thread(work))
    running[task] = request.session_hash
    task.add_done_callback(lambda done: (running.pop(done), done.cancelled() or done.exception()))
    try:
        while not (await asyncio.wait([task], timeout=POLL_S))[0]:
            yield status
    finally:
        is_cancelled.set()
    task.result()
