"""The exact denoiser of a folder of pictures, and what it teaches: how much of a run's error is the time grid's own,
and at which noise levels a trained model errs.

For a finite set the best x0 is known: the mean of its pictures, each weighted by how likely it is to have become x_t
(Karras et al. 2022, arXiv 2206.00364, appendix B.3). No training can do better on the set itself, so what the scores of
its samples lack is due to the sampler and the grid alone.

    python benchmarks/exact.py pictures/faces --checkpoint faces-32
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import torch
from measure import print_table
from scores import HeldOut
from torch import Tensor, nn

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))  # so that it runs from a clone without installing

from dp import DiffusionPolicy, ImageDataset
from dp.diffusion.schedules import Schedule, level, make_schedule

SAMPLERS = ("ddim", "dpmpp_2m", "ddpm")
GRIDS = [("linear", {}), ("cosine", {}), ("sigmoid", {})]
GRIDS += [("sigmoid", {"start": -3.0, "end": end}) for end in (5.0, 6.0, 7.0, 8.0)]
GRIDS += [("sigmoid", {"start": -8.0, "end": 8.0})]  # almost uniform in log-SNR
TIMES = (1.0, 0.98, 0.95, 0.9, 0.85, 0.8, 0.7, 0.6, 0.5, 0.4, 0.2)


class ExactDenoiser(nn.Module):
    """The network of a DiffusionPolicy with objective 'x0' and that schedule; pictures [N,C,H,W] in [0, 1]."""

    def __init__(self, pictures: Tensor, schedule: Schedule):
        super().__init__()
        self.channels, self.image_size, self.schedule = pictures.shape[1], pictures.shape[-1], schedule
        self.pictures = pictures.flatten(1) * 2 - 1

    def forward(self, x: Tensor, time: Tensor, x_self_cond=None, latents=None, return_latents: bool = False):
        at = level(self.schedule, time)
        alpha, sigma2 = (v.to(x.dtype)[:, None] for v in (at.alpha, (at.sigma**2).clamp(min=1e-9)))
        likely = alpha * (x.flatten(1) @ self.pictures.T) - alpha**2 * self.pictures.square().sum(1) / 2
        x0 = ((likely / sigma2).softmax(dim=1) @ self.pictures).view_as(x)
        return (x0, x.new_zeros(len(x), 0, 1)) if return_latents else x0


def exact_policy(pictures: Tensor, schedule: Schedule, name: str, kwargs: dict) -> DiffusionPolicy:
    denoiser = ExactDenoiser(pictures, schedule)
    return DiffusionPolicy(denoiser, objective="x0", noise_schedule=name, schedule_kwargs=kwargs)


def grids(pictures: Tensor, held_out: HeldOut, calls: list[int], samples: int) -> None:
    """SWD / Fréchet of the exact denoiser's samples by time grid, sampler and number of network calls."""

    def score(name: str, kwargs: dict, sampler: str, timesteps: int) -> str:
        policy = exact_policy(pictures, make_schedule(name, kwargs), name, kwargs)
        images = [policy.sample(64, timesteps=timesteps, sampler=sampler, seed=i) for i in range(0, samples, 64)]
        return "{:.1f} / {:.1f}".format(*held_out.score(torch.cat(images)))

    print(f"The exact denoiser, {samples} samples: sliced Wasserstein / Fréchet\n")
    print(f"DDPM in 1,000 calls, sigmoid: {score('sigmoid', {}, 'ddpm', 1000)}\n")
    rows = []
    for name, kwargs in GRIDS:
        grid = name + (" {start:g} to {end:g}".format(**kwargs) if kwargs else "")
        rows.append((grid, *(score(name, kwargs, sampler, n) for sampler in SAMPLERS for n in calls)))
    print_table(("time grid", *(f"{sampler} {n}" for sampler in SAMPLERS for n in calls)), rows)


@torch.no_grad()
def levels(pictures: Tensor, policy: DiffusionPolicy) -> None:
    """Mean squares by noise level, in [-1, 1]: what is left to know (the exact denoiser's error), how far the model's
    x0 lies from the exact one, and how much there is to say (the exact one's distance from the mean picture).
    """
    exact, x0, random = ExactDenoiser(pictures, policy.schedule), pictures * 2 - 1, torch.Generator().manual_seed(0)
    rows = []
    for time in TIMES:
        t = torch.full((len(x0),), time, dtype=torch.float64)
        at = level(policy.schedule, t)
        alpha, sigma = (v.float()[:, None, None, None] for v in (at.alpha, at.sigma))
        x_t = alpha * x0 + sigma * torch.randn(x0.shape, generator=random)
        best = exact(x_t, t)
        alone, carry = policy.denoise(x_t, t, None)
        again, _ = policy.denoise(x_t, t, carry)
        errors = ((a - b).square().mean().item() for a, b in ((best, x0), (alone, best), (again, best)))
        said = (best - x0.mean(0)).square().mean().item()
        rows.append((f"{time:g}", f"{at.gamma[0]:.4f}", *(f"{value:.4f}" for value in (*errors, said))))
    print("\nHow far the model's x0 lies from the exact one, by noise level, first alone and then self-conditioned:\n")
    print_table(("t", "gamma", "left to know", "alone", "self-conditioned", "to say"), rows)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--calls", type=int, nargs="+", default=[10, 20])
    parser.add_argument("--samples", type=int, default=512)
    parser.add_argument("--image-size", type=int, default=32)
    parser.add_argument("--checkpoint", help="a bundled model that was trained on these pictures")
    args = parser.parse_args()

    dataset = ImageDataset(args.folder, args.image_size)
    pictures = torch.stack([dataset[i] for i in range(len(dataset))])
    held_out, both = HeldOut(pictures), torch.cat([pictures, pictures.flip(-1)])
    grids(both, held_out, args.calls, args.samples)
    if args.checkpoint:
        levels(both, DiffusionPolicy.from_pretrained(ROOT / "checkpoints" / args.checkpoint).eval())


if __name__ == "__main__":
    main()
