"""A map of a model's images: their two main axes, on which the predictions of a run can be followed.

The axes are those of a principal component analysis of the model's images, or of a sample of them: the directions in
which the images differ most. A run's first predictions are near the middle, the mean of everything; each then moves
toward the images that it resembles.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import lru_cache
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from dp.checkpoints.catalog import CheckpointInfo, inspect_folder
from dp.serving.exact_models import Stamp, files_of, stamp_of, training_set
from dp.serving.frames import Frame
from dp.system.validation import quote

MOST_IMAGES = 512  # that the axes are computed from, evenly chosen
SIDE = 32  # of the images that are compared: larger ones are averaged to it
LANDMARKS = 48  # images that are shown on the map


class ImageMap(NamedTuple):
    """mean [D] and axes [2,D]: of images with D numbers from 0 to 1. shares: of the images' variance along each axis.
    places: of the images [N,2], in root mean square units with black to white as 1. labels: their classes, 0 for none.
    landmarks: indices of images that are spread over the map. images: those, uint8 [n,H,W,C].
    """

    mean: Tensor
    axes: Tensor
    shares: list[float]
    places: Tensor
    labels: list[int]
    landmarks: list[int]
    images: np.ndarray

    def locate(self, images: np.ndarray) -> Tensor:
        """Return the places [..., 2] of images uint8 [...,H,W,C]."""
        flat = to_vectors(images.reshape(-1, *images.shape[-3:])) - self.mean
        return (flat @ self.axes.T / self.mean.numel() ** 0.5).view(*images.shape[:-3], 2)


def map_of(entry: CheckpointInfo) -> ImageMap:
    """Return the map of a checkpoint's images, computed once. Raises ValueError, with the reason, if there are none."""
    return _map_of(entry.path, entry.run, entry.hub, stamp_of(files_of(entry)))


@lru_cache(maxsize=8)
def _map_of(path: Path, run: str | None, hub: str | None, stamp: Stamp) -> ImageMap:
    entry = inspect_folder(path)
    if entry is None or entry.problem:  # deleted or damaged a moment ago
        raise ValueError(f"the checkpoint in {quote(str(path))} cannot be read")
    images, labels, _ = training_set(replace(entry, run=run, hub=hub), MOST_IMAGES)
    vectors = to_vectors(images)
    mean = vectors.mean(dim=0)
    axes, shares = main_axes(vectors - mean)
    places = (vectors - mean) @ axes.T / mean.numel() ** 0.5
    spread = spread_out(places, LANDMARKS)
    return ImageMap(mean, axes, shares, places, labels, spread, images[spread])


def main_axes(centered: Tensor) -> tuple[Tensor, list[float]]:
    """Return the two main axes [2,D] of vectors [N,D] with mean 0, and the share of their variance along each; zeros
    for an axis along which they do not differ. There are fewer vectors than dimensions, so the smaller problem is that
    of their inner products.
    """
    x = centered.double()
    variances, combinations = torch.linalg.eigh(x @ x.T)  # in rising order
    variances = variances.clamp(min=0)
    axes = nn.functional.normalize((combinations.flip(1)[:, :2].T @ x), dim=1)
    shares = (variances.flip(0)[:2] / variances.sum().clamp(min=1e-12)).tolist()
    missing = 2 - len(axes)
    is_real = torch.tensor([share > 1e-9 for share in shares])[:, None]
    return nn.functional.pad(axes * is_real, (0, 0, 0, missing)).float(), shares + [0.0] * missing


def to_vectors(images: np.ndarray) -> Tensor:
    """Return images uint8 [N,H,W,C] as [N,D] from 0 to 1, averaged to SIDE pixels where they are larger."""
    x = torch.from_numpy(np.ascontiguousarray(images)).permute(0, 3, 1, 2).float() / 255
    return nn.functional.adaptive_avg_pool2d(x, min(SIDE, x.shape[-1])).flatten(1)


def spread_out(places: Tensor, most: int) -> list[int]:
    """Return the indices of up to `most` places [N,2] far from each other: each is the farthest from those before."""
    chosen = [int(places.square().sum(dim=1).argmin())]
    far = torch.full((len(places),), torch.inf)
    while len(chosen) < min(most, len(places)):
        far = torch.minimum(far, (places - places[chosen[-1]]).square().sum(dim=1))
        chosen.append(int(far.argmax()))
    return chosen


def paths_of(found: ImageMap, frames: Sequence[Frame]) -> Tensor:
    """Return the places [K,B,2] of the predictions in each frame."""
    return torch.stack([found.locate(frame.x0) for frame in frames])
