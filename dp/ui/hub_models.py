"""A model from the Hugging Face Hub, for everybody on the page: the field under Denoise's checkpoints, and the download
behind it. The owner's browser uses this machine's login; all others use no token, so that only public models come to
the page.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator, Mapping
from contextlib import aclosing, suppress
from typing import Any

import gradio as gr

from dp.hub import downloads, models
from dp.hub.client import HubError
from dp.system.environment import runs_dir
from dp.system.text import escape
from dp.ui import words
from dp.ui.auth import permission
from dp.ui.sampling import page_values
from dp.ui.sampling.panel import QUIET, Panel, Updates

MOST_AT_ONCE = 4  # downloads
MOST_MODELS, MOST_BYTES = 6, 1 << 30  # at hand on a public Space, where anybody may load another one
BEAT_S = 0.3  # between two looks at a download, at which a page that has gone is noticed


class Gone(Exception):
    """Nobody waits for this download any more."""


class Loader:
    """Adds a field for a model's name and its button to the page being built."""

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
            self.said = gr.Markdown(elem_id="hub-said", elem_classes="about")


def wire(panels: Mapping[str, Panel]) -> None:
    """Wire the Loader in the panel of Denoise: a loaded model is selected there, and listed in the other panels."""
    loader, under_way = panels["denoise"].folded, {}
    ready, busy = (
        {loader.load: gr.update(visible=idle), loader.cancel: gr.update(visible=not idle)} for idle in (True, False)
    )

    def look(request: gr.Request) -> Updates:
        """List the models on the Hub. A name can be typed even if the Hub lists none."""
        try:
            return {loader.name: gr.update(choices=models.listed(token=token_for(request))), loader.said: ""}
        except HubError as error:
            return {loader.said: f"⚠️ Cannot list the models on the Hub: {escape(str(error))}"}

    async def load(request: gr.Request, name: Any) -> AsyncIterator[Updates]:
        name, session = name.strip() if isinstance(name, str) else "", request.session_hash
        try:
            if session in under_way.values() or len(under_way) >= MOST_AT_ONCE:
                raise HubError("another model is still downloading: try again in a moment")
            async with aclosing(fetched(name, request, under_way)) as news:
                async for said in news:
                    yield busy | {loader.said: f"Downloading {escape(name)}: {said}"}
        except (HubError, OSError) as error:
            yield ready | {loader.said: f"⚠️ {escape(str(error))}"}
            return
        updates = ready | {loader.said: f"{escape(name)} is loaded and selected."}
        for tab, panel in panels.items():
            updates |= panel.select(name) if tab == "denoise" else panel.list_checkpoints()
        yield updates

    quiet = QUIET | {"concurrency_limit": None}
    selected = [one for panel in panels.values() for one in panel.selected]
    outputs = [loader.load, loader.cancel, loader.said]
    loader.fold.expand(look, None, [loader.name, loader.said], **quiet)
    run = loader.load.click(load, loader.name, [*outputs, *selected], **quiet)
    cancelled = loader.cancel.click(None, cancels=[run], api_visibility="private")
    cancelled.then(lambda: ready | {loader.said: ""}, None, outputs, **quiet)  # after the run's last update


def token_for(request: gr.Request) -> bool | None:
    return None if permission.is_local_user(request) else False


async def fetched(name: str, request: gr.Request, under_way: dict[Any, str | None]) -> AsyncIterator[str]:
    """Fetch a model, and have it at hand here: how far that has come, until it has. The download ends with this,
    however it ends, and until then it is among those `under_way`. Raises HubError, or OSError.
    """
    said, gone = ["contacting the Hub…"], threading.Event()
    is_public, token = permission.is_public(), token_for(request)

    def progress(received: int, size: int) -> None:
        if gone.is_set():
            raise Gone
        if is_public and size > MOST_BYTES:
            raise HubError(f"{name} has {size:,} bytes; the limit on this page is {MOST_BYTES:,}")
        if size > 100_000:  # the weights; the other files are there at once
            said[0] = f"{received / 1e6:,.1f} of {size / 1e6:,.1f} MB"

    def work() -> None:
        with suppress(Gone):
            folder = models.pull(name, token=token, progress=progress)
            downloads.put(runs_dir(), name, folder)
            if is_public:
                downloads.trim(runs_dir(), MOST_MODELS, MOST_BYTES)

    task = asyncio.create_task(asyncio.to_thread(work))
    under_way[task] = request.session_hash
    task.add_done_callback(lambda done: (under_way.pop(done), done.cancelled() or done.exception()))
    try:
        while not (await asyncio.wait([task], timeout=BEAT_S))[0]:
            yield said[0]
    finally:
        gone.set()
    task.result()
