"""Answer a player's questions about training images: the candidates of a run, and the best possible prediction."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

import numpy as np

from dp.data.codec import make_grid, to_uint8
from dp.serving.candidates import BestPrediction, RunCandidates, best_prediction, run_candidates
from dp.serving.handle import RunHandle, Runner
from dp.ui.components.data_uri import png_uri
from dp.ui.components.player.guard import OneAtATime, inspected, read_number

COLUMNS = 16  # of the sheets
NO_REPLAY = "this needs the model, which is on a GPU only during a run"


def compute_candidates(
    runner: Runner, handle: RunHandle | None, data: Any, one_at_a_time: OneAtATime
) -> dict[str, Any] | None:
    """Return the candidates of image `row` of a run, or with a `row` of None of all its images, as in `RunCandidates`
    but by image and then by step; with a sheet of the training images and one of the results. Or the `problem`; None
    without such a run or image.
    """
    if handle is None or not handle.trajectory.frames:
        return None
    row = read_number(data, "row", handle.trajectory.settings.batch_size)
    if row is None and data.get("row") is not None:
        return None
    if not runner.can_replay:
        return {"problem": NO_REPLAY}
    found = one_at_a_time(lambda: run_candidates(runner, handle.request_id, row))
    if isinstance(found, dict):
        return found
    rows = list(range(handle.trajectory.settings.batch_size)) if row is None else [row]
    return candidate_values(found, rows, handle.trajectory.frames[-1].x0[rows])


def candidate_values(found: RunCandidates, rows: Sequence[int], results: np.ndarray) -> dict[str, Any]:
    return {
        "rows": rows,
        "steps": found.steps,
        "counts": found.counts.T.round(2).tolist(),
        "likeliest": found.likeliest.swapaxes(0, 1).tolist(),
        "weights": found.weights.swapaxes(0, 1).round(4).tolist(),
        "decided": found.decided,
        "settled": found.settled,
        "nearest": found.nearest.tolist(),
        "distances": found.distances.round(4).tolist(),
        "total": found.total,
        "columns": COLUMNS,
        "sheet": png_uri(make_grid(found.images, COLUMNS)),
        "results": png_uri(make_grid(results, COLUMNS)),
    }


def compute_best(
    runner: Runner, handle: RunHandle | None, data: Any, one_at_a_time: OneAtATime
) -> dict[str, Any] | None:
    """Return the predictions of a run's model and of the exact denoiser for image `row` at step `index`, and their
    difference, on one sheet; or the `problem`; None without such a run, image or step.
    """
    if handle is not None and not runner.can_replay:
        return {"problem": NO_REPLAY}
    found = inspected(partial(best_prediction, runner), handle, data, one_at_a_time)
    if not isinstance(found, BestPrediction):
        return found
    images = to_uint8((found.both + 1) / 2)
    signed = (images[:1].astype(np.int16) - images[1:]) // 2 + 128  # gray where they are equal
    tiles = np.concatenate([images, signed.astype(np.uint8)])
    numbers = {"difference": round(found.difference, 5), "possible": round(found.possible, 2), "total": found.total}
    return {"sheet": png_uri(make_grid(tiles, 3))} | numbers
