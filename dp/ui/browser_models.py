"""Models that visitors' browsers compute: the files that such runs need, and the routes that serve them.

The files of a model are those of its exported page (`dp.ui.web`). They are made when the first visitor asks for them,
one model at a time in a process of low priority, and kept in DP_HOME by the hash of the checkpoint. From then on, a run
costs the server one short event and static files, and the engine nothing.
"""

from __future__ import annotations

import asyncio
import base64
import hashlib
import json
import os
import shutil
import tempfile
import threading
import time
import zlib
from collections import defaultdict
from collections.abc import AsyncIterator, Mapping
from contextlib import suppress
from functools import cache, lru_cache
from pathlib import Path
from typing import Any
from urllib.parse import quote

import torch
from starlette.requests import Request
from starlette.responses import FileResponse, PlainTextResponse, RedirectResponse, Response
from starlette.routing import Route

from dp.checkpoints.catalog import CheckpointInfo
from dp.serving.engine import Engine
from dp.serving.handle import SampleRequest
from dp.system.atomic_files import replacing, write_json
from dp.system.validation import message_of
from dp.ui.components.files import read_scripts
from dp.ui.sampling import page_values
from dp.ui.web.graph import WEIGHTS
from dp.ui.web.page import IN_APP, RUNNER, read_about
from dp.ui.web.process import export_in_process
from dp.ui.web.update_runtime import BUILDS, RUNTIME, VERSION

PREFIX = "/browser-models"
CACHE = ".browser-models"  # the folder in DP_HOME
KEPT = 8  # models in it
FILES = ("model.onnx", WEIGHTS, "expected.bin")
ABOUT = "about.json"  # beside them
MOST_EXPORTS = 4  # under way or waiting for their turn
MOST_WAITING = 64  # visitors who wait for one
RETRY_S = 600  # before what has failed is tried again
BEAT_S = 1.0
YEAR = "private, max-age=31536000, immutable"  # the query of each address changes with the content


class BrowserModels:
    """The files of the checkpoints of `engine` for browsers. home: the folder in which they are kept; a temporary one
    where it cannot be written.
    """

    def __init__(self, engine: Engine, home: Path):
        self.engine = engine
        self._home = home
        self._temporary: tempfile.TemporaryDirectory | None = None
        self._about: dict[str, dict[str, Any]] = {}  # by key
        self._names: dict[str, set[str]] = defaultdict(set)  # of the checkpoints with a key
        self._making: set[str] = set()
        self._failed: dict[str, tuple[float, str]] = {}  # when, and why
        self._waiting = 0
        self._lock, self._turn = threading.Lock(), threading.Lock()

    async def wait(self, checkpoint: str) -> AsyncIterator[dict[str, Any] | None]:
        """Yield None about once a second while the files of a checkpoint are made, and then what a browser has to know
        about them: `key`, and the page's `about`. Raises ValueError with the reason if there is none.
        """
        if self._waiting >= MOST_WAITING:
            raise ValueError("too many visitors are waiting for a model for their browsers; try again in a minute")
        entry = find_entry(self.engine, checkpoint)
        self._waiting += 1
        try:
            while (found := await asyncio.to_thread(self.find, entry)) is None:
                yield None
                await asyncio.sleep(BEAT_S)
            yield found
        finally:
            self._waiting -= 1

    def find(self, entry: CheckpointInfo) -> dict[str, Any] | None:
        """Return `key` and `about` of a checkpoint; None while its files are made, which begins with the first call.
        Raises ValueError with the reason if they cannot be made.
        """
        try:
            key = key_of(entry.path)
        except OSError as error:
            raise ValueError(f"{entry.name} cannot be read: {message_of(error)}") from None
        with self._lock:
            self._names[key].add(entry.name)
            if key in self._making:
                return None
            failed_at, reason = self._failed.get(key, (0.0, ""))
            if reason and time.monotonic() - failed_at < RETRY_S:
                raise ValueError(reason)
            if key in self._about and (self._folder(key) / ABOUT).is_file():
                with suppress(OSError):
                    os.utime(self._folder(key))  # used just now
                return {"key": key, "about": self._about[key] | {"name": entry.name}}
            if len(self._making) >= MOST_EXPORTS:
                raise ValueError("the server is preparing other models for browsers; try again in a minute")
            self._making.add(key)
        threading.Thread(target=self._make, args=(key, entry), name="dp-browser-models", daemon=True).start()
        return None

    def _make(self, key: str, entry: CheckpointInfo) -> None:
        reason = ""
        try:
            with self._turn:
                about = read_kept(self._folder(key)) or self._export(key, entry)
        except Exception as error:
            reason = message_of(error).replace(str(entry.path.absolute()), entry.name)
        with self._lock:
            self._making.discard(key)
            self._failed.pop(key, None)
            if reason:
                self._failed[key] = time.monotonic(), reason
            else:
                self._about[key] = about

    def _export(self, key: str, entry: CheckpointInfo) -> dict[str, Any]:
        target = self._folder(key)
        with replacing(target) as made, tempfile.TemporaryDirectory() as scratch:
            export_in_process(entry.path, page := Path(scratch) / "page", entry.name)
            made.mkdir()
            for name in FILES:
                shutil.move(page / name, made / name)
            about = read_about(page) | {"card": []}
            write_json(made / ABOUT, about)
        kept = [path for path in target.parent.iterdir() if path.is_dir() and not path.name.startswith(".")]
        for old in sorted(kept, key=lambda path: path.stat().st_mtime)[:-KEPT]:
            shutil.rmtree(old, ignore_errors=True)
        return about

    def _folder(self, key: str) -> Path:
        cache_folder = self._home / CACHE
        with suppress(OSError):  # DP_HOME may be read-only, or /dev/null
            cache_folder.mkdir(parents=True, exist_ok=True)
        if not os.access(cache_folder, os.W_OK):
            self._temporary = self._temporary or tempfile.TemporaryDirectory(prefix="dp-", ignore_cleanup_errors=True)
            cache_folder = Path(self._temporary.name)
        return cache_folder / key

    # ------------------------------------------------------------------------
    # Routes

    def routes(self) -> list[Route]:
        """Return the routes of the scripts, which are for everybody, and of the models' files, which are for those who
        may see the model.
        """
        return [
            Route(f"{PREFIX}/source.js", lambda request: script_response(source_script())),
            Route(PREFIX + "/{key}/runner.js", lambda request: script_response(read_scripts(*RUNNER))),
            Route(PREFIX + "/runtime/{name}", serve_runtime),
            Route(PREFIX + "/{key}/runtime/{name}", redirect_to_runtime),
            Route(PREFIX + "/{key}/{name}", self.serve_file),
        ]

    def serve_file(self, request: Request) -> Response:
        key, name = request.path_params["key"], request.path_params["name"]
        with self._lock:
            names = set(self._names.get(key, ()))
        may_see = any(page_values.may_see(self.engine, checkpoint, request) for checkpoint in names)
        return file_response(self._folder(key) / name if may_see and name in FILES else None)


def find_entry(engine: Engine, checkpoint: str) -> CheckpointInfo:
    """Return the checkpoint of that name that the visitor may see. Raises ValueError for one without a network."""
    page_values.config_of(engine, checkpoint)
    entry = next(entry for entry in page_values.visible_checkpoints(engine) if entry.name == checkpoint)
    if entry.is_exact:
        raise ValueError(
            f"{checkpoint} needs its training images, which stay on the server: under Compute on, choose This server"
        )
    return entry


def key_of(folder: Path) -> str:
    """Return the hash of a checkpoint folder, and of what makes its files for browsers. Raises OSError."""
    paths = [folder / WEIGHTS, folder / "config.json"]
    return _hash(*paths, *(path.stat().st_mtime_ns for path in paths))


@lru_cache(maxsize=256)
def _hash(weights: Path, config: Path, *times: int) -> str:
    digest = hashlib.sha256(exporter_digest())
    for path in (weights, config):
        with path.open("rb") as file:
            while part := file.read(1 << 20):
                digest.update(part)
    return digest.hexdigest()[:32]


@cache
def exporter_digest() -> bytes:
    sources = [*sorted(RUNTIME.parent.glob("*.py")), RUNTIME / VERSION]
    return hashlib.sha256(torch.__version__.encode() + b"".join(path.read_bytes() for path in sources)).digest()


def read_kept(folder: Path) -> dict[str, Any] | None:
    """Return what is kept about a model, or None if there is nothing, or its files are damaged."""
    try:
        about = json.loads((folder / ABOUT).read_text(encoding="utf-8"))
        is_intact = all(zlib.crc32((folder / name).read_bytes()) == about["files"][name]["crc32"] for name in FILES)
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return about if is_intact else None


@cache
def source_script() -> str:
    """Return the module with which the player computes a run (player/browser.js)."""
    return read_scripts(*IN_APP) + "\nexport { createLocalRuns };\n"


@cache
def scripts_version() -> str:
    return f"{zlib.crc32((source_script() + read_scripts(*RUNNER)).encode()):08x}"


def script_response(text: str) -> Response:
    return Response(text, media_type="text/javascript", headers={"cache-control": YEAR})


def serve_runtime(request: Request) -> Response:
    name = request.path_params["name"]
    is_known = name.removesuffix(".gz") in sum(BUILDS.values(), ()) and name.endswith(".gz")
    return file_response(RUNTIME / name if is_known else None)


def redirect_to_runtime(request: Request) -> Response:
    """Lead all models to the same address, so that a browser fetches the runtime once."""
    address = f"../../runtime/{quote(request.path_params['name'])}?{request.url.query}"
    return RedirectResponse(address, headers={"cache-control": YEAR})


def file_response(path: Path | None) -> Response:
    """Return a file, or for None, which is also what strangers get, an error."""
    if path is None or not path.is_file():
        return PlainTextResponse("There is no such file, or you may not see it.", 404)
    # An encoding, even this one, keeps the server from compressing it: weights hardly shrink, and it would take a core.
    headers = {"cache-control": YEAR, "content-encoding": "identity"}
    return FileResponse(path, media_type="application/octet-stream", headers=headers)


# ----------------------------------------------------------------------------
# A run


def browser_run(request: SampleRequest, found: Mapping[str, Any]) -> dict[str, Any]:
    """Return what the player needs to compute a run: the addresses of its `script` and of the model's files, what is
    known about the `model`, and the `settings` as the worker takes them (web/sampling.js), with images as base64.
    """
    s, about = request.settings, dict(found["about"]) | {"version": scripts_version()}
    own, is_trained = about["policy"], s.noise_schedule is None
    has_start = request.start is not None and (s.strength < 1 or request.mask is not None)
    settings = {
        "images": s.batch_size,
        "timesteps": s.timesteps,
        "sampler": s.sampler,
        "schedule": own["noise_schedule"] if is_trained else s.noise_schedule,
        "scheduleKwargs": own["schedule_kwargs"] if is_trained else {},
        "timeDifference": s.time_difference,
        "eta": s.eta,
        "seed": s.seed,
        "walkTo": s.walk_to,
        "strength": s.strength,
        "labels": list(s.labels),
        "guidance": s.guidance,
        "guidanceInterval": list(s.guidance_interval),
        "start": float_bytes(request.start * 2 - 1) if has_start else None,
        "mask": float_bytes(request.mask) if request.mask is not None else None,
    }
    base = PREFIX.lstrip("/")
    addresses = {"base": f"{base}/{found['key']}/", "script": f"{base}/source.js?{scripts_version()}"}
    return addresses | {"model": about, "settings": settings}


def float_bytes(values: torch.Tensor) -> str:
    return base64.b64encode(values.float().contiguous().numpy().astype("<f4").tobytes()).decode("ascii")
