"""The image that a run starts from, and the parts of it that are kept: chosen, painted and previewed in the browser.

Its value is None, or `image` and `mask` as data URIs of small square PNGs (the image is kept where the mask is opaque;
a mask of None keeps nothing) and `strength`. Its props are `side`, the size of the model's images, and `levels`, rows
of t, alpha, sigma and log-SNR of the schedule from t = 0 to 1, from which the browser draws the preview.
"""

from __future__ import annotations

import base64
import binascii
import io
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from dp.data.codec import MODES, to_float
from dp.data.formats.crop_resize import ImageInfo, center_crop_resize, to_mode
from dp.diffusion.schedules import level, make_schedule
from dp.ui.components.component import Component

PREFIX = "data:image/png;base64,"
MAX_BYTES, MAX_SIDE = 2 << 20, 1024  # the page sends far smaller ones
LEVELS = 101


class StartImage(Component):
    def __init__(self, **kwargs: Any):
        super().__init__(
            html="start_image/start_image.html",
            css=["start_image/start_image.css"],
            js=[
                "shared/canvas.js",
                "shared/drop_zone.js",
                "start_image/preview.js",
                "start_image/mask.js",
                "start_image/start_image.js",
            ],
            description="image and mask as data URIs of PNGs, and strength",
            value=None,
            **kwargs,
        )


def start_image_props(config: dict[str, Any], noise_schedule: str | None) -> dict[str, Any]:
    """Return the props for a checkpoint's config and the name of a schedule, or None for the trained one."""
    policy = config["policy"]
    own = policy.get("noise_schedule", "sigmoid"), policy.get("schedule_kwargs")
    schedule = make_schedule(*((noise_schedule, None) if noise_schedule else own))
    at = level(schedule, torch.linspace(0, 1, LEVELS, dtype=torch.float64), policy.get("scale", 1.0))
    rows = torch.stack((at.t, at.alpha, at.sigma, at.log_snr), dim=1).tolist()
    return {"side": config["network"]["image_size"], "levels": [[round(value, 5) for value in row] for row in rows]}


def read_start_image(value: Any, image_size: int, channels: int) -> tuple[Tensor | None, Tensor | None, Any]:
    """Return the start image [C,H,W] in [0, 1], the mask [H,W] (True: kept) and the strength, unchecked, from the
    component's value; (None, None, 1.0) without an image. Raises ValueError for values that the component does not
    send.
    """
    if not value:
        return None, None, 1.0
    if not isinstance(value, dict):
        raise ValueError("the start image is malformed")
    with open_png(value.get("image")) as image:
        square = to_mode(center_crop_resize(image, ImageInfo(), image_size, image.size), MODES[channels])
        pixels = np.array(square).reshape(1, image_size, image_size, -1)
    start, mask = to_float(torch.from_numpy(pixels))[0], None
    if value.get("mask") is not None:
        with open_png(value["mask"]) as image:
            alpha = image.convert("RGBA").getchannel("A")
            opacity = np.asarray(center_crop_resize(alpha, ImageInfo(), image_size, image.size))
        mask = torch.from_numpy(opacity >= 128)
    return start, mask if mask is not None and mask.any() else None, value.get("strength")


def open_png(uri: Any) -> Image.Image:
    if not isinstance(uri, str) or not uri.startswith(PREFIX) or len(uri) > MAX_BYTES:
        raise ValueError("the start image must be a small PNG, as the page sends it")
    try:
        image = Image.open(io.BytesIO(base64.b64decode(uri[len(PREFIX) :], validate=True)), formats=["PNG"])
        if max(image.size) > MAX_SIDE:
            raise ValueError(f"the start image must be at most {MAX_SIDE} x {MAX_SIDE} pixels, got {image.size}")
        image.load()
        return image
    except (OSError, SyntaxError, binascii.Error, Image.DecompressionBombError):
        raise ValueError("the start image is damaged") from None
