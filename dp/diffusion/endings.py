"""Endings: one image of a run, taken from a step on to several ends, each with fresh noise of its own.

Up to that step they are the same run; from there on, every step adds fresh noise, even if the run itself adds none. So
they show what the noisy image could still become: at first different images, in the end only one.
"""

from __future__ import annotations

import hashlib
from dataclasses import replace

from torch import Tensor

from dp.diffusion.conditions import has_tokens, observation_of
from dp.diffusion.noise import NoiseStream
from dp.diffusion.plan import make_plan
from dp.diffusion.policy import DiffusionPolicy
from dp.diffusion.settings import SampleSettings
from dp.diffusion.state import SampleState
from dp.system.validation import MAX_SEED, check_integer

ENDINGS = 8  # by default
SAME = 0.07  # RMS distance, with white at 1, below which two endings count as the same image


def stochastic(settings: SampleSettings) -> SampleSettings:
    """Return settings without any None in their stochastic form, which adds fresh noise at every step: DDIM with eta 1,
    and 2M's SDE. DDPM, the SDE and consistency sampling are stochastic already.
    """
    if settings.sampler == "ddim":
        return replace(settings, eta=1.0)
    return replace(settings, sampler="dpmpp_2m_sde") if settings.sampler == "dpmpp_2m" else settings


def branch_settings(settings: SampleSettings, row: int, count: int) -> SampleSettings:
    """Return the settings with which image `row` of a run with `settings` (without any None) is taken to `count` ends.
    Raises ValueError if there is no such image.
    """
    check_integer("image", row, 0, settings.batch_size - 1)
    label, observation = settings.labels[row], observation_of(settings.observation, row)
    own = {"label": label, "observation": observation, "walk_to": None}
    own["guidance"] = settings.guidance if label or has_tokens(observation) else 1.0
    return replace(stochastic(settings), batch_size=count, **own)


def branch_off(policy: DiffusionPolicy, settings: SampleSettings, state: SampleState, count: int) -> SampleState:
    """Return `state`, one image of a run with these `settings` (without any None), as `count` images that go on in the
    stochastic form. The levels and the carry are those of the run. The noise of ending j at step k depends on the
    image's seed, k and j alone, so it can be made again. `state` stays as it is. Raises ValueError unless it is of one
    image.
    """
    if len(state) != 1:
        raise ValueError(f"only one image at a time can branch off, got {len(state)}")
    plan = make_plan(stochastic(settings), policy.schedule, policy.scale)
    seeds = [ending_seed(state.streams[0], state.index + 1, j) for j in range(count)]
    branch = replace(state.repeated(count), plan=plan, streams=[NoiseStream(seed) for seed in seeds])
    return branch.with_noise_rewound()  # its draws are counted from the first step, see there


def ending_seed(stream: NoiseStream, step: int, ending: int) -> int:
    """Return the seed of an ending of the image with this noise stream: a BLAKE2b hash, the same in every process."""
    text = f"{stream.seeds[0]}/{stream.seeds[1]}/{stream.fraction}/{step}/{ending}"
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "big") % MAX_SEED


def distances(images: Tensor) -> Tensor:
    """Return the RMS distance [B,B] between images [B,C,H,W] in [0, 1]."""
    flat = images.double().flatten(1)
    return (flat[:, None] - flat).square().mean(dim=2).sqrt()


def group(between: Tensor, below: float = SAME) -> list[int]:
    """Return the group of each image, given their distances [B,B]. Groups count from 0, in order of their first image.
    Two images are in one group if steps of less than `below` lead from one to the other, by way of others
    (single-linkage clustering).
    """
    groups = list(range(len(between)))
    for i, j in (between < below).nonzero().tolist():
        groups = [groups[i] if g == groups[j] else g for g in groups]
    first = list(dict.fromkeys(groups))
    return [first.index(g) for g in groups]
