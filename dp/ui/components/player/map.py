"""The map of a run, or of the runs of a comparison: their predictions among the model's images."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from dp.data.codec import make_grid
from dp.serving.frames import Trajectory
from dp.serving.handle import RunHandle, Runner
from dp.serving.image_map import ImageMap, map_of, paths_of
from dp.ui.components.data_uri import png_uri
from dp.ui.components.player.guard import OneAtATime

COLUMNS = 16  # of the sheet of landmarks


def compute_map(runner: Runner, handle: RunHandle | None, one_at_a_time: OneAtATime) -> dict[str, Any] | None:
    """Return the places of a model's images, a sheet of some of them, and the places of a run's predictions by image
    and then by frame; or the `problem`; None without a run.
    """
    if handle is None or not handle.trajectory.frames:
        return None

    def compute() -> dict[str, Any]:
        found = find_map(runner, handle)
        return map_values(found) | path_values(found, handle.trajectory)

    return one_at_a_time(compute)


def compute_variants_map(
    runner: Runner, handles: Sequence[RunHandle | None], one_at_a_time: OneAtATime
) -> dict[str, Any] | None:
    """Return the same for several runs, on the map of the first one's model, with the paths of each in `variants`: none
    where its images have another size. None if a run is missing.
    """
    if not handles or not all(handle and handle.trajectory.frames for handle in handles):
        return None

    def compute() -> dict[str, Any]:
        found = find_map(runner, handles[0])
        return map_values(found) | {"variants": [path_values(found, handle.trajectory) for handle in handles]}

    return one_at_a_time(compute)


def find_map(runner: Runner, handle: RunHandle) -> ImageMap:
    entry = next((entry for entry in runner.checkpoints() if entry.name == handle.checkpoint), None)
    if entry is None or entry.problem:
        raise ValueError("the checkpoint of this run is no longer here")
    return map_of(entry)


def map_values(found: ImageMap) -> dict[str, Any]:
    return {
        "places": found.places.numpy().round(4).tolist(),
        "shares": [round(share, 3) for share in found.shares],
        "landmarks": found.landmarks,
        "columns": COLUMNS,
        "sheet": png_uri(make_grid(found.images, COLUMNS)),
    }


def path_values(found: ImageMap, trajectory: Trajectory) -> dict[str, Any]:
    frames = list(trajectory.frames)
    if frames[-1].x0.shape[1:] != found.images.shape[1:]:
        return {"steps": [], "paths": []}
    paths = paths_of(found, frames).transpose(0, 1)  # [B,K,2]
    return {"steps": [frame.index for frame in frames], "paths": paths.numpy().round(4).tolist()}
