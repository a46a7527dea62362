"""The trajectory player: a `gr.HTML` component that receives one frame at a time and draws it on a canvas.

The server sends small JSON values with the newest frame, never markup. All keys of a value but `state` are optional:

    state     'idle', 'waiting', 'running', 'done', 'stopped' or 'failed'
    index, timesteps, time, log_snr, moved   of the frame's step, as in `Frame`
    src, noisy   the images of x0 and of x_t, `count` of each, as data URIs: JPEG during the run and PNG at its end
    curve     [step, log-SNR] at some steps of the run, with the run's first frame and its last
    seed      the seed of the first image, when a run begins
    run       the id of the run; the browser tab keeps it, so that a reloaded page finds the run again
    walk      whether the images are a walk between two seeds
    label     the name of a variant, and `until`, the last step of its run that it shows
    heartbeat a number, new each time, in a value that says only that the run continues
    message   one sentence for the status line, as plain text

A run begins with the state 'waiting' or with another `run`: of several values in quick succession, the page may see
only the last. If a live run sends nothing for some seconds, the component triggers `reconnect`. A value without `src`
leaves the images as they are. After 'stopped', values are ignored until another run begins.
"""

from __future__ import annotations

import base64
import math
import threading
from collections.abc import Callable
from typing import Any

import numpy as np

from dp.data.codec import encode_jpeg, encode_png, make_grid
from dp.serving.files import export
from dp.serving.frames import Frame, Trajectory
from dp.serving.handle import RunHandle, Runner
from dp.system.validation import message_of
from dp.ui.components.component import Component

SCRIPTS = [f"shared/{name}.js" for name in ("canvas", "playback", "transport")]
PARTS = ("run", "panes", "charts", "selection", "attention", "walk", "files", "variant", "player")
SCRIPTS += [f"player/{name}.js" for name in PARTS]
CHUNK_FRAMES = 16  # in one answer to the player
QUEUE_S = 10  # for which an attention map or a file waits for another one
SHEET_COLUMNS = 16  # of the sheet with all frames of one image
BUSY = "the server is busy with an attention map or a file for another visitor: try again in a moment"


class Player(Component):
    """A player of the runs that `runner` samples. is_variant: one of several that a `Clock` plays, hidden until a run
    begins.
    """

    def __init__(self, runner: Runner, is_variant: bool = False, **kwargs: Any):
        super().__init__(
            html="player/player.html",
            css=["shared/transport.css", "player/player.css"],
            js=SCRIPTS,
            description="the newest frame: state, index, timesteps, time, log_snr, src, seed, message",
            server_functions=server_functions(runner),
            value={"state": "idle"},
            is_variant=is_variant,
            has_attention=runner.has_attention,
            **kwargs,
        )


def show(frame: Frame | None, state: str, message: str | None = None) -> dict[str, Any]:
    """Return the player's value for a frame. Its images are lossless PNGs unless the run is still running."""
    value: dict[str, Any] = {"state": state}
    if message:
        value["message"] = message
    return value | frame_value(frame, lossless=state != "running") if frame else value


def frame_value(frame: Frame, lossless: bool) -> dict[str, Any]:
    uri = png if lossless else jpeg
    value = {key: getattr(frame, key) for key in ("index", "timesteps", "time", "log_snr")}
    value |= {"count": len(frame.x0), "moved": frame.moved.round(5).tolist()}
    return value | {"src": uri(make_grid(frame.x0)), "noisy": uri(make_grid(frame.x_t))}


def server_functions(runner: Runner) -> list[Callable[[Any], dict[str, Any] | None]]:
    """Return the functions that a player calls with the id of its run. Anybody may call them with anything."""
    one_at_a_time = threading.Semaphore(1)  # making a file takes memory and a core

    def frames(asked: Any) -> dict[str, Any] | None:
        return chunk_of(trajectory_of(runner, asked), asked)

    def closeup(asked: Any) -> dict[str, Any] | None:
        return sheets_of(trajectory_of(runner, asked), asked)

    def attention(asked: Any) -> dict[str, Any] | None:
        return attention_of(runner, asked, one_at_a_time)

    def save(asked: Any) -> dict[str, Any]:
        return file_of(runner, asked, one_at_a_time)

    return [frames, closeup, attention, save]


def handle_of(runner: Runner, asked: Any) -> RunHandle | None:
    run = asked.get("run") if isinstance(asked, dict) else None
    return runner.find(run) if isinstance(run, str) else None


def trajectory_of(runner: Runner, asked: Any) -> Trajectory | None:
    handle = handle_of(runner, asked)
    return handle and handle.trajectory


def read_number(asked: dict[str, Any], key: str, below: int) -> int | None:
    value = asked.get(key)
    return value if isinstance(value, int) and not isinstance(value, bool) and 0 <= value < below else None


def chunk_of(trajectory: Trajectory | None, asked: Any) -> dict[str, Any] | None:
    """Return up to CHUNK_FRAMES of the kept frames, from number `start` on, and the `total` number of kept frames."""
    if trajectory is None or (start := read_number(asked, "start", len(trajectory.frames))) is None:
        return None
    chunk = [frame_value(frame, lossless=False) for frame in trajectory.frames[start : start + CHUNK_FRAMES]]
    for value in chunk:
        value["x0"], value["x_t"] = value.pop("src"), value.pop("noisy")
    return {"frames": chunk, "total": len(trajectory.frames)}


def sheets_of(trajectory: Trajectory | None, asked: Any) -> dict[str, Any] | None:
    """Return all kept frames of image `row`, lossless: one sheet of x_t and one of x0."""
    if trajectory is None or (row := read_number(asked, "row", trajectory.settings.batch_size)) is None:
        return None
    kept = list(trajectory.frames)
    sheets = {
        key: png(make_grid(np.stack([getattr(f, key)[row] for f in kept]), SHEET_COLUMNS)) for key in ("x_t", "x0")
    }
    return sheets | {"indices": [frame.index for frame in kept], "columns": SHEET_COLUMNS}


def attention_of(runner: Runner, asked: Any, one_at_a_time: threading.Semaphore) -> dict[str, Any] | None:
    """Return the attention of each latent to the patches of image `row` at step `index`: a sheet with one line per
    block, which has the mean over the latents and then each latent. Every map is scaled to its own peak; `peaks` are
    relative to uniform attention.
    """
    trajectory = trajectory_of(runner, asked)
    if trajectory is None or (row := read_number(asked, "row", trajectory.settings.batch_size)) is None:
        return None
    if (index := read_number(asked, "index", len(trajectory.log_snr) + 1)) is None:
        return None
    if not one_at_a_time.acquire(timeout=QUEUE_S):
        return {"problem": BUSY}
    try:
        weights = runner.inside(asked["run"], row, index).numpy()  # [depth,M,N]
    except ValueError as error:
        return {"problem": message_of(error)}
    finally:
        one_at_a_time.release()
    maps = np.concatenate([weights.mean(axis=1, keepdims=True), weights], axis=1)  # [depth,1+M,N]
    peaks = maps.max(axis=2)
    depth, columns, patches = maps.shape
    side = math.isqrt(patches)
    tiles = (maps / peaks[..., None] * 255).round().astype(np.uint8).reshape(depth * columns, side, side, 1)
    found = {"sheet": png(make_grid(tiles, columns)), "depth": depth, "latents": columns - 1, "side": side}
    return found | {"peaks": (peaks * patches).round(3).tolist()}


def file_of(runner: Runner, asked: Any, one_at_a_time: threading.Semaphore) -> dict[str, Any]:
    """Return a file of the run, or the `problem`. `kind` is one of those that `export` takes."""
    handle = handle_of(runner, asked)
    if handle is None:
        return {"problem": "the server no longer has this run; Generate makes it again from its seed"}
    if not one_at_a_time.acquire(timeout=QUEUE_S):
        return {"problem": BUSY}
    try:
        name, content = export(list(handle.trajectory.frames), handle.provenance, asked.get("kind"))
    except ValueError as error:
        return {"problem": message_of(error)}
    finally:
        one_at_a_time.release()
    return {"name": name, "content": "data:application/octet-stream;base64," + base64.b64encode(content).decode()}


def jpeg(image: np.ndarray) -> str:
    return data_uri("jpeg", encode_jpeg(image))


def png(image: np.ndarray) -> str:
    return data_uri("png", encode_png(image))


def data_uri(image_format: str, image: bytes) -> str:
    return f"data:image/{image_format};base64,{base64.b64encode(image).decode()}"
