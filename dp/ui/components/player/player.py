"""The trajectory player: a `gr.HTML` component that receives one frame at a time and draws it on a canvas.

The server sends small JSON values with the newest frame, never markup. All keys of a value but `state` are optional:

    state     'idle', 'waiting', 'running', 'done', 'stopped' or 'failed'; in the page also 'recorded'; 'browser': the
              page computes the run itself, see player/browser.js
    index, timesteps, time, log_snr, moved   of the frame's step, as in `Frame`
    src, noisy   the images of x0 and of x_t, `count` of each, as data URIs: JPEG during the run and PNG at its end
    curve     [step, log-SNR] at some steps of the run, with the run's first frame and its last; `others`: by name, the
              curves that it would have with other noise schedules
    seed      the seed of the first image, when a run begins
    run       the id of the run; the browser tab keeps it, so that a reloaded page finds the run again
    settings  the settings of the run in one line, once it has been prepared
    walk      whether the images are a walk between two seeds
    classes   the class of each image, null for none, once a run of a model with classes has ended
    label     the name of a variant, and `until`, the last step of its run that it shows
    replay    whether the frame is one of the past: of a run that was going on before the page was loaded
    heartbeat a number, new each time, in a value that says only that the run continues
    here      in the state 'browser', what the page needs for that (`dp.ui.browser_models.browser_run`)
    message   one sentence for the status line, as plain text

A run begins with the state 'waiting' or with another `run`: of several values in quick succession, the page may see
only the last. If a live run sends nothing for some seconds, the component triggers `reconnect`. Its buttons
trigger `rerun`, with the `seed` of the run that is shown or, for new noise, null. A value without `src`
leaves the images as they are. After 'stopped', values are ignored until another run begins.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import gradio as gr
import numpy as np
from torch import Tensor

from dp.data.codec import make_grid, to_uint8
from dp.networks.attention import total_variation
from dp.serving.files import export
from dp.serving.frames import Frame, Trajectory
from dp.serving.handle import RunHandle, Runner
from dp.ui.components.component import Component
from dp.ui.components.data_uri import data_uri, jpeg_uri, png_uri
from dp.ui.components.player.endings_sheet import endings_sheet
from dp.ui.components.player.exact import compute_best, compute_candidates
from dp.ui.components.player.guard import OneAtATime, inspected, read_number
from dp.ui.components.player.map import compute_map
from dp.ui.components.player.parts import CORE, PANELS, SHARED, STYLES
from dp.ui.components.player.step_sheet import step_sheet
from dp.ui.components.recording import recording_reader
from dp.ui.sampling.page_values import find_run

CHUNK_FRAMES = 16  # in one answer to the player
SHEET_COLUMNS = 16  # of the sheet with all frames of one image


class Player(Component):
    """A player of the runs that `runner` samples. is_variant: one of several that a `Clock` plays, hidden until a run
    begins. recording: a JSON file with a run that is played before the first one: its `timesteps`, `images`,
    `settings`, `curve`, `others` and `frames`. can_compute: whether the page may compute runs itself.
    """

    def __init__(
        self,
        runner: Runner,
        is_variant: bool = False,
        recording: Path | None = None,
        can_compute: bool = False,
        **kwargs: Any,
    ):
        parts = CORE if is_variant else PANELS + CORE
        super().__init__(
            html="player/player.html",
            without=["player/inspectors.html", "player/panels.html"] if is_variant else [],
            css=[f"{name}.css" for name in STYLES],
            js=[*(f"shared/{name}.js" for name in SHARED), *(f"player/{name}.js" for name in parts)],
            description="the newest frame: state, index, timesteps, time, log_snr, src, seed, message",
            server_functions=[*server_functions(runner), recording_reader(recording)],
            value={"state": "idle"},
            is_variant=is_variant,
            can_replay=runner.can_replay,
            can_compute=can_compute,
            has_recording=recording is not None,
            **kwargs,
        )


def show(frame: Frame | None, state: str, message: str | None = None) -> dict[str, Any]:
    """Return the player's value for a frame. Its images are lossless PNGs unless the run is still running."""
    value: dict[str, Any] = {"state": state}
    if message:
        value["message"] = message
    return value | frame_value(frame, lossless=state != "running") if frame else value


def frame_value(frame: Frame, lossless: bool) -> dict[str, Any]:
    to_uri = png_uri if lossless else jpeg_uri
    value = {key: getattr(frame, key) for key in ("index", "timesteps", "time", "log_snr")}
    value |= {"count": len(frame.x0), "moved": frame.moved.round(5).tolist()}
    return value | {"src": to_uri(make_grid(frame.x0)), "noisy": to_uri(make_grid(frame.x_t))}


def server_functions(runner: Runner) -> list[Callable[..., dict[str, Any] | None]]:
    """Return the functions that a player calls with the id of its run. Anyone can call them with anything."""
    one_at_a_time = OneAtATime()
    one_branch = OneAtATime()  # it takes its turns with the runs, so nothing else waits for it

    def frames(data: Any, request: gr.Request = None) -> dict[str, Any] | None:
        return read_chunk(trajectory_of(find_handle(runner, data, request)), data)

    def closeup(data: Any, request: gr.Request = None) -> dict[str, Any] | None:
        return make_sheets(trajectory_of(find_handle(runner, data, request)), data)

    def attention(data: Any, request: gr.Request = None) -> dict[str, Any] | None:
        return compute_attention(runner, find_handle(runner, data, request), data, one_at_a_time)

    def branches(data: Any, request: gr.Request = None) -> dict[str, Any] | None:
        return compute_branches(runner, find_handle(runner, data, request), data, one_at_a_time)

    def best(data: Any, request: gr.Request = None) -> dict[str, Any] | None:
        return compute_best(runner, find_handle(runner, data, request), data, one_at_a_time)

    def candidates(data: Any, request: gr.Request = None) -> dict[str, Any] | None:
        return compute_candidates(runner, find_handle(runner, data, request), data, one_at_a_time)

    def map(data: Any, request: gr.Request = None) -> dict[str, Any] | None:
        return compute_map(runner, find_handle(runner, data, request), one_at_a_time)

    def apart(data: Any, request: gr.Request = None) -> dict[str, Any] | None:
        return inspected(partial(step_sheet, runner), find_handle(runner, data, request), data, one_at_a_time)

    def endings(data: Any, request: gr.Request = None) -> dict[str, Any] | None:
        return inspected(partial(endings_sheet, runner), find_handle(runner, data, request), data, one_branch)

    def save(data: Any, request: gr.Request = None) -> dict[str, Any]:
        return make_file(find_handle(runner, data, request), data, one_at_a_time)

    return [frames, closeup, attention, branches, best, candidates, map, apart, endings, save]


def find_handle(runner: Runner, data: Any, request: gr.Request | None) -> RunHandle | None:
    """Return the run that the page asks about, if the visitor may see it."""
    run = data.get("run") if isinstance(data, dict) else None
    return find_run(runner, run, request) if isinstance(run, str) else None


def trajectory_of(handle: RunHandle | None) -> Trajectory | None:
    return handle and handle.trajectory


def read_chunk(trajectory: Trajectory | None, data: Any) -> dict[str, Any] | None:
    """Return up to CHUNK_FRAMES of the kept frames, from number `start` on, and the `total` number of kept frames."""
    if trajectory is None or (start := read_number(data, "start", len(trajectory.frames))) is None:
        return None
    chunk = [frame_value(frame, lossless=False) for frame in trajectory.frames[start : start + CHUNK_FRAMES]]
    for value in chunk:
        value["x0"], value["x_t"] = value.pop("src"), value.pop("noisy")
    return {"frames": chunk, "total": len(trajectory.frames)}


def make_sheets(trajectory: Trajectory | None, data: Any) -> dict[str, Any] | None:
    """Return all kept frames of image `row`, lossless: one sheet of x_t and one of x0."""
    if trajectory is None or (row := read_number(data, "row", trajectory.settings.batch_size)) is None:
        return None
    kept = list(trajectory.frames)
    stacks = {key: np.stack([getattr(frame, key)[row] for frame in kept]) for key in ("x_t", "x0")}
    sheets = {key: png_uri(make_grid(images, SHEET_COLUMNS)) for key, images in stacks.items()}
    return sheets | {"indices": [frame.index for frame in kept], "columns": SHEET_COLUMNS}


def compute_attention(
    runner: Runner, handle: RunHandle | None, data: Any, one_at_a_time: OneAtATime
) -> dict[str, Any] | None:
    """Return the attention of each latent to the patches of image `row` at step `index`: a sheet with one line per
    block, which has the mean over the latents and then each latent. Every map is scaled to its own peak; `peaks` are
    relative to uniform attention. `variation` is how different the latents' maps are in each block, 0 to 1.
    """
    found = inspected(runner.attention, handle, data, one_at_a_time)
    if not isinstance(found, Tensor):
        return found
    weights = found.numpy()  # [depth,M,N]
    maps = np.concatenate([weights.mean(axis=1, keepdims=True), weights], axis=1)  # [depth,1+M,N]
    peaks = maps.max(axis=2)
    depth, columns, patches = maps.shape
    side = math.isqrt(patches)
    tiles = (maps / peaks[..., None] * 255).round().astype(np.uint8).reshape(depth * columns, side, side, 1)
    sheet = {"sheet": png_uri(make_grid(tiles, columns)), "depth": depth, "latents": columns - 1, "side": side}
    variation = [total_variation(block[None]) for block in found]
    return sheet | {"peaks": (peaks * patches).round(3).tolist(), "variation": variation}


def compute_branches(
    runner: Runner, handle: RunHandle | None, data: Any, one_at_a_time: OneAtATime
) -> dict[str, Any] | None:
    """Return the predictions for image `row` at step `index` without its class, with it, and guided, on one sheet; and
    the guidance of that step.
    """
    found = inspected(runner.branches, handle, data, one_at_a_time)
    if not isinstance(found, tuple):
        return found
    x0, guidance = found
    return {"sheet": png_uri(make_grid(to_uint8((x0 + 1) / 2), 3)), "guidance": guidance}


def make_file(handle: RunHandle | None, data: Any, one_at_a_time: OneAtATime) -> dict[str, Any]:
    """Return a file of the run, or the `problem`. `kind` and `row` are those that `export` takes."""
    if handle is None:
        return {"problem": "the server no longer has this run; Generate makes it again from its seed"}
    row = read_number(data, "row", handle.trajectory.settings.batch_size) or 0
    made = one_at_a_time(lambda: export(list(handle.trajectory.frames), handle.provenance, data.get("kind"), row))
    if isinstance(made, dict):
        return made
    name, content = made
    return {"name": name, "content": data_uri("application/octet-stream", content)}
