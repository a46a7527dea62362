"""The endings of an image from a step on, for the player: their images on one sheet, and how many are left."""

from __future__ import annotations

from typing import Any

import torch

from dp.data.codec import make_grid, to_float
from dp.diffusion.endings import ENDINGS, distances, group
from dp.serving.handle import Runner
from dp.ui.components.data_uri import png_uri

MAX_ROW_STEPS = 1600  # of the endings of one step: a run of 200 steps from its start
PATIENCE_S = 60  # with a branch, which shares the network with all other runs


def endings_sheet(runner: Runner, run: str, row: int, index: int) -> dict[str, Any]:
    """Return the `sheet` of the ENDINGS of image `row` of a run from step `index` on, in one line; the `groups` of
    those that are about the same image, one number per ending; and their mean `distance` (RMS, white is 1). The branch
    is not kept. Raises ValueError where it cannot be made, or takes too long.
    """
    handle = runner.find(run)
    steps_left = len(handle.trajectory.log_snr) - index + 1 if handle else 0
    if steps_left * ENDINGS > MAX_ROW_STEPS:
        last = MAX_ROW_STEPS // ENDINGS
        raise ValueError(f"{ENDINGS} times {steps_left} steps would take too long: choose one of the last {last} steps")
    branch = runner.branch_off(run, row, index)
    try:
        if not branch.wait(PATIENCE_S):
            raise ValueError("the server is busy: choose a later step, or try again in a moment")
        if branch.state != "done":
            raise ValueError(branch.error or "the endings were stopped")
        images = branch.frame.x0
    finally:
        branch.discard()
    between = distances(to_float(torch.from_numpy(images)))
    distance = between.sum().item() / (ENDINGS * (ENDINGS - 1))  # without those to themselves, which are 0
    return {"sheet": png_uri(make_grid(images, ENDINGS)), "groups": group(between), "distance": distance}
