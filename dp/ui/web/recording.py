"""The run with which an exported page begins: the model's own settings, and each class in turn."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from PIL import Image

from dp.checkpoints.classes import classes_of
from dp.data.codec import encode, make_grid, to_pillow
from dp.diffusion.policy import DiffusionPolicy
from dp.diffusion.settings import IMAGES
from dp.serving.frames import Frame, evenly
from dp.ui.components.data_uri import data_uri

NOISE_QUALITY, IMAGE_QUALITY = 10, 40  # of WebP: noise is the larger part of a recording
MOST_FRAMES = 20
LARGE, FEW = 64, 4  # of images with a longer side in pixels, fewer are recorded
ANY, EACH = "", "one of each"  # choices of the class on the page


def record_run(policy: DiffusionPolicy, config: Mapping[str, Any], sampling: Mapping[str, Any]) -> bytes:
    """Return recording.json: the `values` of the page's controls and the `frames` of the run. sampling: its timesteps,
    sampler, guidance and guidance interval.
    """
    classes = classes_of(config)
    shared = {"timesteps": sampling["timesteps"], "sampler": sampling["sampler"], "seed": 0}
    images = IMAGES if policy.image_size <= LARGE else FEW
    values, run = {"images": images, "label": ANY, **shared}, dict(shared)
    if classes and EACH not in classes:
        values |= {"label": EACH, "guidance": sampling["guidance"]}
        run |= {"label": [1 + i % len(classes) for i in range(images)], "guidance": values["guidance"]}
        run["guidance_interval"] = tuple(sampling.get("guidance_interval", (0.0, 1.0)))
    kept = evenly(shared["timesteps"], MOST_FRAMES)
    frames, before = [], None
    for step in policy.stream(images, time_difference=0.0, **run):
        if step.index in kept:
            frames.append(record_frame(Frame.of(step, before)))
        before = step
    return json.dumps({"values": values, "frames": frames}, separators=(",", ":")).encode()


def record_frame(frame: Frame) -> dict[str, Any]:
    """Return what the player needs of a frame and cannot compute."""
    x_t, x0 = (to_pillow(make_grid(images)) for images in (frame.x_t, frame.x0))
    moved = [round(float(moved), 4) for moved in frame.moved]
    images = {"x_t": webp_uri(x_t, NOISE_QUALITY), "x0": webp_uri(x0, IMAGE_QUALITY)}
    return {"index": frame.index, "moved": moved, **images}


def webp_uri(image: Image.Image, quality: int) -> str:
    return data_uri("image/webp", encode(image, format="WEBP", quality=quality, method=6))
