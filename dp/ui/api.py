"""The programs' way in: `/sample` and `/stream`, for gradio_client, plain HTTP and, where Gradio's `mcp` extra is
installed, language models. The same settings, checks and limits as on the page.
"""

from __future__ import annotations

import inspect
from collections.abc import AsyncIterator, Iterator
from contextlib import aclosing
from dataclasses import asdict
from typing import Any, get_type_hints

import gradio as gr
from gradio.processing_utils import save_bytes_to_cache
from gradio.utils import get_upload_folder

from dp.data.codec import encode_png, grid
from dp.diffusion.settings import SampleSettings
from dp.serving.frames import Frame
from dp.ui.components.player.player import png, show
from dp.ui.sampling import page_values
from dp.ui.streaming import Viewers
from dp.ui.zero_gpu import Asked, Lend

SETTINGS = """

Args:
    checkpoint: name of the model
    images: number of images, 1 to 64; image i uses seed + i
    timesteps: number of sampling steps, 1 to 1000; fewer are faster and less accurate
    sampler: 'ddim', 'ddpm', 'dpmpp_2m' or 'dpmpp_2m_sde'
    noise_schedule: 'trained' for the schedule that the model was trained with, or 'linear', 'cosine' or 'sigmoid'
    time_difference: how far each step overshoots its target time, in steps, 0 to 3; 0 turns it off
    seed: a whole number of at least 0; if omitted, a new one is drawn
    eta: amount of new noise in each DDIM step, 0 to 1
"""
SAMPLE = "Sample images from a diffusion model. Returns one PNG with all images, and its settings." + SETTINGS
STREAM = (
    "Sample images from a diffusion model and stream the predictions step by step, the newest about fifteen times a "
    "second: state, index, timesteps, time, log_snr and, as data URIs, the images of x0 (`src`) and x_t (`noisy`). "
    "Those of the last step are lossless, and its `images` holds each image alone." + SETTINGS
)


def build(viewers: Viewers, lend: Lend | None) -> None:
    """Add both endpoints to the page being built. lend: samples where the GPU exists only inside each call."""
    engine = viewers.engine
    default = next(iter(page_values.usable_names(engine)), "")

    def asked(
        checkpoint: str = default,
        images: int = 1,
        timesteps: int = page_values.TIMESTEPS,
        sampler: str = page_values.SAMPLER,
        noise_schedule: str = page_values.TRAINED,
        time_difference: float = 0.0,
        seed: int | None = None,
        eta: float = 0.0,  # last, for those who call by position
    ) -> tuple[str, SampleSettings]:
        chosen = (checkpoint, images, timesteps, sampler, noise_schedule, time_difference, eta)
        return page_values.read(engine, *chosen, seed, random_seed=seed is None)

    # Generators all, since a plain function runs to its end even if its caller has gone.

    async def stream(request: gr.Request, *values: Any) -> AsyncIterator[dict[str, Any]]:
        name, settings = asked(*values)
        async with aclosing(viewers.program(request.session_hash, name, settings)) as frames:
            async for frame, is_last in frames:
                yield step_of(frame, is_last, settings)

    async def sample(request: gr.Request, *values: Any) -> AsyncIterator[tuple[Any, dict[str, Any]]]:
        name, settings = asked(*values)
        async with aclosing(viewers.program(request.session_hash, name, settings)) as frames:
            async for frame, is_last in frames:
                yield result_of(frame, is_last, name, settings)

    def stream_alone(*values: Any) -> Iterator[dict[str, Any]]:
        name, settings = asked(*values)
        for _, frame, is_last in lend([Asked(name, settings)]):
            yield step_of(frame, is_last, settings)

    def sample_alone(*values: Any) -> Iterator[tuple[Any, dict[str, Any]]]:
        name, settings = asked(*values)
        for _, frame, is_last in lend([Asked(name, settings)]):
            yield result_of(frame, is_last, name, settings)

    for endpoint, handler, words, returns in (
        ("sample", sample_alone if lend else sample, SAMPLE, tuple[dict, dict]),
        ("stream", stream_alone if lend else stream, STREAM, dict),
    ):
        # Gradio reads names, types and defaults from here, and a language model what they mean.
        parameters = list(inspect.signature(asked).parameters.values())
        if not lend:  # the session is Gradio's to give, and nobody's to name
            parameters.insert(0, inspect.Parameter("request", inspect.Parameter.POSITIONAL_OR_KEYWORD))
        handler.__signature__ = inspect.Signature(parameters, return_annotation=returns)
        handler.__annotations__ = get_type_hints(asked) | {"request": gr.Request, "return": returns}
        handler.__doc__ = words
        gr.api(handler, api_name=endpoint, concurrency_limit=None)


def step_of(frame: Frame | None, is_last: bool, settings: SampleSettings) -> dict[str, Any]:
    if frame is None:
        return {"state": "running"}
    value = show(frame, "done" if is_last else "running") | {"seed": settings.seed}
    return value | {"images": [png(image) for image in frame.x0]} if is_last else value


def result_of(frame: Frame | None, is_last: bool, name: str, settings: SampleSettings) -> tuple[Any, dict[str, Any]]:
    if not is_last:
        return None, {"state": "running"} | ({"index": frame.index, "timesteps": frame.timesteps} if frame else {})
    made_with = {key: value for key, value in asdict(settings).items() if value is not None}
    path = save_bytes_to_cache(encode_png(grid(frame.x0)), f"{name}-{settings.seed}.png", cache_dir=get_upload_folder())
    return gr.FileData(path=path).model_dump(), {"state": "done", "checkpoint": name} | made_with
