"""Classifier-free guidance: a step away from the unconditional prediction. Ho & Salimans 2022, arXiv 2207.12598.

A guided image has two branches, with its class and without; a guided sequence, with its observation and without. They
are two rows of the same network call, each with its own latents, and their predictions are combined before they become
x0,

    prediction = unconditional + guidance * (conditional - unconditional)

so that both branches go on from the same, guided x0. At guidance 1 the conditional branch runs alone, and at 0 the
unconditional one. Guidance may be limited to an interval of times: Kynkäänniemi et al. 2024, arXiv 2404.07724.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from dp.diffusion.conditions import is_given
from dp.diffusion.samplers import expand_rows


def needs_both(condition: Tensor, guidance: Tensor | float) -> Tensor:
    """Return whether each image runs both branches, [B] bool, given its condition, [B] or [B,O,F], and its guidance."""
    guidance = torch.as_tensor(guidance)
    return is_given(condition) & (guidance != 0) & (guidance != 1)


@dataclass(frozen=True)
class Branches:
    """The rows of a network call for B images: their first branches in order, then the second, unconditional ones.

    images: the image of each row, [R] int64. is_unconditional: [R] bool. guidance: that of each image, [B] float64. All
    are on the CPU.
    """

    images: Tensor
    is_unconditional: Tensor
    guidance: Tensor

    @classmethod
    def of(cls, condition: Tensor, guidance: Tensor) -> Branches:
        second = needs_both(condition, guidance).nonzero().squeeze(1)
        images = torch.cat([torch.arange(len(condition)), second])
        return cls(images, torch.cat([guidance == 0, torch.ones(len(second), dtype=torch.bool)]), guidance)

    def rows(self, values: Tensor) -> Tensor:
        """Return values [B,...] of the images as those of the rows [R,...]."""
        return values if len(self.images) == len(values) else values[self.images.to(values.device)]

    def latents(self, conditional: Tensor, unconditional: Tensor) -> Tensor:
        """Return the latents [R,N,D] with which each row begins, from those of both branches [B,N,D]."""
        return torch.where(self._mask(conditional), self.rows(unconditional), self.rows(conditional))

    def combine(self, predictions: Tensor) -> Tensor:
        """Return the guided predictions [B,C,H,W] of the rows' [R,C,H,W]; likewise for sequences."""
        count = len(self.guidance)
        guided, second = self.images[count:], predictions[count:]
        if not len(guided):
            return predictions
        (weight,) = expand_rows(second, self.guidance[guided])
        guided = guided.to(second.device)
        return predictions[:count].index_copy(0, guided, second + weight * (predictions[guided] - second))

    def split_latents(self, latents: Tensor) -> tuple[Tensor, Tensor]:
        """Return the conditional and the unconditional branch's latents [B,N,D] of the rows' [R,N,D]: zeros for a
        branch that did not run.
        """
        count = len(self.guidance)
        first, is_unconditional = latents[:count], self._mask(latents)[:count]
        unconditional = torch.where(is_unconditional, first, 0).index_copy(
            0, self.images[count:].to(latents.device), latents[count:]
        )
        return torch.where(is_unconditional, 0, first), unconditional

    def _mask(self, like: Tensor) -> Tensor:
        return self.is_unconditional.to(like.device)[:, None, None]
