"""Two distances between sets of images that need no pretrained network.

Sliced Wasserstein distance of patches from Laplacian pyramids: Karras et al. 2018, arXiv 1710.10196, sec. 5 and
appendix B. Fréchet distance as in FID (Heusel et al. 2017, arXiv 1706.08500, eq. 6), but in the features of a small
convolutional network with fixed random weights.

The scores measure how similar the statistics of two sets are, of patches (SWD) and of whole images (Fréchet). They are
comparable if they use the same reference. They do not measure whether an image makes sense or is new: a model that
copies its training images scores best. SWD's finest level penalizes a faint, hardly visible haze on flat areas, but not
two faces merged into one, and random features do not capture meaning. Look at the sample sheets as well.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

PATCH, PROJECTIONS = 7, 512  # Karras et al. 2018: side of a patch in pixels, number of random directions
PATCHES = 32_768  # per set, for any number of images
COARSEST = 16  # minimum side of the last level of the pyramid in pixels


class Scores(NamedTuple):
    swd: float
    frechet: float


def flips_and_shifts(originals: Tensor) -> Tensor:
    """Return a reference set for a model trained on all images that there are, `originals` [N,C,H,W], and their mirror
    images: these, shifted by one pixel in each of the eight directions, [16 N,C,H,W].
    """
    mirrored = torch.cat([originals, originals.flip(-1)])
    padded = F.pad(mirrored, (1, 1, 1, 1), mode="replicate")
    h, w = mirrored.shape[-2:]
    shifts = [(y, x) for y in range(3) for x in range(3) if (y, x) != (1, 1)]
    return torch.cat([padded[..., y : y + h, x : x + w] for y, x in shifts])


class HeldOut:
    """The reference set: `images` [N,C,H,W] in [0, 1] that the model was not trained on."""

    def __init__(self, images: Tensor):
        self._projections, self._features = projections(images), features(images)

    def score(self, images: Tensor) -> Scores:
        """Return the distances of images [B,C,H,W] in [0, 1] from the reference set: 1000 times the sliced Wasserstein
        distance, averaged over the levels of the pyramid, and the Fréchet distance.
        """
        pairs = zip(projections(images), self._projections, strict=True)
        distances = [(a - b).abs().mean().item() for a, b in pairs]
        return Scores(1000 * sum(distances) / len(distances), frechet(features(images), self._features))


def projections(images: Tensor) -> list[Tensor]:
    """Return, for each level of the pyramid, its patches projected on each direction, sorted, [PATCHES,PROJECTIONS]."""
    result = []
    for i, level in enumerate(laplacian_pyramid(images)):
        flat = patches(level, torch.Generator().manual_seed(i))
        directions = torch.randn(flat.shape[1], PROJECTIONS, generator=torch.Generator().manual_seed(1000 + i))
        result.append((flat @ F.normalize(directions, dim=0)).sort(dim=0).values)
    return result


def laplacian_pyramid(x: Tensor) -> list[Tensor]:
    """Return the levels, finest first: differences from the upsampled next coarser image, then the coarsest image."""
    levels = []
    while x.shape[-1] // 2 >= COARSEST:
        coarse = F.interpolate(x, scale_factor=0.5, mode="bilinear", antialias=True)
        levels.append(x - F.interpolate(coarse, scale_factor=2, mode="bilinear"))
        x = coarse
    return [*levels, x]


def patches(x: Tensor, random: torch.Generator) -> Tensor:
    """Return flat patches [PATCHES,C*PATCH*PATCH] from random positions in x [N,C,H,W], equally many from each image.
    Each channel is normalized to mean 0 and standard deviation 1 over all patches.
    """
    image = torch.arange(PATCHES) * len(x) // PATCHES
    top, left = (torch.randint(side - PATCH + 1, (PATCHES,), generator=random) for side in x.shape[-2:])
    rows, columns = (start[:, None] + torch.arange(PATCH) for start in (top, left))
    picked = x.permute(0, 2, 3, 1)[image[:, None, None], rows[:, :, None], columns[:, None, :]]  # [P,7,7,C]
    return ((picked - picked.mean((0, 1, 2))) / picked.std((0, 1, 2)).clamp(min=1e-6)).flatten(1)


def frechet(x: Tensor, y: Tensor) -> float:
    """Return the Fréchet distance between features x [N,D] and those of a reference, y [M,D]. Each feature is first
    divided by its standard deviation over the reference, so that no feature dominates.
    """
    std = y.std(0).clamp(min=1e-9)
    x, y = x / std, y / std
    mean = (x.mean(0) - y.mean(0)).square().sum()
    cov_x, cov_y = x.T.cov(), y.T.cov()
    root_y = matrix_sqrt(cov_y)
    # tr sqrt(cov_x cov_y), computed from a symmetric product with the same eigenvalues
    cross = torch.linalg.eigvalsh(root_y @ cov_x @ root_y).clamp(min=0).sqrt().sum()
    return (mean + cov_x.trace() + cov_y.trace() - 2 * cross).item()


def matrix_sqrt(symmetric: Tensor) -> Tensor:
    values, vectors = torch.linalg.eigh(symmetric)
    return vectors * values.clamp(min=0).sqrt() @ vectors.T


@torch.no_grad()
def features(images: Tensor) -> Tensor:
    """Return features [N,128] in float64: the last layer of a network of four convolutions with fixed random weights,
    averaged over each quadrant of the image.
    """
    random = torch.Generator().manual_seed(0)
    x = images * 2 - 1
    for width in (32, 64, 64, 32):
        weight = torch.randn(width, x.shape[1], 3, 3, generator=random) * math.sqrt(2 / (9 * x.shape[1]))
        x = F.leaky_relu(F.conv2d(F.pad(x, (1, 1, 1, 1), mode="replicate"), weight), 0.2)
        x = F.avg_pool2d(x, 2) if x.shape[-1] > 4 else x  # not strides: a shift by one pixel should change little
    return F.adaptive_avg_pool2d(x, 2).flatten(1).double()
