"""Measure whether a network's latents do different things: how much their read maps differ at each step of a run, how
far a head concentrates on one token, and how much the loss rises if all latents read what they read on average.

    python benchmarks/latents.py
    python benchmarks/latents.py runs/mine/checkpoints/005000

All of it is measured with 64 images from noise, in the model's own sampling settings, without guidance.
tests/test_bundled.py asserts it for the bundled models.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import torch
from einops import rearrange
from measure import print_table
from torch import Tensor, nn

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))  # so that it runs from a clone without installing

from dp import DiffusionPolicy
from dp.diffusion.settings import SampleSettings
from dp.networks.attention import total_variation

IMAGES = 64


class Reading(NamedTuple):
    """How the latents read. variation: mean total variation between the read maps, averaged over the heads, of two
    latents [steps,depth]. largest_share: of the head that concentrates most, the mean largest share of a latent's
    weights [steps,depth]. rise: the loss with equal maps for all latents, relative to the loss, minus 1.
    """

    variation: Tensor
    largest_share: Tensor
    rise: float


@torch.no_grad()
def measure_latents(policy: DiffusionPolicy, sampling: dict) -> Reading:
    classes = max(policy.num_classes, 1)
    labels = tuple(i % classes + 1 if policy.num_classes else 0 for i in range(IMAGES))
    settings = {key: value for key, value in sampling.items() if key in ("timesteps", "sampler")}
    state = policy.init_state(SampleSettings(IMAGES, seed=0, label=labels, **settings))
    variation, largest_share = [], []
    with recorded_reads(policy.model) as reads:
        while not state.is_finished:
            reads.clear()
            [(state, step)] = policy.step([state])
            variation.append([total_variation(weights.mean(dim=1)) for weights in reads])
            largest_share.append([weights.amax(dim=-1).mean(dim=(0, 2)).max().item() for weights in reads])
    images, condition = (step.x0 + 1) / 2, torch.tensor(labels)
    loss = denoising_loss(policy, images, condition)
    with equal_reads(policy.model):
        rise = denoising_loss(policy, images, condition) / loss - 1
    return Reading(torch.tensor(variation), torch.tensor(largest_share), rise)


def denoising_loss(policy: DiffusionPolicy, images: Tensor, condition: Tensor) -> float:
    """Return the loss on images [B,C,H,W] as in training, self-conditioned, each at another level of the schedule."""
    random = torch.Generator().manual_seed(0)
    t = (torch.randperm(len(images), generator=random).double() + 0.5) / len(images)
    given = {"t": t, "noise": torch.randn(images.shape, generator=random), "self_condition": True}
    return policy(images, condition, drop=torch.zeros(len(images), dtype=torch.bool), **given).item()


@contextmanager
def recorded_reads(network: nn.Module) -> Iterator[list[Tensor]]:
    """Collect the read weights [B,heads,M,N] of every block in every call."""
    reads: list[Tensor] = []
    with hooked(network, lambda read, inputs, output: reads.append(read.weights(*inputs))):
        yield reads


@contextmanager
def equal_reads(network: nn.Module) -> Iterator[None]:
    """Let every latent read with the mean of all latents' weights."""

    def reread(read: nn.Module, inputs: tuple[Tensor, Tensor], output: Tensor) -> Tensor:
        x, context = inputs
        values = rearrange(read.to_kv(context).chunk(2, dim=-1)[1], "b n (h d) -> b h n d", h=read.heads)
        mean = read.weights(x, context).mean(dim=2, keepdim=True) @ values  # [B,heads,1,d]
        return read.to_out(rearrange(mean.expand(-1, -1, x.shape[1], -1), "b h n d -> b n (h d)"))

    with hooked(network, reread):
        yield


@contextmanager
def hooked(network: nn.Module, hook) -> Iterator[None]:
    handles = [block.read.register_forward_hook(hook) for block in network.blocks]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def sampling_of(folder: Path) -> dict:
    return json.loads((folder / "config.json").read_text(encoding="utf-8")).get("sampling", {"timesteps": 20})


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    bundled = sorted(path.parent for path in (ROOT / "checkpoints").glob("*/config.json"))
    parser.add_argument(
        "checkpoints", type=Path, nargs="*", default=bundled, help="folders (default all bundled models)"
    )
    args = parser.parse_args()
    rows = []
    for folder in args.checkpoints:
        reading = measure_latents(DiffusionPolicy.from_pretrained(folder).eval(), sampling_of(folder))
        for i, (variation, share) in enumerate(zip(reading.variation.T, reading.largest_share.T, strict=True), 1):
            spread = f"{variation.min():.2f} to {variation.max():.2f}"
            rows.append((folder.name, i, spread, f"{share.mean():.0%}", f"{share.max():.0%}", f"{reading.rise:+.0%}"))
    columns = (
        "checkpoint",
        "block",
        "variation over the steps",
        "largest share, mean",
        "at most",
        "loss with equal maps",
    )
    print_table(columns, rows)


if __name__ == "__main__":
    main()
