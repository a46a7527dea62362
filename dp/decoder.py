"""One picture file from anywhere -> upright, cropped uint8 pixels, or `Refused` with the reason in words for the person
who put it there.

Nothing is believed: not the name, not the header. A file's size and kind are looked at before it is opened, a picture's
before it is decoded.
"""

from __future__ import annotations

import os
import stat
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import BinaryIO, NamedTuple

import numpy as np
from PIL import ExifTags, Image

from dp.images import over_white

EXTENSIONS = ("jpg", "jpeg", "jfif", "png", "tif", "tiff", "webp", "bmp", "gif")
FORMATS = ("JPEG", "PNG", "TIFF", "WEBP", "BMP", "GIF")  # the decoders that an untrusted file may reach
HEIC_ADVICE = "HEIC is not read here; export it as JPEG"
MAX_PIXELS = 100_000_000


class Refused(Exception):
    """Why a file is not used, in a few words for the person who put it there."""


class Picture(NamedTuple):
    """A decoded file: uint8 [image_size, image_size, C], upright and cropped; and its size and kind as it was found."""

    pixels: np.ndarray
    width: int
    height: int
    kind: str


def decode(path: Path, image_size: int, mode: str, exts: Sequence[str] = EXTENSIONS) -> np.ndarray:
    """One picture file -> uint8 [image_size, image_size, C], upright and cropped. Raises Refused with the reason."""
    if os.path.isdir(path):  # could lead round in a circle, or out of the folder that was named
        raise Refused("a link to a folder, which is not followed; copy the folder here")
    check_name(path.name, exts)
    with open_file(path) as file:
        return read_picture(file, image_size, mode).pixels


def check_name(name: str, exts: Sequence[str] = EXTENSIONS) -> None:
    """Raises Refused where the name already says that this is no picture to be read here."""
    suffix = os.path.splitext(name)[1].lower().lstrip(".")
    if name.startswith("._"):
        raise Refused("a macOS side file, not a picture")
    if suffix in ("heic", "heif"):
        raise Refused(HEIC_ADVICE)
    if suffix not in {ext.lower().lstrip(".") for ext in exts}:
        raise Refused(f"not one of the picture types read here ({', '.join(exts)})")


def open_file(path: Path) -> BinaryIO:
    """An ordinary file that holds something; nothing else is opened, since a pipe might never answer."""
    try:
        status = path.stat()
        if not stat.S_ISREG(status.st_mode):
            raise Refused("not an ordinary file, but a pipe, a device or the like")
        if status.st_size == 0:
            raise Refused("the file is empty")
        return path.open("rb")
    except PermissionError:
        raise Refused("no permission to read it") from None
    except OSError as error:
        raise Refused(f"cannot be opened: {error.strerror}") from None


def read_picture(file: BinaryIO, image_size: int, mode: str, max_pixels: int = MAX_PIXELS) -> Picture:
    """The picture in `file`, whose first frame is taken. Raises Refused with the reason."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # size is checked here; metadata that Pillow finds odd does not matter
            with Image.open(file, formats=FORMATS) as image:
                if image.width * image.height > max_pixels:
                    raise Refused(f"{image.width} x {image.height} pixels, more than {max_pixels:,}")
                image.load()  # decodes the first frame
                turned = upright(image)
                pixels = np.asarray(square(convert(turned, mode), image_size))
                return Picture(pixels.reshape(image_size, image_size, len(mode)), *turned.size, kind_of(image))
    except Image.UnidentifiedImageError:
        file.seek(0)
        if file.read(12)[4:] in (b"ftypheic", b"ftypheix", b"ftypmif1", b"ftypmsf1"):
            raise Refused(HEIC_ADVICE) from None
        raise Refused(f"not a picture, whatever its name says: its content is none of {', '.join(FORMATS)}") from None
    except Image.DecompressionBombError:
        raise Refused(f"more than {max_pixels:,} pixels") from None
    except Refused:
        raise
    except Exception as error:  # Pillow's decoders answer a damaged file with almost any exception
        raise Refused(f"damaged: {error}") from None


def kind_of(image: Image.Image) -> str:
    if image.has_transparency_data:
        return "with transparency"
    return "grey" if image.mode[0] in "1LIF" and image.mode != "LAB" else "colour"


def convert(image: Image.Image, mode: str) -> Image.Image:
    """Any mode -> 'L', 'RGB' or 'RGBA'. 16-bit greys are scaled to 8 bits; transparency is laid over white where `mode`
    has none.
    """
    if image.mode.startswith("I"):
        wide = np.asarray(image)
        if wide.min() < 0 or wide.max() > 65535:
            raise Refused("32-bit integer pixels; export it with 8 or 16 bits")
        image = Image.fromarray((wide / 257).round().astype(np.uint8), "L")  # 65535 = 257 * 255
    elif image.mode == "F":
        raise Refused("floating-point pixels; export it with 8 or 16 bits")
    elif image.mode == "LAB":
        image = image.convert("RGB")  # the only way out of it that Pillow knows
    if mode == "RGBA":
        return image.convert("RGBA")
    if image.has_transparency_data:
        image = over_white(image.convert("RGBA"))
    return image.convert(mode)


TURNS = {  # EXIF orientation -> what puts the picture upright
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


def upright(image: Image.Image) -> Image.Image:
    """Turned as EXIF says. ImageOps.exif_transpose also rewrites all of the metadata, and fails on an odd entry."""
    try:
        turn = TURNS.get(image.getexif().get(ExifTags.Base.Orientation))
    except Exception:  # unreadable metadata says nothing
        turn = None
    return image if turn is None else image.transpose(turn)


def square(image: Image.Image, image_size: int) -> Image.Image:
    """The centre square, resized with antialiasing: the same as resizing the short side first, without the cost of a
    very long other side.
    """
    side = min(image.size)
    # whole pixels of the resized picture
    left, top = (round((length - side) * image_size / side / 2) * side / image_size for length in image.size)
    return image.resize((image_size, image_size), Image.Resampling.BICUBIC, box=(left, top, left + side, top + side))
