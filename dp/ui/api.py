"""The API endpoints `/sample` and `/stream`, for gradio_client, plain HTTP and (if Gradio's `mcp` extra is installed)
language models. Settings, checks and limits are those of the page.
"""

# No `from __future__ import annotations`: Gradio reads the return annotations of the endpoints as types, not as text.

from collections.abc import Callable
from contextlib import aclosing
from dataclasses import asdict
from typing import Any

import gradio as gr
from gradio.processing_utils import save_bytes_to_cache
from gradio.utils import get_upload_folder

from dp.data.codec import encode_png, make_grid
from dp.serving.engine import Engine
from dp.serving.frames import Frame
from dp.serving.handle import SampleRequest
from dp.ui.components.data_uri import png_uri
from dp.ui.components.player.player import show
from dp.ui.sampling import page_values
from dp.ui.sampling.page_values import ANY, SAMPLER, TIMESTEPS, TRAINED
from dp.ui.streaming import Sessions


def build(engine: Engine, sessions: Sessions) -> None:
    """Add both endpoints to the page being built.

    Both are generators, because Gradio lets a plain function run to its end even if its client has disconnected. Gradio
    publishes their signatures, in which the return type is that of each value, and their docstrings, which language
    models read.
    """
    for endpoint in (sample_endpoint(engine, sessions), stream_endpoint(engine, sessions)):
        gr.api(endpoint, api_name=endpoint.__name__, concurrency_limit=None)


def default_checkpoint(engine: Engine) -> str:
    return next(iter(page_values.usable_checkpoints(engine)), "")


def own_sampling(engine: Engine) -> dict[str, Any]:
    """Return the default timesteps and sampler: those of the default checkpoint, if its config has them."""
    name = default_checkpoint(engine)
    own = page_values.config_of(engine, name).get("sampling", {}) if name else {}
    return {"timesteps": TIMESTEPS, "sampler": SAMPLER} | own


def sample_endpoint(engine: Engine, sessions: Sessions) -> Callable[..., Any]:
    own = own_sampling(engine)

    async def sample(
        request: gr.Request,
        checkpoint: str = default_checkpoint(engine),
        images: int = 1,
        timesteps: int = own["timesteps"],
        sampler: str = own["sampler"],
        noise_schedule: str = TRAINED,
        time_difference: float = 0.0,
        seed: int | None = None,
        eta: float = 0.0,  # new parameters go last, for callers that pass arguments by position
        label: str = ANY,
        guidance: float | None = None,
    ) -> tuple[dict, dict]:
        """Sample images from a diffusion model. Returns one PNG with all images, and its settings.

        Args:
            checkpoint: name of the model
            images: number of images, 1 to 64; image i uses seed + i
            timesteps: number of sampling steps, 1 to 1000; fewer are faster and less accurate
            sampler: 'ddim', 'ddpm', 'dpmpp_2m' or 'dpmpp_2m_sde'
            noise_schedule: 'trained' (the schedule that the model was trained with), 'linear', 'cosine' or 'sigmoid'
            time_difference: how far each step overshoots its target time, in steps, 0 to 3; 0 turns it off
            seed: a whole number of at least 0; if omitted, a new one is drawn
            eta: amount of new noise in each DDIM step, 0 to 1
            label: the class, by its name or number, or 'one of each'; if empty, the model chooses
            guidance: how strongly to follow the class, 0 to 10; 1 is the plain model, and the default the model's own
        """
        chosen = (checkpoint, images, timesteps, sampler, noise_schedule, time_difference, eta)
        classes = {"label": label, "guidance": guidance}
        run = SampleRequest(*page_values.parse_settings(engine, *chosen, seed, random_seed=seed is None, **classes))
        async with aclosing(sessions.run_for_api(request.session_hash, run)) as frames:
            async for frame, is_last in frames:
                yield sample_value(frame, is_last, run)

    return sample


def stream_endpoint(engine: Engine, sessions: Sessions) -> Callable[..., Any]:
    own = own_sampling(engine)

    async def stream(
        request: gr.Request,
        checkpoint: str = default_checkpoint(engine),
        images: int = 1,
        timesteps: int = own["timesteps"],
        sampler: str = own["sampler"],
        noise_schedule: str = TRAINED,
        time_difference: float = 0.0,
        seed: int | None = None,
        eta: float = 0.0,  # new parameters go last, for callers that pass arguments by position
        label: str = ANY,
        guidance: float | None = None,
    ) -> dict:
        """Sample images from a diffusion model and stream the predictions step by step, the newest about fifteen times
        a second: state, index, timesteps, time, log_snr and, as data URIs, the images of x0 (`src`) and x_t (`noisy`).
        Those of the last step are lossless, and its `images` holds each image alone.

        Args:
            checkpoint: name of the model
            images: number of images, 1 to 64; image i uses seed + i
            timesteps: number of sampling steps, 1 to 1000; fewer are faster and less accurate
            sampler: 'ddim', 'ddpm', 'dpmpp_2m' or 'dpmpp_2m_sde'
            noise_schedule: 'trained' (the schedule that the model was trained with), 'linear', 'cosine' or 'sigmoid'
            time_difference: how far each step overshoots its target time, in steps, 0 to 3; 0 turns it off
            seed: a whole number of at least 0; if omitted, a new one is drawn
            eta: amount of new noise in each DDIM step, 0 to 1
            label: the class, by its name or number, or 'one of each'; if empty, the model chooses
            guidance: how strongly to follow the class, 0 to 10; 1 is the plain model, and the default the model's own
        """
        chosen = (checkpoint, images, timesteps, sampler, noise_schedule, time_difference, eta)
        classes = {"label": label, "guidance": guidance}
        run = SampleRequest(*page_values.parse_settings(engine, *chosen, seed, random_seed=seed is None, **classes))
        async with aclosing(sessions.run_for_api(request.session_hash, run)) as frames:
            async for frame, is_last in frames:
                yield stream_value(frame, is_last, run)

    return stream


def sample_value(frame: Frame | None, is_last: bool, run: SampleRequest) -> tuple[Any, dict[str, Any]]:
    """Return the file and the settings; before the last frame, None and the progress."""
    if not is_last:
        return None, {"state": "running"} | ({"index": frame.index, "timesteps": frame.timesteps} if frame else {})
    used = {key: value for key, value in asdict(run.settings).items() if value is not None}
    name = f"{run.checkpoint}-{run.settings.seed}.png"
    path = save_bytes_to_cache(encode_png(make_grid(frame.x0)), name, cache_dir=get_upload_folder())
    return gr.FileData(path=path).model_dump(), {"state": "done", "checkpoint": run.checkpoint} | used


def stream_value(frame: Frame | None, is_last: bool, run: SampleRequest) -> dict[str, Any]:
    """Return the player's value of the frame; with the last one, each image alone, too."""
    if frame is None:
        return {"state": "running"}
    value = show(frame, "done" if is_last else "running") | {"seed": run.settings.seed}
    return value | {"images": [png_uri(image) for image in frame.x0]} if is_last else value
