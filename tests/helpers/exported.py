"""A model as an exported page, and a plain server of static files in front of it."""

import atexit
import os
import shutil
import tempfile
import threading
from contextlib import contextmanager
from functools import cache, partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import urlsplit

import pytest
import torch
from models import randomize

from dp.checkpoints import folder as checkpoint
from dp.diffusion.policy import DiffusionPolicy
from dp.networks.rin import RIN
from dp.ui.web import graph
from dp.ui.web.page import export_page

NAME = "tiny-8"
HOSTILE = "</script><img src=x onerror=alert(1)>"
CLASSES = ["A & B", HOSTILE, "C"]
SIZES = {"dim": 16, "image_size": 8, "patch_size": 4, "channels": 3, "depth": 1, "latent_self_attn_depth": 1}
SIZES |= {"dim_latent": 24, "num_latents": 8, "heads": 2, "dim_head": 8, "conv_widths": (8,), "conv_blocks": 1}
SIZES |= {"num_classes": 3, "qk_norm": True, "query_std": 1.0}
POLICY = {"scale": 0.7, "noise_schedule": "sigmoid", "schedule_kwargs": {"start": -3.0, "end": 5.0}}
POLICY |= {"consistency": True}  # so that it has all samplers
CARD = f"""---
license: mit
---

# {NAME}

A **tiny** model, see [its page](https://example.com). {HOSTILE}

| | |
|---|---|
| images | none \\| at all |
"""


def load_onnx():
    """Import onnx. Where it is not installed, the tests of a file are skipped, but in CI they fail."""
    try:
        return graph.load_onnx()
    except ValueError as error:
        if os.environ.get("CI"):
            raise
        pytest.skip(str(error), allow_module_level=True)


@cache
def source_folder() -> Path:
    """Return the checkpoint folder of a tiny model with classes, in half precision. It is the same in every process."""
    source = Path(tempfile.mkdtemp()) / NAME
    atexit.register(shutil.rmtree, source.parent, ignore_errors=True)
    config = {"policy": DiffusionPolicy(model := randomize(RIN(**SIZES)), **POLICY).config, "classes": CLASSES}
    sampling = {"timesteps": 5, "sampler": "ddim", "guidance": 2.0, "guidance_interval": [0.1, 0.9]}
    checkpoint.save(source, model, config | {"sampling": sampling}, dtype=torch.float16)
    (source / "README.md").write_text(CARD, encoding="utf-8")
    return source


@cache
def page_folder() -> Path:
    """Return the folder of the exported page, two levels below the site's root. Exporting takes seconds."""
    page = source_folder().parent / "site" / "some" / "folder"
    export_page(source_folder(), page, NAME)
    return page


class Files(SimpleHTTPRequestHandler):
    """Serves a folder, except for what `trouble` has instead of some files: the number of an error, or bytes."""

    def __init__(self, *arguments, trouble, **options):
        self.trouble = trouble
        super().__init__(*arguments, **options)

    def do_GET(self):
        instead = next((what for name, what in self.trouble.items() if urlsplit(self.path).path.endswith(name)), None)
        if instead is None:
            super().do_GET()
        elif isinstance(instead, int):
            self.send_error(instead)
        else:
            self.send_response(200)
            self.send_header("Content-Type", self.guess_type(urlsplit(self.path).path))
            self.end_headers()
            self.wfile.write(instead)

    def log_message(self, *arguments):
        pass


@contextmanager
def served(folder: Path, trouble: dict[str, int | bytes] | None = None):
    """Yield the address of a server of static files. trouble: as in `Files`, by the end of a file's path."""
    handler = partial(Files, directory=str(folder), trouble={} if trouble is None else trouble)
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        server.daemon_threads = True
        threading.Thread(target=server.serve_forever, daemon=True).start()
        try:
            yield f"http://127.0.0.1:{server.server_address[1]}"
        finally:
            server.shutdown()
