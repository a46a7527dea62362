"""The page as a server: its theme, its limits and the gateway in front of every route."""

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
from starlette.middleware.gzip import GZipMiddleware
from starlette.routing import Route

try:
    import mcp
except ImportError:
    mcp = None

from dp.system.environment import UPLOADS, runs_dir
from dp.system.validation import quote
from dp.ui.auth import permission
from dp.ui.auth.gateway import UPLOAD_TTL_S, Gateway
from dp.ui.auth.origins import Access
from dp.ui.auth.owner import Owner

# System fonts only, so that the page loads nothing from other servers.
THEME = gr.themes.Default(
    primary_hue="indigo",
    secondary_hue="indigo",
    font=["system-ui", "-apple-system", "Segoe UI", "Roboto", "sans-serif"],
    font_mono=["ui-monospace", "Menlo", "Consolas", "monospace"],
).set(  # the theme's own secondary text, links and buttons have too little contrast
    button_primary_background_fill="*primary_600",
    button_primary_background_fill_hover="*primary_700",
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
    "state_session_capacity": 100,  # Gradio keeps about 250 kB per session
    "run_history": False,
    "enable_monitoring": False,
    "mcp_server": mcp is not None,  # with Gradio's `mcp` extra, the endpoints are also tools for language models
    "max_file_size": "16mb",  # more than a PNG to load settings from; everybody can reach Gradio's upload route
    "ssr_mode": False,  # Gradio's Node server and its static workers would answer requests without the gateway
    "num_workers": 0,
    "_frontend": False,  # without the second check of its own address, which fails if one answer takes over 3 seconds
}


class Page(gr.Blocks):
    """Blocks that always launch with DEFAULTS and behind the gateway, also on a Space, which may import app.py and
    launch its `demo` itself.
    """

    def __init__(self, **kwargs: Any):
        super().__init__(analytics_enabled=False, delete_cache=(UPLOAD_TTL_S // 6, UPLOAD_TTL_S), **kwargs)
        self.owner: Owner | None = None
        self.own_routes: list[Route] = []  # before those of Gradio

    def launch(self, *, allowed_hosts: Iterable[str] = (), allowed_origins: Iterable[str] = (), **options: Any) -> Any:
        """Serve the page. options: as in gr.Blocks.launch. Raises ValueError for an invalid host or origin."""
        access = Access.from_environment(options.get("server_name"), allowed_hosts, allowed_origins, os.environ)
        self.owner = owner = Owner.from_home(runs_dir())

        block_url_downloads()

        @asynccontextmanager
        async def lifespan(app: Starlette) -> AsyncIterator[None]:
            # Gradio wraps its own middleware around that in `app_kwargs`, and its CORS middleware answers some requests
            # itself. So the gateway wraps the complete stack, which Starlette builds before it calls this function.
            # Gradio compresses nothing, and its page is mostly text. Streams of events stay as they are.
            compressed = GZipMiddleware(app.middleware_stack, minimum_size=10_000, compresslevel=5)
            app.middleware_stack = Gateway(compressed, access, owner)
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(sweep_periodically, Path(get_upload_folder()))
                yield
                tasks.cancel_scope.cancel()

        defaults = DEFAULTS | {"app_kwargs": {"lifespan": lifespan, "routes": self.own_routes}}
        launched = super().launch(**(defaults | options | {"quiet": True, "prevent_thread_lock": True}))
        if not isinstance(self.app.middleware_stack, Gateway):
            self.close()
            raise RuntimeError("Gradio or Starlette bypasses the gateway, which is unsafe: install Gradio 6.31")
        if not options.get("quiet"):
            print(self.startup_message(), flush=True)
        if not options.get("prevent_thread_lock"):
            self.block_thread()
        return launched

    def startup_message(self) -> str:
        """Return the text for the terminal: the address, with the owner's key unless the page is public."""
        address = self.local_url.replace("//[::]", "//localhost")  # browsers cannot open [::]
        if permission.is_public():
            return f"* Running on local URL:  {address}"
        return (
            f"* Running on local URL:  {address}?key={self.owner.key}\n"
            "  The key lets your browser use this machine's Hugging Face login: keep it secret.\n"
            "  Everyone else opens the address without the key."
        )


def block_url_downloads() -> None:
    """Keep Gradio from downloading a URL that a request contains in place of an uploaded file: it would load any URL,
    of any size, into memory and into the cache. Checked on Gradio 6.31.
    """

    async def reject(url: str, cache_dir: str) -> str:
        raise gr.Error(f"This app accepts uploaded files only, not URLs: {quote(url)}", print_exception=False)

    def reject_sync(url: str, cache_dir: str) -> str:
        raise gr.Error(f"This app accepts uploaded files only, not URLs: {quote(url)}", print_exception=False)

    processing_utils.async_ssrf_protected_download = reject
    processing_utils.ssrf_protected_download = processing_utils.save_url_to_cache = reject_sync


async def sweep_periodically(folder: Path) -> None:
    """Delete everything older than UPLOAD_TTL_S in the upload folder, until cancelled. Gradio itself deletes only
    complete uploads, and none of a process that was killed.
    """
    while folder.name == UPLOADS:  # not /tmp/gradio, which other apps use, too
        await anyio.to_thread.run_sync(sweep, folder, time.time() - UPLOAD_TTL_S)
        await anyio.sleep(UPLOAD_TTL_S / 6)


def sweep(folder: Path, before: float) -> None:
    """Delete the files below `folder` that were modified before the time `before`, and the old folders left empty."""
    for root, _, files in os.walk(folder, topdown=False):
        for name in files:
            with suppress(OSError):
                if os.lstat(path := os.path.join(root, name)).st_mtime < before:
                    os.unlink(path)
        with suppress(OSError):
            if root != str(folder) and os.stat(root).st_mtime < before:
                os.rmdir(root)
