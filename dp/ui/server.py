"""The page as a server: its looks, its limits, and the gateway in front of every route."""

from __future__ import annotations

import os
import time
from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any

import anyio
import gradio as gr
from gradio import processing_utils
from gradio.utils import get_upload_folder
from starlette.applications import Starlette

try:
    import mcp
except ImportError:
    mcp = None

from dp.system.environment import UPLOADS
from dp.system.validation import quote
from dp.training.run_folder import home
from dp.ui.auth import permission
from dp.ui.auth.gateway import KEPT_S, Gateway
from dp.ui.auth.origins import Access
from dp.ui.auth.owner import Owner

# System fonts: nothing is fetched from elsewhere. On a phone the pictures and the button fit on one screen.
THEME = gr.themes.Default(
    primary_hue="indigo",
    secondary_hue="indigo",
    font=["system-ui", "-apple-system", "Segoe UI", "Roboto", "sans-serif"],
    font_mono=["ui-monospace", "Menlo", "Consolas", "monospace"],
).set(  # the theme's own explanations are too pale to read
    body_text_color_subdued="*neutral_500",
    body_text_color_subdued_dark="*neutral_400",
    block_info_text_color="*neutral_500",
    block_info_text_color_dark="*neutral_400",
)
CSS = Path(__file__).with_name("app.css").read_text(encoding="utf-8")
DEFAULTS = {
    "theme": THEME,
    "css": CSS,
    "max_threads": 200,
    "state_session_capacity": 100,  # the most recent ones: Gradio keeps a quarter of a megabyte for every visitor
    "run_history": False,
    "enable_monitoring": False,
    "mcp_server": mcp is not None,  # Gradio's extra of that name: the endpoints become tools for language models
    "max_file_size": "16mb",  # an image of ours to load the settings from; Gradio's upload route is open to all
    "ssr_mode": False,  # Gradio's Node server and its static workers would answer some requests without the gateway
    "num_workers": 0,
}


class Page(gr.Blocks):
    """Blocks that always launch with these defaults and behind the gateway: a Space may import app.py
    and launch its `demo`.
    """

    def __init__(self, **kwargs: Any):
        super().__init__(analytics_enabled=False, delete_cache=(KEPT_S // 6, KEPT_S), **kwargs)
        self.owner: Owner | None = None

    def launch(self, *, allowed_hosts: Iterable[str] = (), allowed_origins: Iterable[str] = (), **options: Any) -> Any:
        """Serve the page; options as in gr.Blocks.launch. Raises ValueError on a name that is none."""
        access = Access.of(options.get("server_name"), allowed_hosts, allowed_origins, os.environ)
        self.owner = owner = Owner.of_home(home())

        refuse_downloads()

        @asynccontextmanager
        async def lifespan(app: Starlette) -> AsyncIterator[None]:
            # Gradio adds middleware of its own around that of `app_kwargs`, and its CORS answers some requests itself.
            # So the gateway wraps the finished stack, which Starlette has built when it runs this.
            app.middleware_stack = Gateway(app.middleware_stack, access, owner)
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(sweep_for_ever, Path(get_upload_folder()))
                yield
                tasks.cancel_scope.cancel()

        defaults = DEFAULTS | {"app_kwargs": {"lifespan": lifespan}}
        launched = super().launch(**(defaults | options | {"quiet": True, "prevent_thread_lock": True}))
        if not isinstance(self.app.middleware_stack, Gateway):
            self.close()
            raise RuntimeError("this version of Gradio or Starlette starts without the gateway, which is unsafe")
        if not options.get("quiet"):
            print(self.welcome(), flush=True)
        if not options.get("prevent_thread_lock"):
            self.block_thread()
        return launched

    def welcome(self) -> str:
        """Return what the terminal shows: the address, at home with the owner's key."""
        address = self.local_url.replace("//[::]", "//localhost")  # browsers cannot open [::]
        if permission.is_public():
            return f"* Running on local URL:  {address}"
        return (
            f"* Running on local URL:  {address}?key={self.owner.key}\n"
            "  The key lets your browser use this machine's Hugging Face login: keep it secret.\n"
            "  Everyone else opens the address without the key."
        )


def refuse_downloads() -> None:
    """Keep Gradio from downloading what a request names instead of an uploaded file: any URL, of any size, into memory
    and then into the cache. Checked on Gradio 6.31.
    """

    async def refuse(url: str, cache_dir: str) -> str:
        raise gr.Error(f"This app accepts uploaded files only, not URLs: {quote(url)}", print_exception=False)

    def refuse_at_once(url: str, cache_dir: str) -> str:
        raise gr.Error(f"This app accepts uploaded files only, not URLs: {quote(url)}", print_exception=False)

    processing_utils.async_ssrf_protected_download = refuse
    processing_utils.ssrf_protected_download = processing_utils.save_url_to_cache = refuse_at_once


async def sweep_for_ever(folder: Path) -> None:
    """Delete what is older than KEPT_S in the upload folder. Gradio deletes only complete uploads that it knows of, and
    not those of a process that was killed. Only in a folder of ours: /tmp/gradio belongs to other apps, too.
    """
    while folder.name == UPLOADS:
        await anyio.to_thread.run_sync(sweep, folder, time.time() - KEPT_S)
        await anyio.sleep(KEPT_S / 6)


def sweep(folder: Path, before: float) -> None:
    """Delete the files below `folder` that were last changed before that time, and the folders that are then empty."""
    for root, _, files in os.walk(folder, topdown=False):
        for name in files:
            with suppress(OSError):
                if os.lstat(path := os.path.join(root, name)).st_mtime < before:
                    os.unlink(path)
        with suppress(OSError):
            if root != str(folder) and os.stat(root).st_mtime < before:
                os.rmdir(root)
