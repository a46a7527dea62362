"""A decoded image of any mode and size -> its centered square, small, upright and in sRGB.

A strip of rows at a time is brought to 8 bits and resized in width, so that beside the decoded image only a strip and
the narrow result take memory; turning and color conversion follow on the small image. Pillow's own `resize` works in
the same two passes.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageCms

from dp.data.codec import over_white
from dp.data.formats.color import by_primaries, tone_curve

STRIP_PIXELS = 1 << 18
BICUBIC = Image.Resampling.BICUBIC
TURNS = {  # EXIF orientation -> the turn that sets the image upright
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
SIDEWAYS, FROM_THE_RIGHT, FROM_THE_BOTTOM = (5, 6, 7, 8), (2, 3, 7, 8), (3, 4, 6, 7)


@dataclass
class Look:
    """How to read the samples of an image as colors.

    transform: from the color space of an embedded profile to sRGB. gamma and primaries: PNG's, None for sRGB's.
    clear: the sample or samples that a PNG marks as transparent. depth: bits per sample in the file. low: an image with
    the lower 8 bits of 16-bit colors, where they matter. scale: by how much the decoder has reduced the image.
    """

    orientation: int = 1
    transform: ImageCms.ImageCmsTransform | None = None
    gamma: float | None = None
    primaries: tuple[float, ...] | None = None
    clear: tuple[int, ...] | None = None
    depth: int = 16
    is_inverted: bool = False  # 0 is white, in 16-bit grey
    low: Image.Image | None = None
    scale: int = 1


def small_square(image: Image.Image, look: Look, image_size: int, size: tuple[int, int]) -> Image.Image:
    """The centered square, resized with antialiasing -> L, RGB or RGBA. size: of the image as it is in the file."""
    small = resized(image, look, image_size, center(size, image_size, look.orientation))
    if small.mode == "RGBa":
        small = small.convert("RGBA")
    if look.orientation in TURNS:
        small = small.transpose(TURNS[look.orientation])
    return to_srgb(small, look, is_grey(image))


def colors_of(image: Image.Image) -> str:
    """The mode that a color profile of this image must describe."""
    return "CMYK" if image.mode == "CMYK" else "L" if is_grey(image) else "RGB"


def is_grey(image: Image.Image) -> bool:
    return image.mode in ("1", "L", "LA") or image.mode.startswith("I;16")


def center(size: tuple[int, int], image_size: int, orientation: int = 1) -> tuple[float, float, float]:
    """Left, top and side of the square in the image as stored, so that the upright image, resized, is cropped at whole
    pixels.
    """
    side = min(size)
    upright = size[::-1] if orientation in SIDEWAYS else size
    starts = [round((length - side) * image_size / side / 2) * side / image_size for length in upright]
    left, top = starts[::-1] if orientation in SIDEWAYS else starts
    if orientation in FROM_THE_RIGHT:
        left = size[0] - side - left
    if orientation in FROM_THE_BOTTOM:
        top = size[1] - side - top
    return left, top, side


def resized(image: Image.Image, look: Look, image_size: int, square: tuple[float, float, float]) -> Image.Image:
    """The square of `image` -> L, RGB, RGBa or CMYK, image_size x image_size."""
    left, top, side = (length / look.scale for length in square)
    reach = math.ceil(2 * max(side / image_size, 1)) + 1  # of the bicubic filter
    x0, x1 = max(0, math.floor(left) - reach), min(image.width, math.ceil(left + side) + reach)
    y0, y1 = max(0, math.floor(top) - reach), min(image.height, math.ceil(top + side) + reach)
    rows, tall = max(1, STRIP_PIXELS // (x1 - x0)), None
    for y in range(y0, y1, rows):
        box = (x0, y, x1, min(y + rows, y1))
        strip = eight_bits(image.crop(box), look, look.low and look.low.crop(box))
        across = (left - x0, 0, left - x0 + side, strip.height)
        narrow = strip.resize((image_size, strip.height), BICUBIC, box=across)
        tall = tall or Image.new(narrow.mode, (image_size, y1 - y0))
        tall.paste(narrow, (0, y - y0))
    return tall.resize((image_size, image_size), BICUBIC, box=(0, top - y0, image_size, top - y0 + side))


def eight_bits(strip: Image.Image, look: Look, low: Image.Image | None = None) -> Image.Image:
    """Any mode -> L, RGB or CMYK, or RGBa where it has transparency; PNG's gamma is applied."""
    alpha = None
    if strip.mode == "CMYK":
        return strip
    if strip.has_transparency_data:
        grey, strip = strip.mode == "LA", strip.convert("RGBA")
        alpha, strip = strip.getchannel("A"), strip.getchannel("R") if grey else strip.convert("RGB")
        low = low and low.convert("RGB")
    if strip.mode.startswith("I;16"):
        samples, steps = np.asarray(strip), 1 << look.depth
        if look.is_inverted:
            samples = steps - 1 - samples
    else:
        strip = strip if strip.mode in ("L", "RGB") else strip.convert("L" if strip.mode == "1" else "RGB")
        samples, steps = np.asarray(strip), 256
        if low is not None:
            samples, steps = samples.astype(np.uint16) << 8 | np.asarray(low), 1 << 16
    if look.clear is not None:
        clear = samples == look.clear
        alpha = Image.fromarray(np.where(clear.all(-1) if clear.ndim == 3 else clear, 0, 255).astype(np.uint8))
    if steps > 256 or look.gamma is not None:
        strip = Image.fromarray(tone_curve(steps, look.gamma)[samples])
    if alpha is None:
        return strip
    strip = strip.convert("RGB")
    strip.putalpha(alpha)
    return strip.convert("RGBa")


def to_srgb(small: Image.Image, look: Look, grey: bool) -> Image.Image:
    """L, RGB, RGBA or CMYK -> L, RGB or RGBA in sRGB; transparency stays as it is."""
    alpha = small.getchannel("A") if small.mode == "RGBA" else None
    colors = small if small.mode in ("L", "CMYK") else small.convert("RGB")
    if look.transform is not None:
        colors = colors.getchannel("R") if grey and colors.mode == "RGB" else colors
        colors = ImageCms.applyTransform(colors.convert(look.transform.input_mode), look.transform)
    elif look.primaries is not None and not grey:
        colors = by_primaries(colors, look.primaries)
    if alpha is not None or colors.mode == "CMYK":
        colors = colors.convert("RGB")
    if alpha is not None:
        colors.putalpha(alpha)
    return colors


def to_mode(image: Image.Image, mode: str) -> Image.Image:
    """L, RGB or RGBA -> `mode`; transparency is laid over white where `mode` has none."""
    return image.convert(mode) if mode == "RGBA" else over_white(image).convert(mode)
