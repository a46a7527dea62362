"""Our Trainer and those of two peers behind one face, for the benchmarks that train: rin-pytorch 0.8 and
denoising-diffusion-pytorch 2.3. Each keeps its own data loading, optimiser, EMA and training loop.
"""

from __future__ import annotations

import contextlib
import io
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # so that it runs from a clone without installing

from dp import RIN, DiffusionPolicy, Trainer

NEVER = 10**9  # steps: no saving and no sampling in between
SAMPLE_STEPS = 50  # DDIM, for all


class Contender(Protocol):
    batch_size: int

    def advance(self, steps: int) -> None:
        """That many training steps."""

    def sample(self, count: int, seed: int) -> Tensor:
        """Images [count,C,H,W] in [0, 1] from the averaged weights."""


class Ours:
    def __init__(self, folder: Path, results: Path, network: dict, policy: dict, training: dict, bf16: bool):
        diffusion = DiffusionPolicy(RIN(**network), **policy | {"timesteps": SAMPLE_STEPS})
        self.trainer = Trainer(diffusion, folder, results_folder=results, **loop(training, bf16))
        self.batch_size = self.trainer.batch_size

    def advance(self, steps: int) -> None:
        for _ in range(steps):
            self.trainer.train_step()

    def sample(self, count: int, seed: int) -> Tensor:
        return self.trainer.ema.ema_model.sample(count, seed=seed)


class Peer:
    """Both peers' trainers are of one make."""

    def __init__(self, trainer: Any):
        self.trainer, self.batch_size = trainer, trainer.batch_size

    def advance(self, steps: int) -> None:
        self.trainer.train_num_steps = self.trainer.step + steps
        with quiet():
            self.trainer.train()

    def sample(self, count: int, seed: int) -> Tensor:
        torch.manual_seed(seed)
        self.trainer.ema.ema_model.eval()
        with quiet():
            return self.trainer.ema.ema_model.sample(batch_size=count).clamp(0, 1)


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """The peers draw a progress bar at each call, and say that training is complete."""
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        yield


def rin_pytorch(folder: Path, results: Path, network: dict, training: dict, bf16: bool) -> Peer:
    from rin_pytorch import RIN, GaussianDiffusion, Trainer

    diffusion = GaussianDiffusion(RIN(**network), timesteps=SAMPLE_STEPS)
    return Peer(Trainer(diffusion, str(folder), results_folder=str(results), **loop(training, bf16)))


def denoising_diffusion_pytorch(folder: Path, results: Path, network: dict, training: dict, bf16: bool) -> Peer:
    from denoising_diffusion_pytorch import GaussianDiffusion, Trainer, Unet

    network, image_size = dict(network), network["image_size"]
    del network["image_size"]
    diffusion = GaussianDiffusion(
        Unet(**network), image_size=image_size, timesteps=1000, sampling_timesteps=SAMPLE_STEPS
    )
    own = loop(training, bf16) | {"calculate_fid": False}  # it would download a feature network
    return Peer(Trainer(diffusion, str(folder), results_folder=str(results), **own))


def loop(training: dict, bf16: bool) -> dict:
    """Keywords that all three trainers take."""
    return training | {"amp": bf16, "mixed_precision_type": "bf16", "save_and_sample_every": NEVER}


CONTENDERS = {
    "dp": Ours,
    "rin-pytorch": rin_pytorch,
    "denoising-diffusion-pytorch": denoising_diffusion_pytorch,
}
