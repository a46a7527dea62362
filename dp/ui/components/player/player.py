"""The trajectory player: a `gr.HTML` component that is fed one frame at a time and draws it on a canvas.

The server sends small JSON values, never markup, and the newest frame only. What a value holds, all of it optional but
`state`:

    state     'idle', 'waiting', 'running', 'done', 'stopped' or 'failed'
    index, timesteps, time, log_snr, moved   of the step that is shown, as in `Frame`
    src, noisy   its x0 and x_t, `count` images each, as data URIs: JPEG while running, PNG at the end
    curve     log-SNR at some steps of the run, with its first frame and its last
    seed      the seed of the first image, when a run begins
    run       its id; kept for this tab, so that a reload finds it again
    walk      whether the images are a walk between two seeds
    label     the name of an arm, and `until`, the step at which what it shows of its run ends
    beat      any number, new each time, that says no more than that the run goes on
    message   one sentence for the status line, as plain text

A run begins with 'waiting', or with another `run`: of values that come close together the page may see only the last.
Where one goes on but nothing has come for a while, the event `lost` is triggered. A value without `src` keeps the
picture that is there: nothing blanks. After 'stopped', of a live run, only another run counts.
"""

from __future__ import annotations

import base64
import math
import threading
from collections.abc import Callable
from typing import Any

import numpy as np

from dp.data.codec import encode_jpeg, encode_png, grid
from dp.serving.engine import Engine
from dp.serving.files import export
from dp.serving.frames import Frame, Trajectory
from dp.serving.handle import RunHandle
from dp.system.validation import message_of
from dp.ui.components.component import Component

SHARED = ("shared/canvas.js", "shared/playback.js", "shared/transport.js")
SCRIPTS = ("run", "panes", "charts", "selection", "attention", "walk", "files", "variant", "player")
CHUNK = 16  # frames in one answer to the player
PATIENCE = 10  # seconds that a file waits for another's end
SHEET_COLUMNS = 16  # of a sheet with one image's frames
BUSY = "the server is busy with another visitor's attention maps or file: try again in a moment"


class Player(Component):
    """A player. is_variant: one of several that a `Clock` plays, hidden until a run begins. keeps_runs: whether the
    server keeps the runs, so that their files can be saved.
    """

    def __init__(self, engine: Engine, is_variant: bool = False, keeps_runs: bool = True, **kwargs: Any):
        super().__init__(
            html="player/player.html",
            css=["shared/transport.css", "player/player.css"],
            js=[*SHARED, *(f"player/{name}.js" for name in SCRIPTS)],
            description="the newest frame: state, index, timesteps, time, log_snr, src, seed, message",
            server_functions=recall(engine),
            value={"state": "idle"},
            is_variant=is_variant,
            keeps_runs=keeps_runs,
            **kwargs,
        )


def show(frame: Frame | None, state: str, message: str | None = None) -> dict[str, Any]:
    """The player's value for a frame: lossless once the run has ended, light while it goes on."""
    value: dict[str, Any] = {"state": state}
    if message:
        value["message"] = message
    return value | pictured(frame, lossless=state != "running") if frame else value


def pictured(frame: Frame, lossless: bool) -> dict[str, Any]:
    uri = png if lossless else jpeg
    value = {key: getattr(frame, key) for key in ("index", "timesteps", "time", "log_snr")}
    value |= {"count": len(frame.x0), "moved": frame.moved.round(5).tolist()}
    return value | {"src": uri(grid(frame.x0)), "noisy": uri(grid(frame.x_t))}


def recall(engine: Engine) -> list[Callable[[Any], dict[str, Any] | None]]:
    """Return the functions that a player calls with the id of its run. Anybody may call them with anything."""
    one_at_a_time = threading.Semaphore(1)  # an animation takes memory and a core

    def frames(asked: Any) -> dict[str, Any] | None:
        return chunk_of(trajectory_of(engine, asked), asked)

    def closeup(asked: Any) -> dict[str, Any] | None:
        return sheets_of(trajectory_of(engine, asked), asked)

    def attention(asked: Any) -> dict[str, Any] | None:
        return attention_of(engine, asked, one_at_a_time)

    def save(asked: Any) -> dict[str, Any]:
        return file_of(engine, asked, one_at_a_time)

    return [frames, closeup, attention, save]


def handle_of(engine: Engine, asked: Any) -> RunHandle | None:
    run = asked.get("run") if isinstance(asked, dict) else None
    return engine.find(run) if isinstance(run, str) else None


def trajectory_of(engine: Engine, asked: Any) -> Trajectory | None:
    handle = handle_of(engine, asked)
    return handle and handle.trajectory


def number(asked: dict[str, Any], key: str, below: int) -> int | None:
    value = asked.get(key)
    return value if isinstance(value, int) and not isinstance(value, bool) and 0 <= value < below else None


def chunk_of(trajectory: Trajectory | None, asked: Any) -> dict[str, Any] | None:
    """Return CHUNK of the kept frames, beginning with number `start`, and how many there are in total."""
    if trajectory is None or (start := number(asked, "start", len(trajectory.frames))) is None:
        return None
    chunk = [pictured(frame, lossless=False) for frame in trajectory.frames[start : start + CHUNK]]
    for value in chunk:
        value["x0"], value["x_t"] = value.pop("src"), value.pop("noisy")
    return {"frames": chunk, "total": len(trajectory.frames)}


def sheets_of(trajectory: Trajectory | None, asked: Any) -> dict[str, Any] | None:
    """Return all kept frames of image `row`, lossless: one sheet with x_t and one with x0."""
    if trajectory is None or (row := number(asked, "row", trajectory.settings.batch_size)) is None:
        return None
    kept = list(trajectory.frames)
    sheets = {key: png(grid(np.stack([getattr(f, key)[row] for f in kept]), SHEET_COLUMNS)) for key in ("x_t", "x0")}
    return sheets | {"indices": [frame.index for frame in kept], "columns": SHEET_COLUMNS}


def attention_of(engine: Engine, asked: Any, one_at_a_time: threading.Semaphore) -> dict[str, Any] | None:
    """Return what the latents read of image `row` at step `index`: a sheet with one line per block, which shows the
    mean over the latents and then each latent. Every map is scaled to its own peak; `peaks` are relative to uniform
    attention.
    """
    trajectory = trajectory_of(engine, asked)
    if trajectory is None or (row := number(asked, "row", trajectory.settings.batch_size)) is None:
        return None
    if (index := number(asked, "index", len(trajectory.log_snr) + 1)) is None:
        return None
    if not one_at_a_time.acquire(timeout=PATIENCE):
        return {"problem": BUSY}
    try:
        weights = engine.inside(asked["run"], row, index).numpy()  # [depth,M,N]
    except ValueError as error:
        return {"problem": message_of(error)}
    finally:
        one_at_a_time.release()
    maps = np.concatenate([weights.mean(axis=1, keepdims=True), weights], axis=1)  # [depth,1+M,N]
    peaks = maps.max(axis=2)
    depth, columns, patches = maps.shape
    side = math.isqrt(patches)
    tiles = (maps / peaks[..., None] * 255).round().astype(np.uint8).reshape(depth * columns, side, side, 1)
    found = {"sheet": png(grid(tiles, columns)), "depth": depth, "latents": columns - 1, "side": side}
    return found | {"peaks": (peaks * patches).round(3).tolist()}


def file_of(engine: Engine, asked: Any, one_at_a_time: threading.Semaphore) -> dict[str, Any]:
    """Return a file of the run; `kind` is one of those that `export` takes."""
    handle = handle_of(engine, asked)
    if handle is None:
        return {"problem": "the server no longer has this run; Generate makes it again from its seed"}
    if not one_at_a_time.acquire(timeout=PATIENCE):
        return {"problem": BUSY}
    try:
        name, content = export(list(handle.trajectory.frames), handle.provenance, asked.get("kind"))
    except ValueError as error:
        return {"problem": message_of(error)}
    finally:
        one_at_a_time.release()
    return {"name": name, "content": "data:application/octet-stream;base64," + base64.b64encode(content).decode()}


def jpeg(picture: np.ndarray) -> str:
    return data_uri("jpeg", encode_jpeg(picture))


def png(picture: np.ndarray) -> str:
    return data_uri("png", encode_png(picture))


def data_uri(kind: str, picture: bytes) -> str:
    return f"data:image/{kind};base64,{base64.b64encode(picture).decode()}"
