"""The model behind the tests of the page: a real RIN, but a small one, so that a browser is not kept waiting for it."""

import atexit
import shutil
import tempfile
import time
from functools import cache
from pathlib import Path

import torch

from dp.checkpoints import folder as checkpoint
from dp.diffusion.policy import DiffusionPolicy
from dp.networks.rin import RIN
from dp.serving.engine import Engine

MODEL = "small-32"
SIZES = {"dim": 16, "image_size": 32, "patch_size": 4, "channels": 3, "depth": 2, "latent_self_attn_depth": 1}
SIZES |= {"dim_latent": 24, "num_latents": 8, "heads": 2, "dim_head": 8, "conv_blocks": 1}
LONG_RUN, SECONDS_PER_STEP = 100, 3e-5  # for each of its steps, each step of a long run takes longer


def randomize(network: torch.nn.Module, seed: int = 0, std: float = 0.25) -> torch.nn.Module:
    """Draw every parameter anew: many are zero before training, and nothing can be tested behind a zero."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.copy_(std * torch.randn(parameter.shape, generator=generator))
    return network


@cache
def models_dir() -> Path:
    """Return a folder with one checkpoint, MODEL. It has the same weights in every process."""
    folder = Path(tempfile.mkdtemp())
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    DiffusionPolicy(randomize(RIN(**SIZES))).save_pretrained(folder / MODEL)
    return folder


@cache
def model() -> DiffusionPolicy:
    return DiffusionPolicy.from_pretrained(models_dir() / MODEL)


def pause(timesteps: int) -> None:
    """Wait during a step of a long run, as for a large model but without using the processor: a run of 1,000 steps then
    lasts longer than any test.
    """
    if timesteps >= LONG_RUN:
        time.sleep(SECONDS_PER_STEP * timesteps)


def save_fast(policy: DiffusionPolicy, folder: Path, original: str) -> None:
    """Write a checkpoint folder like that of a model which was made fast, with the weights of `policy`."""
    config = {"policy": policy.config | {"consistency": True}, "original": original}
    checkpoint.save(folder, policy.model, config | {"sampling": {"timesteps": 2, "sampler": "consistency"}})


class PacedEngine(Engine):
    """The engine, with a pause in each step of a long run."""

    def _step(self, batch):
        pause(max(request.settings.timesteps for request, _ in batch))
        return super()._step(batch)
