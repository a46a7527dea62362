"""The programs' way in: `/sample` and `/stream`, for gradio_client, plain HTTP and, where Gradio's `mcp` extra is
installed, language models. The same settings, checks and limits as on the page.
"""

from __future__ import annotations

import base64
import inspect
from collections.abc import AsyncIterator, Iterator
from contextlib import aclosing
from dataclasses import asdict
from typing import Any, get_type_hints

import gradio as gr
import numpy as np
import spaces
from gradio.processing_utils import save_bytes_to_cache
from gradio.utils import get_upload_folder

from dp.engine import Engine
from dp.images import encode_png, grid
from dp.samplers import SampleSettings
from dp.tickets import Frame
from dp.ui import controls
from dp.ui.player import show
from dp.ui.watching import follow, in_call

SETTINGS = """

Args:
    checkpoint: name of the trained model
    images: how many, 1 to 64; image i has seed + i
    timesteps: network calls, 1 to 1000; fewer are faster and rougher
    sampler: 'ddim', 'ddpm' or 'dpmpp_2m'
    noise_schedule: 'trained' for the model's own, or 'linear', 'cosine' or 'sigmoid'
    time_difference: how many steps further than the next one starts from each step goes, 0 to 3
    seed: a whole number of at least 0; without one, a new one each time
"""
SAMPLE = "Draws images with a diffusion model: a PNG with all of them, and what they were made with." + SETTINGS
STREAM = (
    "Draws images with a diffusion model and gives the predicted images step by step, the newest some fifteen times a "
    "second: state, index, timesteps, time, log_snr and the picture `src` as a data URI; the last one is lossless and "
    "complete, and its `images` are the single ones." + SETTINGS
)


def build(engine: Engine, on_zero_gpu: bool) -> None:
    """Add both endpoints to the page being built. on_zero_gpu: sample inside each call, where alone the GPU exists."""
    default = next(iter(controls.usable_names(engine)), "")

    def asked(
        checkpoint: str = default,
        images: int = 1,
        timesteps: int = 50,
        sampler: str = "ddim",
        noise_schedule: str = controls.TRAINED,
        time_difference: float = 0.0,
        seed: int | None = None,
    ) -> tuple[str, SampleSettings]:
        chosen = (checkpoint, images, timesteps, sampler, noise_schedule, time_difference)
        return controls.read(engine, *chosen, seed, random_seed=seed is None)

    async def from_engine(name: str, settings: SampleSettings) -> AsyncIterator[tuple[Frame | None, bool]]:
        ticket = engine.submit(settings, name)
        try:
            async for frame in follow(ticket):
                yield frame, False
            if ticket.state == "failed":
                raise controls.complaint(ticket.error)
            yield ticket.frame, True
        finally:  # whoever called cannot come back for it
            ticket.cancel()

    # Generators all, since a plain function runs to its end even if its caller has gone.

    async def stream(*values: Any) -> AsyncIterator[dict[str, Any]]:
        name, settings = asked(*values)
        async with aclosing(from_engine(name, settings)) as frames:
            async for frame, is_last in frames:
                yield step_of(frame, is_last, settings)

    async def sample(*values: Any) -> AsyncIterator[tuple[Any, dict[str, Any]]]:
        name, settings = asked(*values)
        async with aclosing(from_engine(name, settings)) as frames:
            async for frame, is_last in frames:
                yield result_of(frame, is_last, name, settings)

    def stream_in_call(*values: Any) -> Iterator[dict[str, Any]]:
        name, settings = asked(*values)
        for frame, is_last in in_call(engine, name, settings):
            yield step_of(frame, is_last, settings)

    def sample_in_call(*values: Any) -> Iterator[tuple[Any, dict[str, Any]]]:
        name, settings = asked(*values)
        for frame, is_last in in_call(engine, name, settings):
            yield result_of(frame, is_last, name, settings)

    for endpoint, in_engine, alone, words, returns in (
        ("sample", sample, sample_in_call, SAMPLE, tuple[dict, dict]),
        ("stream", stream, stream_in_call, STREAM, dict),
    ):
        handler = spaces.GPU(duration=controls.seconds_needed)(alone) if on_zero_gpu else in_engine
        # Gradio reads names, types and defaults from here, and a language model what they mean.
        handler.__signature__ = inspect.signature(asked)
        handler.__annotations__ = get_type_hints(asked) | {"return": returns}
        handler.__doc__ = words
        gr.api(handler, api_name=endpoint, concurrency_limit=None)


def step_of(frame: Frame | None, is_last: bool, settings: SampleSettings) -> dict[str, Any]:
    if frame is None:
        return {"state": "running"}
    value = show(frame, "done" if is_last else "running") | {"seed": settings.seed}
    return value | {"images": [data_uri(image) for image in frame.x0]} if is_last else value


def result_of(frame: Frame | None, is_last: bool, name: str, settings: SampleSettings) -> tuple[Any, dict[str, Any]]:
    if not is_last:
        return None, {"state": "running"} | ({"index": frame.index, "timesteps": frame.timesteps} if frame else {})
    made_with = {key: value for key, value in asdict(settings).items() if value is not None}
    path = save_bytes_to_cache(encode_png(grid(frame.x0)), f"{name}-{settings.seed}.png", cache_dir=get_upload_folder())
    return gr.FileData(path=path).model_dump(), {"state": "done", "checkpoint": name} | made_with


def data_uri(image: np.ndarray) -> str:
    return "data:image/png;base64," + base64.b64encode(encode_png(image)).decode()
