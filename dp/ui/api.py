"""The API endpoints `/sample` and `/stream`, for gradio_client, plain HTTP and (if Gradio's `mcp` extra is installed)
language models. Settings, checks and limits are those of the page.
"""

# No `from __future__ import annotations`: Gradio reads the return annotations of the endpoints as types, not as text.

import inspect
from collections.abc import Callable
from contextlib import aclosing
from dataclasses import asdict
from typing import Any

import gradio as gr
from gradio.processing_utils import save_bytes_to_cache
from gradio.utils import get_upload_folder

from dp.data.codec import encode_png, make_grid
from dp.diffusion.schedules import SCHEDULES
from dp.serving.engine import Engine
from dp.serving.frames import Frame
from dp.serving.handle import SampleRequest
from dp.system.validation import MAX_SEED
from dp.ui.components.data_uri import png_uri
from dp.ui.components.player.player import show
from dp.ui.sampling import page_values
from dp.ui.sampling.page_values import (
    ANY,
    EACH,
    MAX_GUIDANCE,
    MAX_IMAGES,
    MAX_TIME_DIFFERENCE_STEPS,
    MAX_TIMESTEPS,
    SAMPLER,
    TIMESTEPS,
    TRAINED,
)
from dp.ui.streaming import Sessions


def build(engine: Engine, sessions: Sessions) -> None:
    """Add both endpoints to the page being built.

    Both are generators, because Gradio lets a plain function run to its end even if its client has disconnected. Gradio
    publishes their signatures, in which the return type is that of each value, and their docstrings, which language
    models read.
    """
    parameters = describe_parameters(default_checkpoint(engine))
    for endpoint in (sample_endpoint(engine, sessions), stream_endpoint(engine, sessions)):
        lines = [f"    {name}: {description}" for name, (_, description) in parameters.items()]
        endpoint.__doc__ = "\n".join([inspect.getdoc(endpoint), "", "Args:", *lines])
        added = gr.api(endpoint, api_name=endpoint.__name__, concurrency_limit=None)
        describe_inputs(added, parameters)


def describe_parameters(checkpoint: str) -> dict[str, tuple[str, str]]:
    """Return the parameters of both endpoints: for each, the label of its control on the page, and a description with
    its range or choices. checkpoint: the name of one, as an example, or "".
    """
    example = f", such as {checkpoint!r}" if checkpoint else ""
    samplers = ", ".join(repr(value) for _, value in page_values.SAMPLERS)
    samplers += f", or {page_values.CONSISTENCY!r} for models that were made fast"
    schedules = ", ".join(map(repr, SCHEDULES))
    return {
        "checkpoint": ("Checkpoint", f"name of the model{example}; the choices are those of the page"),
        "images": ("Images", f"number of images, 1 to {MAX_IMAGES}; image i uses seed + i"),
        "timesteps": ("Timesteps", f"steps from noise to image, 1 to {MAX_TIMESTEPS}; fewer are faster but coarser"),
        "sampler": ("Sampler", f"how a step uses the prediction, one of: {samplers}"),
        "noise_schedule": (
            "Noise schedule",
            f"which noise levels get more steps, one of: {TRAINED!r} (as in the model's training), {schedules}",
        ),
        "time_difference": (
            "Time difference",
            f"how far each step overshoots its target time, in steps, 0 to {MAX_TIME_DIFFERENCE_STEPS}; 0 turns it off",
        ),
        "seed": (
            "Seed",
            f"whole number, 0 to {MAX_SEED - 1}; same seed, same images; if omitted, a new one is drawn",
        ),
        "eta": ("eta", "noise that 'ddim' adds at each step, 0 to 1: 0 adds none, 1 as much as 'ddpm'"),
        "label": ("Class", f"what to draw: the name or number of a class, {EACH!r}, or '' to leave it to the model"),
        "guidance": (
            "Guidance",
            f"how strongly to follow the class, 0 to {MAX_GUIDANCE}; 1 is the plain model; if omitted, the model's own",
        ),
    }


def describe_inputs(endpoint: gr.events.Dependency, parameters: dict[str, tuple[str, str]]) -> None:
    """Put labels and descriptions into the API page and the schemas. `gr.api` labels parameters "1st", "2nd" and so on,
    and has no option for them. Checked on Gradio 6.31.
    """
    inputs = gr.context.Context.root_block.fns[endpoint["id"]].inputs
    for component, (label, description) in zip(inputs, parameters.values(), strict=True):
        component.label = label
        component._api_info |= {"description": description, "additional_description": f"{description}."}


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
        """Sample images from a diffusion model. Returns one PNG with all images, and its settings."""
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
