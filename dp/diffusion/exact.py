"""The exact denoiser: the best possible network for a finite set of images, in closed form.

Given x_t = alpha x0 + sigma eps, where x0 is one of the images x_i, each as likely as the others, the posterior weight
of an image and the mean of x0, which no network can improve on, are

    w_i = softmax_i(-|x_t - alpha x_i|² / (2 sigma²)),   x0 = sum_i w_i x_i

Source: Karras et al. 2022, arXiv 2206.00364, appendix B.3. A policy around it shows what a trained network has learned
beyond copying its training images, or got wrong:

    denoiser = ExactDenoiser(images, noise_schedule="sigmoid")
    policy = DiffusionPolicy(denoiser, objective="x0", noise_schedule="sigmoid")
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from dp.diffusion.schedules import level, make_schedule
from dp.system.validation import quote

CHUNK = 1 << 22  # numbers of the images that are held in float64 at a time


class ExactDenoiser(nn.Module):
    """The best network for `images` [N,C,H,W], or sequences [N,C,L], in [0, 1], with the contract of
    `dp.diffusion.policy` and objective 'x0'.

    labels: the class of each image [N], from 1, or 0 for none. mirrored: whether the set also holds the mirror image of
    each, as with random flips in training; not for sequences. noise_schedule, schedule_kwargs: those of its policy, see
    `make_schedule`.
    It has no parameters and no latents, and ignores x_self_cond. Everything is computed in float64, on the CPU where
    the device has none. Raises ValueError, with the value, for images or labels that do not fit.
    """

    def __init__(
        self,
        images: Tensor,
        *,
        labels: Sequence[int] | Tensor | None = None,
        mirrored: bool = False,
        noise_schedule: str = "sigmoid",
        schedule_kwargs: Mapping[str, Any] | None = None,
    ):
        super().__init__()
        check_images(images)
        if mirrored and images.ndim == 3:
            raise ValueError("mirrored = True is for images: the mirror image of a sequence would run backward")
        labels = torch.zeros(len(images)) if labels is None else torch.as_tensor(labels)
        if labels.shape != (len(images),) or (labels != labels.long()).any() or (labels < 0).any():
            raise ValueError(f"labels must be {len(images)} whole numbers from 0, one per image, got {quote(labels)}")
        self.sample_shape = tuple(images.shape[1:])
        self.num_classes = int(labels.max())
        self.mirrored = mirrored
        schedule = make_schedule(noise_schedule, schedule_kwargs)
        self.requires = {"objective": "x0", "scale": 1.0, "schedule": schedule}  # which DiffusionPolicy checks
        self.schedule = schedule
        self.register_buffer("images", images.flatten(1) * 2 - 1, persistent=False)  # [N,CHW]
        self.register_buffer("labels", labels.long(), persistent=False)
        self.register_buffer("first_equal", first_equal(images, mirrored), persistent=False)

    @torch.no_grad()
    def forward(
        self,
        x: Tensor,
        time: Tensor,
        x_self_cond: Tensor | None = None,
        latents: Tensor | None = None,
        condition: Tensor | None = None,
        return_latents: bool = False,
    ):
        """Return the posterior mean of x0, in [-1, 1], in the dtype of x; with `return_latents` also no
        latents, [B,0,1].
        """
        weights = self._weights(x, time, condition)  # [V,B,N]
        means = x.new_zeros(len(weights), len(x), self.images.shape[1], dtype=torch.float64, device=weights.device)
        for chunk, at in self._chunks():
            means += weights[..., at] @ chunk
        means = means.view(-1, *x.shape)
        x0 = (means[0] + means[1].flip(-1) if self.mirrored else means[0]).to(x)
        return (x0, x.new_zeros(len(x), 0, 1)) if return_latents else x0

    @torch.no_grad()
    def posterior(self, x_t: Tensor, time: Tensor, condition: Tensor | None = None) -> Tensor:
        """Return the weight of each image [B,N], float64 on the CPU, at training time `time` [B] in [0, 1]. The weights
        of an image and of its mirror image are added, and those of equal images stand at the first of them, so that
        `effective_count` counts different images. Condition k [B] leaves the images of class k, and 0 all. Raises
        ValueError for a class without images.
        """
        weights = self._weights(x_t, time, condition).sum(dim=0).cpu()
        return torch.zeros_like(weights).index_add(1, self.first_equal.cpu(), weights)

    def _weights(self, x: Tensor, time: Tensor, condition: Tensor | None) -> Tensor:
        """Return the weights [V,B,N] in float64: V is 2 with mirror images, which are the second half, else 1."""
        device = self._device()
        at = level(self.schedule, time)
        alpha, variance = (values.to(device)[:, None] for values in (at.alpha, at.sigma.square()))
        versions = torch.stack([x, x.flip(-1)] if self.mirrored else [x]).to(device, torch.float64).flatten(2)
        # The exponents without sigma and |x|², which is the same for all images. Mirroring x is like mirroring x_i.
        parts = [alpha * (versions @ chunk.T) - alpha**2 * chunk.square().sum(1) / 2 for chunk, _ in self._chunks()]
        closeness = torch.cat(parts, dim=-1).masked_fill(~self._is_candidate(condition, len(x)).to(device), -torch.inf)
        flat = closeness.transpose(0, 1).flatten(1)  # [B,VN]
        flat = flat - flat.amax(dim=1, keepdim=True)
        nearest = nn.functional.one_hot(flat.argmax(dim=1), flat.shape[1]).double()
        weights = torch.where(
            variance > 0, (flat / variance.clamp(min=torch.finfo(flat.dtype).tiny)).softmax(1), nearest
        )
        return weights.view(len(x), len(versions), -1).transpose(0, 1)

    def _is_candidate(self, condition: Tensor | None, count: int) -> Tensor:
        """Return which images [B or 1,N] have the class of each row."""
        if condition is None:
            return torch.ones(1, len(self.labels), dtype=torch.bool)
        condition, labels = condition.cpu()[:, None], self.labels.cpu()
        chosen = (condition == 0) | (condition == labels)
        if not chosen.any(dim=1).all():
            missing = int(condition[~chosen.any(dim=1)][0])
            raise ValueError(f"there is no image of class {missing}: the classes are 1 to {self.num_classes}")
        return chosen

    def _chunks(self) -> Iterator[tuple[Tensor, slice]]:
        """Yield the images [n,CHW] in float64 and their place, a few at a time."""
        size = max(CHUNK // self.images.shape[1], 1)
        for start in range(0, len(self.images), size):
            at = slice(start, start + size)
            yield self.images[at].to(self._device(), torch.float64), at

    def _device(self) -> torch.device:
        """Return the device of the images, or the CPU where theirs has no float64."""
        device = self.images.device
        return torch.device("cpu") if device.type == "mps" else device


def effective_count(weights: Tensor) -> Tensor:
    """Return how many images are still possible, [B]: the exponential of the entropy of the weights [B,N]."""
    return torch.special.entr(weights).sum(dim=1).exp()


def check_images(images: Tensor) -> None:
    is_batch = images.ndim == 3 or (images.ndim == 4 and images.shape[-1] == images.shape[-2])
    if not is_batch or not images.numel() or not images.is_floating_point():
        kind = f"{images.dtype} of shape {tuple(images.shape)}"
        raise ValueError(f"images must be floats [N,C,H,W], or [N,C,L], with at least one square image, got {kind}")
    low, high = images.aminmax()
    if not (low >= 0 and high <= 1):
        raise ValueError(f"images must lie in [0, 1], got {low:g} to {high:g}")


def first_equal(images: Tensor, mirrored: bool) -> Tensor:
    """Return for each image [N] the first that is equal to it or, with `mirrored`, to its mirror image."""
    known: dict[bytes, int] = {}
    found = []
    for i, image in enumerate(images.cpu()):
        versions = [image.numpy().tobytes(), image.flip(-1).numpy().tobytes()][: 1 + mirrored]
        found.append(min((known[version] for version in versions if version in known), default=i))
        known.setdefault(versions[0], found[-1])
    return torch.tensor(found)
