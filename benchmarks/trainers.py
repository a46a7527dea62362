"""A common interface to the trainers of this library, rin-pytorch 0.8 and denoising-diffusion-pytorch 2.3, for the
benchmarks that train. Each trainer uses its own data loading, optimizer, EMA and training loop.
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

NEVER = 10**9  # steps between checkpoints: more than any run has
SAMPLE_STEPS = 50  # DDIM, for all trainers


class TrainerAdapter(Protocol):
    batch_size: int

    def train(self, steps: int) -> None:
        """Take `steps` training steps."""

    def sample(self, count: int, seed: int) -> Tensor:
        """Return images [count,C,H,W] in [0, 1], sampled with the EMA weights."""


class DpAdapter:
    def __init__(self, folder: Path, results: Path, network: dict, policy: dict, training: dict, bf16: bool):
        diffusion = DiffusionPolicy(RIN(**network), **policy | {"timesteps": SAMPLE_STEPS})
        self.trainer = Trainer(diffusion, folder, results_folder=results, **loop_kwargs(training, bf16))
        self.batch_size = self.trainer.batch_size

    def train(self, steps: int) -> None:
        for _ in range(steps):
            self.trainer.train_step()

    def sample(self, count: int, seed: int) -> Tensor:
        return self.trainer.ema.ema_model.sample(count, seed=seed)


class OtherAdapter:
    """Adapter for the other two libraries, whose trainers have the same interface."""

    def __init__(self, trainer: Any):
        self.trainer, self.batch_size = trainer, trainer.batch_size

    def train(self, steps: int) -> None:
        self.trainer.train_num_steps = self.trainer.step + steps
        with suppress_output():
            self.trainer.train()

    def sample(self, count: int, seed: int) -> Tensor:
        torch.manual_seed(seed)
        self.trainer.ema.ema_model.eval()
        with suppress_output():
            return self.trainer.ema.ema_model.sample(batch_size=count).clamp(0, 1)


@contextlib.contextmanager
def suppress_output() -> Iterator[None]:
    """Hide the progress bars and messages that the other libraries print at each call."""
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        yield


def rin_pytorch(folder: Path, results: Path, network: dict, training: dict, bf16: bool) -> OtherAdapter:
    from rin_pytorch import RIN, GaussianDiffusion, Trainer

    diffusion = GaussianDiffusion(RIN(**network), timesteps=SAMPLE_STEPS)
    return OtherAdapter(Trainer(diffusion, str(folder), results_folder=str(results), **loop_kwargs(training, bf16)))


def denoising_diffusion_pytorch(folder: Path, results: Path, network: dict, training: dict, bf16: bool) -> OtherAdapter:
    from denoising_diffusion_pytorch import GaussianDiffusion, Trainer, Unet

    network, image_size = dict(network), network["image_size"]
    del network["image_size"]
    diffusion = GaussianDiffusion(
        Unet(**network), image_size=image_size, timesteps=1000, sampling_timesteps=SAMPLE_STEPS
    )
    kwargs = loop_kwargs(training, bf16) | {"calculate_fid": False}  # FID would download a feature network
    return OtherAdapter(Trainer(diffusion, str(folder), results_folder=str(results), **kwargs))


def loop_kwargs(training: dict, bf16: bool) -> dict:
    """Return the keyword arguments that all three trainers accept."""
    return training | {"amp": bf16, "mixed_precision_type": "bf16", "save_and_sample_every": NEVER}


TRAINERS = {
    "dp": DpAdapter,
    "rin-pytorch": rin_pytorch,
    "denoising-diffusion-pytorch": denoising_diffusion_pytorch,
}
