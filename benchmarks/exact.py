"""Sample with the exact denoiser of a folder of images, to measure how much of the sampling error comes from the time
grid, and compare a trained model with it at each noise level.

For a finite dataset, the optimal x0 has a closed form: the mean of the images, each weighted by the likelihood that it
was noised to x_t (Karras et al. 2022, arXiv 2206.00364, appendix B.3). No model can have a lower loss on the dataset,
so the remaining error of the samples is due to the sampler and the time grid alone.

    python benchmarks/exact.py images/faces --checkpoint faces-32
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import torch
from measure import print_table
from scores import HeldOut, flips_and_shifts
from torch import Tensor

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))  # so that it runs from a clone without installing

from dp import DiffusionPolicy, ExactDenoiser, ImageDataset
from dp.diffusion.schedules import level

SAMPLERS = ("ddim", "dpmpp_2m", "ddpm")
GRIDS = [("linear", {}), ("cosine", {}), ("sigmoid", {})]
GRIDS += [("sigmoid", {"start": -3.0, "end": end}) for end in (5.0, 6.0, 7.0, 8.0)]
GRIDS += [("sigmoid", {"start": -8.0, "end": 8.0})]  # almost uniform in log-SNR
TIMES = (1.0, 0.98, 0.95, 0.9, 0.85, 0.8, 0.7, 0.6, 0.5, 0.4, 0.2)


def exact_policy(images: Tensor, name: str, kwargs: dict) -> DiffusionPolicy:
    denoiser = ExactDenoiser(images, noise_schedule=name, schedule_kwargs=kwargs)
    return DiffusionPolicy(denoiser, objective="x0", noise_schedule=name, schedule_kwargs=kwargs)


def print_grid_scores(originals: Tensor, held_out: HeldOut, steps: list[int], samples: int) -> None:
    """Print SWD / Fréchet of the exact denoiser's samples by time grid, sampler and number of steps."""

    def score(name: str, kwargs: dict, sampler: str, timesteps: int) -> str:
        policy = exact_policy(originals, name, kwargs)
        images = [policy.sample(64, timesteps=timesteps, sampler=sampler, seed=i) for i in range(0, samples, 64)]
        return "{:.1f} / {:.1f}".format(*held_out.score(torch.cat(images)))

    print(f"Exact denoiser, {samples} samples: sliced Wasserstein / Fréchet\n")
    print(f"DDPM in 1,000 steps, sigmoid: {score('sigmoid', {}, 'ddpm', 1000)}\n")
    rows = []
    for name, kwargs in GRIDS:
        grid = name + (" {start:g} to {end:g}".format(**kwargs) if kwargs else "")
        rows.append((grid, *(score(name, kwargs, sampler, n) for sampler in SAMPLERS for n in steps)))
    print_table(("time grid", *(f"{sampler} {n}" for sampler in SAMPLERS for n in steps)), rows)


@torch.no_grad()
def print_level_errors(originals: Tensor, policy: DiffusionPolicy) -> None:
    """Print mean squared differences by noise level, for images in [-1, 1]: the error of the exact denoiser (which no
    model can avoid), the difference between the model's x0 and the exact one, and that between the exact x0 and the
    mean image (the part that can be predicted).
    """
    own = {key: policy.config[key] for key in ("noise_schedule", "schedule_kwargs")}
    exact, x0, random = ExactDenoiser(originals, **own), originals * 2 - 1, torch.Generator().manual_seed(0)
    rows = []
    for time in TIMES:
        t = torch.full((len(x0),), time, dtype=torch.float64)
        at = level(policy.schedule, t)
        alpha, sigma = (v.float()[:, None, None, None] for v in (at.alpha, at.sigma))
        x_t = alpha * x0 + sigma * torch.randn(x0.shape, generator=random)
        best = exact(x_t, t)
        first, carry = policy.denoise(x_t, t, None)
        second, _ = policy.denoise(x_t, t, carry)
        errors = ((a - b).square().mean().item() for a, b in ((best, x0), (first, best), (second, best)))
        predictable = (best - x0.mean(0)).square().mean().item()
        rows.append((f"{time:g}", f"{at.gamma[0]:.4f}", *(f"{value:.4f}" for value in (*errors, predictable))))
    print("\nMean squared difference between the model's x0 and the exact one, without and with self-conditioning:\n")
    print_table(("t", "gamma", "error of exact x0", "model", "model, self-conditioned", "predictable"), rows)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="images to build the exact denoiser from")
    parser.add_argument("--steps", type=int, nargs="+", default=[10, 20], help="sampling steps (default 10 20)")
    parser.add_argument("--samples", type=int, default=512, help="samples per score (default 512)")
    parser.add_argument("--image-size", type=int, default=32, help="side of the images in pixels (default 32)")
    parser.add_argument("--checkpoint", help="bundled model trained on these images, to be compared")
    args = parser.parse_args()

    dataset = ImageDataset(args.folder, args.image_size)
    originals = torch.stack([dataset[i] for i in range(len(dataset))])
    held_out, mirrored = HeldOut(flips_and_shifts(originals)), torch.cat([originals, originals.flip(-1)])
    print_grid_scores(mirrored, held_out, args.steps, args.samples)
    if args.checkpoint:
        print_level_errors(mirrored, DiffusionPolicy.from_pretrained(ROOT / "checkpoints" / args.checkpoint).eval())


if __name__ == "__main__":
    main()
