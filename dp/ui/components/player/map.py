"""The map of a run: its predictions among the model's images."""

from __future__ import annotations

from typing import Any

from dp.checkpoints.classes import classes_of
from dp.data.codec import make_grid
from dp.serving.handle import RunHandle, Runner
from dp.serving.image_map import map_of, paths_of
from dp.ui.components.data_uri import png_uri
from dp.ui.components.player.guard import OneAtATime

COLUMNS = 16  # of the sheet of landmarks


def compute_map(runner: Runner, handle: RunHandle | None, one_at_a_time: OneAtATime) -> dict[str, Any] | None:
    """Return the places of a model's images, a sheet of some of them, and the places of a run's predictions by image
    and then by frame; or the `problem`; None without a run.
    """
    if handle is None or not handle.trajectory.frames:
        return None
    return one_at_a_time(lambda: map_values(runner, handle))


def map_values(runner: Runner, handle: RunHandle) -> dict[str, Any]:
    entry = next((entry for entry in runner.checkpoints() if entry.name == handle.checkpoint), None)
    if entry is None or entry.problem:
        raise ValueError("the checkpoint of this run is no longer here")
    found = map_of(entry)
    paths = paths_of(found, handle.trajectory)  # [K,B,2]
    return {
        "places": found.places.numpy().round(4).tolist(),
        "labels": found.labels,
        "classes": classes_of(entry.config),
        "shares": [round(share, 3) for share in found.shares],
        "landmarks": found.landmarks,
        "columns": COLUMNS,
        "sheet": png_uri(make_grid(found.images, COLUMNS)),
        "steps": [frame.index for frame in handle.trajectory.frames],
        "paths": paths.transpose(0, 1).numpy().round(4).tolist(),
    }
