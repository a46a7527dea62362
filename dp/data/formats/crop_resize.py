"""Crop a decoded image of any mode to its central square, resize it, rotate it upright, and convert it to sRGB.

The image is converted to 8 bits and resized horizontally in strips of rows, so that beside the decoded image only one
strip and the narrow result take memory. Rotation and color conversion then run on the small image. Pillow's own
`resize` works in the same two passes.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageCms

from dp.data.codec import over_white
from dp.data.formats.color import convert_primaries, tone_curve

STRIP_PIXELS = 1 << 18
BICUBIC = Image.Resampling.BICUBIC
TRANSPOSES = {  # EXIF orientation -> the operation that makes the image upright
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
# EXIF orientations that swap width and height, reverse the columns, and reverse the rows.
TRANSPOSED, REVERSED_COLUMNS, REVERSED_ROWS = (5, 6, 7, 8), (2, 3, 7, 8), (3, 4, 6, 7)


@dataclass
class ImageInfo:
    """The facts needed to interpret the samples of a decoded image.

    orientation: the EXIF orientation. transform: from the color space of an embedded profile to sRGB. gamma and
    primaries: those of a PNG, or None for those of sRGB. transparent_color: the gray level or RGB color that a PNG
    defines as transparent. depth: bits per sample in the file. is_inverted: whether 0 is white in 16-bit grayscale.
    low_bytes: an image of the low bytes of 16-bit RGB samples, if they are needed. scale: the factor by which the
    decoder has reduced the image.
    """

    orientation: int = 1
    transform: ImageCms.ImageCmsTransform | None = None
    gamma: float | None = None
    primaries: tuple[float, ...] | None = None
    transparent_color: tuple[int, ...] | None = None
    depth: int = 16
    is_inverted: bool = False
    low_bytes: Image.Image | None = None
    scale: int = 1


def center_crop_resize(image: Image.Image, info: ImageInfo, image_size: int, size: tuple[int, int]) -> Image.Image:
    """Return the central square of an image as L, RGB or RGBA, upright, resized with antialiasing and in sRGB. size:
    the width and height in the file.
    """
    small = crop_resize(image, info, image_size, center_square(size, image_size, info.orientation))
    if small.mode == "RGBa":
        small = small.convert("RGBA")
    if info.orientation in TRANSPOSES:
        small = small.transpose(TRANSPOSES[info.orientation])
    return to_srgb(small, info, is_grayscale(image))


def color_mode(image: Image.Image) -> str:
    """Return the mode that a color profile must describe to be applicable to this image."""
    return "CMYK" if image.mode == "CMYK" else "L" if is_grayscale(image) else "RGB"


def is_grayscale(image: Image.Image) -> bool:
    """Return whether the mode of a decoded image is a grayscale one."""
    return image.mode in ("1", "L", "LA") or image.mode.startswith("I;16")


def center_square(size: tuple[int, int], image_size: int, orientation: int = 1) -> tuple[float, float, float]:
    """Return left, top and side of the central square, in pixels of the stored image. It is placed so that the crop
    starts at a whole pixel of the upright, resized image.
    """
    side = min(size)
    upright = size[::-1] if orientation in TRANSPOSED else size
    starts = [round((length - side) * image_size / side / 2) * side / image_size for length in upright]
    left, top = starts[::-1] if orientation in TRANSPOSED else starts
    if orientation in REVERSED_COLUMNS:
        left = size[0] - side - left
    if orientation in REVERSED_ROWS:
        top = size[1] - side - top
    return left, top, side


def crop_resize(
    image: Image.Image, info: ImageInfo, image_size: int, square: tuple[float, float, float]
) -> Image.Image:
    """Crop `image` to `square` (left, top, side) and resize it to image_size x image_size, as L, RGB, RGBa or CMYK."""
    left, top, side = (length / info.scale for length in square)
    reach = math.ceil(2 * max(side / image_size, 1)) + 1  # support of the bicubic filter
    x0, x1 = max(0, math.floor(left) - reach), min(image.width, math.ceil(left + side) + reach)
    y0, y1 = max(0, math.floor(top) - reach), min(image.height, math.ceil(top + side) + reach)
    rows, tall = max(1, STRIP_PIXELS // (x1 - x0)), None
    for y in range(y0, y1, rows):
        box = (x0, y, x1, min(y + rows, y1))
        strip = to_8_bits(image.crop(box), info, info.low_bytes and info.low_bytes.crop(box))
        across = (left - x0, 0, left - x0 + side, strip.height)
        narrow = strip.resize((image_size, strip.height), BICUBIC, box=across)
        tall = tall or Image.new(narrow.mode, (image_size, y1 - y0))
        tall.paste(narrow, (0, y - y0))
    return tall.resize((image_size, image_size), BICUBIC, box=(0, top - y0, image_size, top - y0 + side))


def to_8_bits(strip: Image.Image, info: ImageInfo, low_bytes: Image.Image | None = None) -> Image.Image:
    """Convert a strip of any mode to 8 bits and sRGB's tone curve: to L, RGB or CMYK, or to RGBa (premultiplied alpha)
    if it has transparency.
    """
    alpha = None
    if strip.mode == "CMYK":
        return strip
    if strip.has_transparency_data:
        is_gray, strip = strip.mode == "LA", strip.convert("RGBA")
        alpha, strip = strip.getchannel("A"), strip.getchannel("R") if is_gray else strip.convert("RGB")
        low_bytes = low_bytes and low_bytes.convert("RGB")
    if strip.mode.startswith("I;16"):
        samples, steps = np.asarray(strip), 1 << info.depth
        if info.is_inverted:
            samples = steps - 1 - samples
    else:
        strip = strip if strip.mode in ("L", "RGB") else strip.convert("L" if strip.mode == "1" else "RGB")
        samples, steps = np.asarray(strip), 256
        if low_bytes is not None:
            samples, steps = samples.astype(np.uint16) << 8 | np.asarray(low_bytes), 1 << 16
    if info.transparent_color is not None:
        matches = samples == info.transparent_color
        is_transparent = matches.all(-1) if matches.ndim == 3 else matches
        alpha = Image.fromarray(np.where(is_transparent, 0, 255).astype(np.uint8))
    if steps > 256 or info.gamma is not None:
        strip = Image.fromarray(tone_curve(steps, info.gamma)[samples])
    if alpha is None:
        return strip
    strip = strip.convert("RGB")
    strip.putalpha(alpha)
    return strip.convert("RGBa")


def to_srgb(small: Image.Image, info: ImageInfo, is_gray: bool) -> Image.Image:
    """Convert an L, RGB, RGBA or CMYK image to L, RGB or RGBA in sRGB. Alpha is unchanged."""
    alpha = small.getchannel("A") if small.mode == "RGBA" else None
    colors = small if small.mode in ("L", "CMYK") else small.convert("RGB")
    if info.transform is not None:
        colors = colors.getchannel("R") if is_gray and colors.mode == "RGB" else colors
        colors = ImageCms.applyTransform(colors.convert(info.transform.input_mode), info.transform)
    elif info.primaries is not None and not is_gray:
        colors = convert_primaries(colors, info.primaries)
    if alpha is not None or colors.mode == "CMYK":
        colors = colors.convert("RGB")
    if alpha is not None:
        colors.putalpha(alpha)
    return colors


def to_mode(image: Image.Image, mode: str) -> Image.Image:
    """Convert an L, RGB or RGBA image to `mode`. It is composited on white if `mode` has no alpha channel."""
    return image.convert(mode) if mode == "RGBA" else over_white(image).convert(mode)
