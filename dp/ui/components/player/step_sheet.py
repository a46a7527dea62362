"""One step of an image, taken apart, for the player: its pictures on one sheet, the numbers, and words for them."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch

from dp.data.codec import make_grid, to_uint8
from dp.diffusion.parts import StepParts, amplify
from dp.diffusion.samplers import is_stochastic
from dp.serving.handle import Runner
from dp.ui.components.data_uri import png_uri
from dp.ui.sampling.page_values import SAMPLER_TITLES

PICTURES = ("x_t", "x0", "noise", "change", "fresh", "x_s", "amplified")  # from left to right
MOST_STRETCH = 64  # by which a small change is multiplied to be seen


def step_sheet(runner: Runner, run: str, row: int, index: int) -> dict[str, Any]:
    """Return the `sheet` of PICTURES of step `index` of image `row`, and the numbers of the step: `alpha`, `sigma`,
    `coefficients` (a, b, c, d), `stretch` of the change, `width` and `gain` of the amplified x_t, and `notes` on what
    the step leaves out. Raises ValueError where the run cannot be replayed.
    """
    parts, handle = runner.take_apart(run, row, index), runner.find(run)
    if handle is None:
        raise ValueError("the server no longer has this run; Generate makes it again from its seed")
    amplified = amplify(parts.x_t, parts.alpha, parts.sigma)
    stretch = stretch_of(parts.change.abs().max().item())
    pictures = [parts.x_t, parts.x0, parts.noise, parts.change * stretch, parts.fresh, parts.x_s, amplified.image]
    # As the player shows x_t: -1 is black and 1 white, what lies beyond is clamped, and 0, as of no noise, is gray.
    sheet = png_uri(make_grid(to_uint8((torch.cat(pictures) + 1) / 2), len(PICTURES)))
    numbers = {"alpha": parts.alpha, "sigma": parts.sigma, "coefficients": parts.coefficients, "stretch": stretch}
    numbers |= {"width": amplified.width, "gain": amplified.gain}
    return {"sheet": sheet, "notes": notes_on(parts, index, handle.provenance)} | numbers


def stretch_of(peak: float) -> int:
    """Return the power of two, up to MOST_STRETCH, that brings a change of at most `peak` closest to 1 from below."""
    return 2 ** min(max(math.floor(-math.log2(peak)), 0), MOST_STRETCH.bit_length() - 1) if peak else 1


def notes_on(parts: StepParts, index: int, made_with: Mapping[str, Any]) -> str:
    """Return sentences on which of the four terms are missing from a step, and why. made_with: the run's provenance."""
    a, _, c, d = parts.coefficients
    if a == c == d == 0:
        return "The last step takes the prediction as the result: no noisy image, and no noise."
    sampler, eta = made_with["sampler"], made_with["eta"]
    notes = []
    if c == 0 and sampler.startswith("dpmpp"):
        notes.append("No previous prediction: this is the first." if index == 1 else "No previous prediction here.")
    if d == 0:
        name = SAMPLER_TITLES[sampler]
        name += f" with eta {eta:g}" if sampler == "ddim" else ""
        why = "this step adds none" if is_stochastic(sampler, eta) else f"{name} adds none"
        notes.append(f"No fresh noise: {why}.")
    return " ".join(notes)
