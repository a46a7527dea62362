"""One image file from anywhere -> upright, cropped uint8 pixels in sRGB, or `Refused` with the reason in words for the
person who put it there.

Neither the name nor the header is trusted. A file's size and kind are checked before it is opened, an image's before it
is decoded. Decoding takes at most 8 bytes per pixel plus 100 MB; an image that needs more is rejected.
"""

from __future__ import annotations

import os
import stat
import warnings
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from random import Random
from typing import BinaryIO, NamedTuple

import numpy as np
from PIL import Image

from dp.data.formats import tiff
from dp.data.formats.color import is_srgb, profile_transform
from dp.data.formats.crop_resize import SIDEWAYS, Look, colors_of, is_grey, small_square, to_mode
from dp.data.formats.excerpt import Source
from dp.data.formats.metadata import END_OF_IMAGE, orientation, read_metadata
from dp.data.formats.supported import (
    AVIF_ADVICE,
    EXTENSIONS,
    FORMATS,
    HAS_AVIF,
    HEIC_ADVICE,
    too_much_memory,
    why_unidentified,
)
from dp.data.formats.truncated_jpeg import lacks_only_its_last_bytes

MAX_PIXELS = 100_000_000
LARGE = 10_000_000  # pixels of a JPEG, from which on it is decoded at half its size or less where that suffices
GUESSED_BYTES = 1 << 16  # put in the place of what a JPEG lacks
ENDS_EARLY = "damaged: the file ends before the image does"
MAX_MISSING = 0.01  # of the pixels may depend on these


class Refused(Exception):
    """A file is rejected. The message gives the reason in a few words."""


class Picture(NamedTuple):
    """A decoded file: uint8 [image_size, image_size, C], upright and cropped; and its size and kind as it was found."""

    pixels: np.ndarray
    width: int
    height: int
    kind: str


def decode(path: Path, image_size: int, mode: str, exts: Sequence[str] = EXTENSIONS) -> np.ndarray:
    """One image file -> uint8 [image_size, image_size, C], upright and cropped. Raises Refused with the reason."""
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
    if suffix == "avif" and not HAS_AVIF:
        raise Refused(AVIF_ADVICE)
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
    """The image in `file`, of which the first frame is taken. Raises Refused with the reason."""
    try:
        source = read_metadata(file)
    except OSError as error:
        raise Refused(f"cannot be read: {error.strerror}") from None
    except ValueError as error:
        raise Refused(str(error)) from None
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # size is checked here; metadata that Pillow finds odd does not matter
        try:
            return _decode(source, b"", image_size, mode, max_pixels)
        except _EndsEarly:
            return _complete(source, image_size, mode, max_pixels)


class _EndsEarly(Exception):
    """A JPEG file that ends before its image does."""


def _complete(source: Source, image_size: int, mode: str, max_pixels: int) -> Picture:
    """A JPEG without its last bytes, provided that they do not show: whatever follows, the same pixels come out."""
    cut = source.without_last_marker()
    endings = (END_OF_IMAGE, Random(0).randbytes(GUESSED_BYTES).replace(b"\xff", b"\0") + END_OF_IMAGE)
    try:
        picture, other = (_decode(cut, ending, image_size, mode, max_pixels) for ending in endings)
    except _EndsEarly:
        raise Refused(ENDS_EARLY) from None
    differing = (picture.pixels != other.pixels).any(-1).mean()
    if differing > MAX_MISSING or not lacks_only_its_last_bytes(cut.open()):
        raise Refused(ENDS_EARLY)
    return picture


def _decode(source: Source, ending: bytes, image_size: int, mode: str, max_pixels: int) -> Picture:
    try:
        with Image.open(source.open(ending), formats=FORMATS) as image:
            if image.width * image.height > max_pixels:
                raise Refused(f"{image.width} x {image.height} pixels, more than {max_pixels:,}")
            return _picture(image, source, image_size, mode)
    except Image.UnidentifiedImageError:
        raise Refused(why_unidentified(source)) from None
    except Image.DecompressionBombError:
        raise Refused(f"more than {max_pixels:,} pixels") from None
    except Refused:
        raise
    except MemoryError:
        raise Refused("too large for the memory that is free") from None
    except Exception as error:  # Pillow's decoders answer a damaged file with almost any exception
        if "truncated" in str(error).lower():
            raise (_EndsEarly() if source.is_jpeg else Refused(ENDS_EARLY)) from None
        raise Refused(f"damaged, or of a kind that is not supported: {error}") from None


def _picture(image: Image.Image, source: Source, image_size: int, mode: str) -> Picture:
    """An opened image -> its pixels, width, height and kind."""
    look = Look(orientation(source.exif or image.info.get("exif", b"")), clear=source.clear, depth=source.depth)
    if image.format == "TIFF":
        if reason := tiff.problem(image.tag_v2):
            raise Refused(reason)
        look.depth, look.is_inverted, look.orientation = tiff.correct(image)
    size = image.size
    look.transform = profile_transform(source.profile or image.info.get("icc_profile", b""), colors_of(image))
    if look.transform is None and not is_srgb(source.gamma, source.primaries):
        look.gamma, look.primaries = source.gamma, source.primaries
    if image.format == "JPEG" and size[0] * size[1] > LARGE:
        image.draft(None, (2 * image_size, 2 * image_size))
        look.scale = image.decoderconfig[0]
    if reason := too_much_memory(image, size, look.scale):
        raise Refused(reason)
    if image.format in ("WEBP", "AVIF"):
        image.load_prepare = partial(_let_decoder_go, image)
    image.load()  # decodes the first frame
    if source.depth == 16 and image.mode in ("RGB", "RGBA") and (look.clear or look.gamma):
        look.low = _lower_bits(source)
    small = to_mode(small_square(image, look, image_size, size), mode)
    pixels = np.asarray(small).reshape(image_size, image_size, len(mode))
    return Picture(pixels, *(size[::-1] if look.orientation in SIDEWAYS else size), kind_of(image, source))


def _lower_bits(source: Source) -> Image.Image:
    """The lower 8 bits of the samples of a 16-bit PNG, of which Pillow keeps the upper ones."""
    image = Image.open(source.open(), formats=["PNG"])
    image.tile = [tile._replace(args=tile.args.replace(";16B", ";16L")) for tile in image.tile]
    image.load()
    return image


def _let_decoder_go(image: Image.Image) -> None:
    """Free what the decoder still holds once it has handed out the pixels, before Pillow copies them."""
    image._decoder = None
    type(image).load_prepare(image)


def kind_of(image: Image.Image, source: Source) -> str:
    if image.has_transparency_data or source.clear is not None:
        return "with transparency"
    return "grayscale" if is_grey(image) else "color"
