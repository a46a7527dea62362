"""How far a set of images lies from another set: two distances that need no network from elsewhere.

Sliced Wasserstein distance of patches from Laplacian pyramids: Karras et al. 2018, arXiv 1710.10196, sec. 5 and
appendix B. Fréchet distance as in FID (Heusel et al. 2017, arXiv 1706.08500, eq. 6), but in the features of a small
convolutional network with fixed random weights.

What they tell: how alike the statistics of two sets are, of patches (SWD) and of whole pictures (Fréchet), on one scale
for all who are measured against the same reference. What they cannot tell: whether a picture makes sense, or is new. A
model that copies its training pictures scores best; SWD's finest level punishes a faint haze on flat areas that an eye
hardly sees, and forgives two faces melted into one. Random features are blind to meaning. So look at the sheets, too.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

PATCH, PROJECTIONS = 7, 512  # Karras et al. 2018: pixels on a side of a patch, random directions
PATCHES = 32_768  # of each set, however many images it has
COARSEST = 16  # pixels on a side of the last level of the pyramid


class Scores(NamedTuple):
    swd: float
    frechet: float


class HeldOut:
    """What was held out from training on pictures [N,C,H,W] in [0, 1] and their mirror images, `images` [16 N,C,H,W]:
    both, shifted by a pixel in eight directions.
    """

    def __init__(self, pictures: Tensor):
        both = torch.cat([pictures, pictures.flip(-1)])
        padded = F.pad(both, (1, 1, 1, 1), mode="replicate")
        h, w = both.shape[-2:]
        shifts = [(y, x) for y in range(3) for x in range(3) if (y, x) != (1, 1)]
        self.images = torch.cat([padded[..., y : y + h, x : x + w] for y, x in shifts])
        self._projections = projections(self.images)
        self._features = features(self.images)

    def score(self, images: Tensor) -> Scores:
        """How far images [B,C,H,W] in [0, 1] lie from these: sliced Wasserstein distance times 1000, the mean over the
        levels of the pyramid, and Fréchet distance.
        """
        pairs = zip(projections(images), self._projections, strict=True)
        distances = [(a - b).abs().mean().item() for a, b in pairs]
        return Scores(1000 * sum(distances) / len(distances), frechet(features(images), self._features))


def projections(images: Tensor) -> list[Tensor]:
    """For each level of the pyramid its patches along each direction, in order, [PATCHES,PROJECTIONS]."""
    result = []
    for i, level in enumerate(laplacian_pyramid(images)):
        flat = patches(level, torch.Generator().manual_seed(i))
        directions = torch.randn(flat.shape[1], PROJECTIONS, generator=torch.Generator().manual_seed(1000 + i))
        result.append((flat @ F.normalize(directions, dim=0)).sort(dim=0).values)
    return result


def laplacian_pyramid(x: Tensor) -> list[Tensor]:
    """Each level holds what the next coarser one, enlarged again, has lost; the last is the coarsest picture itself."""
    levels = []
    while x.shape[-1] // 2 >= COARSEST:
        coarse = F.interpolate(x, scale_factor=0.5, mode="bilinear", antialias=True)
        levels.append(x - F.interpolate(coarse, scale_factor=2, mode="bilinear"))
        x = coarse
    return [*levels, x]


def patches(x: Tensor, random: torch.Generator) -> Tensor:
    """Patches from anywhere in x [N,C,H,W], as many from each image; channel by channel with mean 0 and deviation 1
    over all of them, flat.
    """
    image = torch.arange(PATCHES) * len(x) // PATCHES
    top, left = (torch.randint(side - PATCH + 1, (PATCHES,), generator=random) for side in x.shape[-2:])
    rows, columns = (start[:, None] + torch.arange(PATCH) for start in (top, left))
    picked = x.permute(0, 2, 3, 1)[image[:, None, None], rows[:, :, None], columns[:, None, :]]  # [P,7,7,C]
    return ((picked - picked.mean((0, 1, 2))) / picked.std((0, 1, 2)).clamp(min=1e-6)).flatten(1)


def frechet(x: Tensor, y: Tensor) -> float:
    """Between features [N,D] and those of a reference [M,D]; each is divided by its deviation over the reference, so
    that none rules the others.
    """
    deviation = y.std(0).clamp(min=1e-9)
    x, y = x / deviation, y / deviation
    mean = (x.mean(0) - y.mean(0)).square().sum()
    cov_x, cov_y = x.T.cov(), y.T.cov()
    root_y = matrix_sqrt(cov_y)
    # tr sqrt(cov_x cov_y), through a symmetric product with the same eigenvalues
    cross = torch.linalg.eigvalsh(root_y @ cov_x @ root_y).clamp(min=0).sqrt().sum()
    return (mean + cov_x.trace() + cov_y.trace() - 2 * cross).item()


def matrix_sqrt(symmetric: Tensor) -> Tensor:
    values, vectors = torch.linalg.eigh(symmetric)
    return vectors * values.clamp(min=0).sqrt() @ vectors.T


@torch.no_grad()
def features(images: Tensor) -> Tensor:
    """Of a network of four convolutions with fixed random weights, its last layer averaged over the quarters of the
    picture: [N,128] in float64.
    """
    random = torch.Generator().manual_seed(0)
    x = images * 2 - 1
    for width in (32, 64, 64, 32):
        weight = torch.randn(width, x.shape[1], 3, 3, generator=random) * math.sqrt(2 / (9 * x.shape[1]))
        x = F.leaky_relu(F.conv2d(F.pad(x, (1, 1, 1, 1), mode="replicate"), weight), 0.2)
        x = F.avg_pool2d(x, 2) if x.shape[-1] > 4 else x  # not strides: a shift by a pixel is to change little
    return F.adaptive_avg_pool2d(x, 2).flatten(1).double()
