"""Convert images between tensors in [0, 1], uint8 arrays and encoded files, and arrange them in grids. Arrays are uint8
[B,H,W,C] or [H,W,C] with 1, 3 or 4 channels.
"""

from __future__ import annotations

import io
import math
from collections.abc import Mapping
from typing import TYPE_CHECKING

import numpy as np
from einops import rearrange
from PIL import Image
from PIL.PngImagePlugin import PngInfo

if TYPE_CHECKING:  # images are decoded and prepared without torch, which takes a second to load
    from torch import Tensor

MODES = {1: "L", 3: "RGB", 4: "RGBA"}  # number of channels -> Pillow's mode


def to_uint8_tensor(images: Tensor) -> Tensor:
    """Convert images [B,C,H,W] in [0, 1] to uint8 [B,H,W,C] on the same device, rounding to nearest."""
    return rearrange((images * 255).round().clamp(0, 255).byte(), "b c h w -> b h w c")


def to_uint8(images: Tensor) -> np.ndarray:
    """Convert images [B,C,H,W] in [0, 1] on any device to a NumPy array, uint8 [B,H,W,C]."""
    return to_uint8_tensor(images).cpu().numpy()


def to_float(array: Tensor) -> Tensor:
    """Convert images, uint8 [B,H,W,C], to float32 [B,C,H,W] in [0, 1]."""
    return rearrange(array, "b h w c -> b c h w").float() / 255


def make_grid(array: np.ndarray, columns: int | None = None) -> np.ndarray:
    """Arrange images [B,H,W,C] row by row in one image [rows H, columns W, C]. By default, the grid is as square as
    possible. Missing tiles are black.
    """
    b, h, w, c = array.shape
    columns = columns or math.ceil(math.sqrt(b))
    missing = -b % columns
    full = np.concatenate([array, np.zeros((missing, h, w, c), np.uint8)]) if missing else array
    return rearrange(full, "(r k) h w c -> (r h) (k w) c", k=columns)


def to_pillow(array: np.ndarray) -> Image.Image:
    """Convert an image [H,W,C] to a Pillow image of mode L, RGB or RGBA."""
    return Image.fromarray(array[..., 0] if array.shape[-1] == 1 else array, MODES[array.shape[-1]])


def encode_jpeg(array: np.ndarray) -> bytes:
    """Encode an image [H,W,C] as JPEG with quality 90 and no chroma subsampling, as for live frames. Transparent images
    are composited on white.
    """
    return encode(over_white(to_pillow(array)), format="JPEG", quality=90, subsampling=0)


def encode_png(array: np.ndarray, text: Mapping[str, str] | None = None) -> bytes:
    """Encode an image [H,W,C] as PNG, with `text` in its text chunks. The compression level is low, because noisy
    images hardly compress and users wait for the file.
    """
    info = PngInfo()
    for key, value in (text or {}).items():
        info.add_text(key, value)
    return encode(to_pillow(array), format="PNG", compress_level=1, pnginfo=info)


def read_png_text(data: bytes) -> dict[str, str]:
    """Return the text chunks before the pixels of a PNG, as `encode_png` writes them. Raises ValueError if `data` is
    not a PNG.
    """
    try:
        with Image.open(io.BytesIO(data), formats=["PNG"]) as image:  # does not decode the pixels
            return {key: value for key, value in image.info.items() if isinstance(value, str)}
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError):
        raise ValueError("this is not a readable PNG: choose one that this app has saved") from None


def over_white(image: Image.Image) -> Image.Image:
    """Composite an RGBA image on white, which gives RGB. Return images of other modes unchanged."""
    if image.mode != "RGBA":
        return image
    return Image.alpha_composite(Image.new("RGBA", image.size, "white"), image).convert("RGB")


def encode(image: Image.Image, **options) -> bytes:
    """Encode a Pillow image. The options are those of `Image.save`."""
    buffer = io.BytesIO()
    image.save(buffer, **options)
    return buffer.getvalue()
