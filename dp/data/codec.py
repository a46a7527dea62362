"""Pictures: [0, 1] tensors <-> uint8 arrays, grids, and encoded bytes. Arrays are uint8 [B,H,W,C] or [H,W,C], with 1, 3
or 4 channels.
"""

from __future__ import annotations

import io
import math
from collections.abc import Mapping

import numpy as np
import torch
from einops import rearrange
from PIL import Image
from PIL.PngImagePlugin import PngInfo
from torch import Tensor

MODES = {1: "L", 3: "RGB", 4: "RGBA"}  # Pillow's name for a number of channels


def quantise(images: Tensor) -> Tensor:
    """[B,C,H,W] in [0, 1] -> uint8 [B,H,W,C], rounded to nearest, on the same device."""
    return rearrange((images * 255).round().clamp(0, 255).to(torch.uint8), "b c h w -> b h w c")


def to_uint8(images: Tensor) -> np.ndarray:
    """[B,C,H,W] in [0, 1] on any device -> uint8 [B,H,W,C] on the host."""
    return quantise(images).cpu().numpy()


def to_float(array: Tensor) -> Tensor:
    """uint8 [B,H,W,C] -> float32 [B,C,H,W] in [0, 1]."""
    return rearrange(array, "b h w c -> b c h w").float() / 255


def grid(array: np.ndarray, columns: int | None = None) -> np.ndarray:
    """[B,H,W,C] -> one picture [rows H, columns W, C], row by row; as square as may be unless `columns` says otherwise.
    Missing tiles are black.
    """
    b, h, w, c = array.shape
    columns = columns or math.ceil(math.sqrt(b))
    missing = -b % columns
    full = np.concatenate([array, np.zeros((missing, h, w, c), np.uint8)]) if missing else array
    return rearrange(full, "(r k) h w c -> (r h) (k w) c", k=columns)


def to_pillow(array: np.ndarray) -> Image.Image:
    """[H,W,C] -> a Pillow image of mode L, RGB or RGBA."""
    return Image.fromarray(array[..., 0] if array.shape[-1] == 1 else array, MODES[array.shape[-1]])


def encode_jpeg(array: np.ndarray) -> bytes:
    """[H,W,C] -> JPEG at quality 90 without chroma subsampling: what a live frame is sent as. Transparency is laid over
    white.
    """
    return encode(over_white(to_pillow(array)), format="JPEG", quality=90, subsampling=0)


def encode_png(array: np.ndarray, text: Mapping[str, str] | None = None) -> bytes:
    """[H,W,C] -> PNG, lossless, with `text` under its keys; lightly compressed, because pixels out of noise hardly
    compress and the wait is noticed.
    """
    info = PngInfo()
    for key, value in (text or {}).items():
        info.add_text(key, value)
    return encode(to_pillow(array), format="PNG", compress_level=1, pnginfo=info)


def png_text(data: bytes) -> dict[str, str]:
    """Return the text that `encode_png` wrote beside the pixels. Raises ValueError if `data` is not a PNG."""
    try:
        with Image.open(io.BytesIO(data), formats=["PNG"]) as image:  # reads what stands before the pixels, not them
            return {key: value for key, value in image.info.items() if isinstance(value, str)}
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise ValueError(f"this is not a PNG that can be read ({error})") from None


def over_white(image: Image.Image) -> Image.Image:
    """RGBA laid over white -> RGB; any other mode as it is."""
    if image.mode != "RGBA":
        return image
    return Image.alpha_composite(Image.new("RGBA", image.size, "white"), image).convert("RGB")


def encode(image: Image.Image, **options) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, **options)
    return buffer.getvalue()
