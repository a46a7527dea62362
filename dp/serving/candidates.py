"""Compare a run with the training images: the candidates that are still possible at each step, and the best prediction
that anyone who knows them could make. The images are made again from their seeds, in the caller's thread.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from dp.data.codec import to_uint8
from dp.diffusion.candidates import find_candidates, nearest_images
from dp.diffusion.exact import ExactDenoiser, effective_count
from dp.diffusion.replay import state_at_step
from dp.diffusion.state import apply_known
from dp.serving.engine import Engine
from dp.serving.frames import Frame

MOST_CANDIDATES = 8  # of one image at one step
MOST_ROW_STEPS = 1_600  # of all images of a run; with more, only one image at a time
MOST_WORK = 2e10  # row-steps times the numbers in the training set, a few seconds
DECIDED = 2.0  # with fewer candidates, an image is decided
SETTLED = 0.25  # of the way from the first prediction to the last that is still to go
COARSE = 4  # squares along each side of the coarse image


class RunCandidates(NamedTuple):
    """The candidates of B images at K steps; `steps` are their numbers, from 1. counts: the effective number of
    possible training images [K,B]. likeliest: places of the M likeliest in `images`, and their weights, [K,B,M] each.
    decided: the step from which fewer than DECIDED are possible, for each image, or None. settled: the steps from which
    the coarse image and its details stay close to the result, for each image. nearest, distances: the place of the
    training image nearest to each result, and its root mean square distance. images: the training images that occur,
    uint8 [n,H,W,C]. total: how many different images the training set has.
    """

    steps: list[int]
    counts: np.ndarray
    likeliest: np.ndarray
    weights: np.ndarray
    decided: list[int | None]
    settled: list[tuple[int, int]]
    nearest: np.ndarray
    distances: np.ndarray
    images: np.ndarray
    total: int


class BestPrediction(NamedTuple):
    """both: the predictions [2,C,H,W] in [-1, 1] of a run's model and of the exact denoiser, for the same noisy image.
    difference: its root mean square, with black to white as 1. possible: the effective number of training images that
    are possible, of `total` different ones.
    """

    both: Tensor
    difference: float
    possible: float
    total: int


def run_candidates(engine: Engine, request_id: str, row: int | None = None) -> RunCandidates:
    """Return the candidates of image `row` of a run that can still be found, or of all its images, at the steps that
    its trajectory has kept. Raises ValueError where that cannot be done, or would take long.
    """
    request, model = engine.replayable(request_id)
    denoiser = engine.exact_denoiser(request.checkpoint)
    frames = list(request.handle.trajectory.frames)
    rows = request.settings.batch_size if row is None else 1
    row_steps = rows * request.settings.timesteps
    numbers = denoiser.images.numel()
    if row is None and (row_steps > MOST_ROW_STEPS or row_steps * numbers > MOST_WORK):
        raise ValueError("this run is too large for all of its images at once: click one of them")
    policy = model.policy_of(request.backend)
    kept = evenly_few([frame.index for frame in frames], max(int(MOST_WORK / 10 / numbers), 2))
    if row is None:
        whole = policy.init_state(request.settings, request.start, request.mask)
    else:
        whole = state_at_step(policy, request.settings, row, 1, request.start, request.mask)
    parts = [find_candidates(policy, denoiser, part, kept, MOST_CANDIDATES) for part in whole.split(engine.row_budget)]
    counts, likeliest, weights = (torch.cat([part[i] for part in parts], dim=1).cpu().numpy() for i in (1, 2, 3))
    nearest, distances = nearest_images(denoiser, torch.cat([part.x0 for part in parts]))
    used, places = np.unique(np.concatenate([likeliest.ravel(), nearest.numpy()]), return_inverse=True)
    steps = parts[0].steps
    images = denoiser.images[torch.from_numpy(used)].view(-1, *denoiser.sample_shape)
    return RunCandidates(
        steps,
        counts,
        places[: likeliest.size].reshape(likeliest.shape),
        weights,
        decided_at(steps, counts),
        [settled_at(frames, i) for i in (range(rows) if row is None else [row])],
        places[likeliest.size :],
        distances.numpy(),
        to_uint8((images + 1) / 2),
        count_different(denoiser),
    )


def best_prediction(engine: Engine, request_id: str, row: int, index: int) -> BestPrediction:
    """Return the best prediction for image `row` at step `index` of a run. Errors as in `run_candidates`."""
    policy, state = engine.replayed(request_id, row, index)
    denoiser = engine.exact_denoiser(engine.replayable(request_id)[0].checkpoint)
    time = state.plan.network_time[state.index].expand(1)
    guidance = torch.full((1,), state.step_guidance, dtype=torch.float64)
    with torch.no_grad():
        own, _ = policy.denoise(state.x_t, time, state.carry, state.condition, guidance)
        best = denoiser(state.x_t, time, condition=state.condition)
    both = torch.cat([apply_known([state], own), apply_known([state], best)])
    far = ((both[0] - both[1]) / 2).square().mean().sqrt().item()
    possible = effective_count(denoiser.posterior(state.x_t, time, state.condition)).item()
    return BestPrediction(both, far, possible, count_different(denoiser))


def count_different(denoiser: ExactDenoiser) -> int:
    return len(denoiser.first_equal.unique())


def evenly_few(steps: Sequence[int], most: int) -> list[int]:
    """Return `steps`, or `most` of them with both ends."""
    places = np.linspace(0, len(steps) - 1, min(len(steps), most)).round().astype(int)
    return [steps[place] for place in places]


def decided_at(steps: Sequence[int], counts: np.ndarray) -> list[int | None]:
    """Return for each image the step from which fewer than DECIDED candidates remain, to the end; None if never."""
    last = [int(np.flatnonzero(image >= DECIDED).max(initial=-1)) for image in counts.T]
    return [steps[k + 1] if k + 1 < len(steps) else None for k in last]


def settled_at(frames: Sequence[Frame], row: int) -> tuple[int, int]:
    """Return the steps from which the coarse image `row`, COARSE squares wide, and the details beyond it, have gone all
    but SETTLED of the way from the first prediction to the last.
    """
    x0 = torch.from_numpy(np.stack([frame.x0[row] for frame in frames])).permute(0, 3, 1, 2).float()  # [K,C,H,W]
    coarse = nn.functional.adaptive_avg_pool2d(x0, min(COARSE, x0.shape[-1]))
    details = x0 - nn.functional.interpolate(coarse, size=x0.shape[-2:])
    found = []
    for part in (coarse, details):
        far = (part - part[-1]).square().mean(dim=(1, 2, 3)).sqrt()  # [K]
        last = max((far > SETTLED * far[0]).nonzero().flatten().tolist(), default=-1)
        found.append(frames[last + 1].index)
    return found[0], found[1]
