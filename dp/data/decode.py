"""Decode an untrusted image file to upright, cropped uint8 pixels in sRGB, or raise `InvalidImage` with a reason for
the person who supplied it.

Neither the name nor the header is trusted. The file's size and type are checked before it is opened, and the image's
before it is decoded. Decoding takes at most 8 bytes per pixel plus 100 MB of memory; images that need more are
rejected.
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
from dp.data.formats.crop_resize import TRANSPOSED, ImageInfo, center_crop_resize, color_mode, is_grayscale, to_mode
from dp.data.formats.excerpt import ImageFile
from dp.data.formats.metadata import END_OF_IMAGE, read_metadata, read_orientation
from dp.data.formats.supported import (
    AVIF_ADVICE,
    EXTENSIONS,
    FORMATS,
    HAS_AVIF,
    HEIC_ADVICE,
    why_too_large,
    why_unidentified,
)
from dp.data.formats.truncated_jpeg import is_nearly_complete
from dp.data.limits import MAX_PIXELS

DRAFT_PIXELS = 10_000_000  # JPEGs with more pixels are decoded at reduced size, if that is large enough
FILL_BYTES = 1 << 16  # appended to a truncated JPEG, to find the pixels that depend on the missing bytes
MAX_MISSING = 0.01  # fraction of the pixels that may depend on them
SYSTEM_FILES = ("__macosx", "thumbs.db", "desktop.ini")  # ignored, as are names that begin with a dot
TRUNCATED = "damaged: the file ends before the image does"


class InvalidImage(Exception):
    """A file is rejected. The message is a short reason for the person who supplied it."""


class DecodedImage(NamedTuple):
    """A decoded image, uint8 [image_size, image_size, C], and the width, height and kind of the original. The kind is
    "color", "grayscale" or "with transparency".
    """

    pixels: np.ndarray
    width: int
    height: int
    kind: str


def decode(path: Path, image_size: int, mode: str, exts: Sequence[str] = EXTENSIONS) -> np.ndarray:
    """Decode an image file to uint8 [image_size, image_size, C], upright, cropped and resized. Raises InvalidImage."""
    if os.path.isdir(path):  # a link, which could form a cycle or lead out of the folder
        raise InvalidImage("a link to a folder, which is not followed; copy the folder here")
    check_name(path.name, exts)
    with open_file(path) as file:
        return decode_image(file, image_size, mode).pixels


def is_ignored(name: str) -> bool:
    """Return whether a path is a hidden or system file, or is inside a hidden folder."""
    parts = [part for part in name.lower().split("/") if part.strip(".")]
    return any(part.startswith(".") or part in SYSTEM_FILES for part in parts)


def check_name(name: str, exts: Sequence[str] = EXTENSIONS) -> None:
    """Raise InvalidImage if the name shows that the file is not a supported image."""
    suffix = os.path.splitext(name)[1].lower().lstrip(".")
    if name.startswith("._"):
        raise InvalidImage("a macOS resource file, not an image")
    if suffix in ("heic", "heif"):
        raise InvalidImage(HEIC_ADVICE)
    if suffix == "avif" and not HAS_AVIF:
        raise InvalidImage(AVIF_ADVICE)
    if suffix not in {ext.lower().lstrip(".") for ext in exts}:
        raise InvalidImage(f"not a supported image type ({', '.join(exts)})")


def open_file(path: Path) -> BinaryIO:
    """Open a regular, non-empty file. Raises InvalidImage for anything else; opening a pipe could block forever."""
    try:
        status = path.stat()
        if not stat.S_ISREG(status.st_mode):
            raise InvalidImage("not a regular file (a pipe or a device)")
        if status.st_size == 0:
            raise InvalidImage("the file is empty")
        return path.open("rb")
    except PermissionError:
        raise InvalidImage("no permission to read it") from None
    except OSError as error:
        raise InvalidImage(f"cannot be opened: {error.strerror}") from None


def decode_image(file: BinaryIO, image_size: int, mode: str, max_pixels: int = MAX_PIXELS) -> DecodedImage:
    """Decode the image in `file`, or its first frame. Raises InvalidImage."""
    try:
        source = read_metadata(file)
    except OSError as error:
        raise InvalidImage(f"cannot be read: {error.strerror}") from None
    except ValueError as error:
        raise InvalidImage(str(error)) from None
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # sizes are checked here, and odd metadata does not matter
        try:
            return _decode(source, b"", image_size, mode, max_pixels)
        except _Truncated:
            return _decode_truncated(source, image_size, mode, max_pixels)


class _Truncated(Exception):
    """A JPEG file ends before its image does."""


def _decode_truncated(source: ImageFile, image_size: int, mode: str, max_pixels: int) -> DecodedImage:
    """Decode a JPEG that lacks its last bytes, if nearly all pixels are independent of them: the image is decoded with
    two different endings and compared. Raises InvalidImage.
    """
    cut = source.without_last_marker()
    endings = (END_OF_IMAGE, Random(0).randbytes(FILL_BYTES).replace(b"\xff", b"\0") + END_OF_IMAGE)
    try:
        image, other = (_decode(cut, ending, image_size, mode, max_pixels) for ending in endings)
    except _Truncated:
        raise InvalidImage(TRUNCATED) from None
    differing = (image.pixels != other.pixels).any(-1).mean()
    if differing > MAX_MISSING or not is_nearly_complete(cut.open()):
        raise InvalidImage(TRUNCATED)
    return image


def _decode(source: ImageFile, ending: bytes, image_size: int, mode: str, max_pixels: int) -> DecodedImage:
    try:
        with Image.open(source.open(ending), formats=FORMATS) as image:
            if image.width * image.height > max_pixels:
                raise InvalidImage(f"{image.width} x {image.height} pixels, more than {max_pixels:,}")
            return _decode_opened(image, source, image_size, mode)
    except Image.UnidentifiedImageError:
        raise InvalidImage(why_unidentified(source)) from None
    except Image.DecompressionBombError:
        raise InvalidImage(f"more than {max_pixels:,} pixels") from None
    except InvalidImage:
        raise
    except MemoryError:
        raise InvalidImage("too large for the available memory") from None
    except Exception as error:  # Pillow's decoders raise almost any exception for damaged files
        if "truncated" in str(error).lower():
            raise (_Truncated() if source.is_jpeg else InvalidImage(TRUNCATED)) from None
        raise InvalidImage(f"damaged or unsupported: {error}") from None


def _decode_opened(image: Image.Image, source: ImageFile, image_size: int, mode: str) -> DecodedImage:
    """Check and decode an opened image."""
    info = ImageInfo(
        read_orientation(source.exif or image.info.get("exif", b"")),
        transparent_color=source.transparent_color,
        depth=source.depth,
    )
    if image.format == "TIFF":
        if reason := tiff.unsupported_reason(image.tag_v2):
            raise InvalidImage(reason)
        info.depth, info.is_inverted, info.orientation = tiff.correct(image)
    size = image.size
    info.transform = profile_transform(source.profile or image.info.get("icc_profile", b""), color_mode(image))
    if info.transform is None and not is_srgb(source.gamma, source.primaries):
        info.gamma, info.primaries = source.gamma, source.primaries
    if image.format == "JPEG" and size[0] * size[1] > DRAFT_PIXELS:
        image.draft(None, (2 * image_size, 2 * image_size))
        info.scale = image.decoderconfig[0]
    if reason := why_too_large(image, size, info.scale):
        raise InvalidImage(reason)
    if image.format in ("WEBP", "AVIF"):
        image.load_prepare = partial(_release_decoder, image)
    image.load()  # decodes the first frame
    if source.depth == 16 and image.mode in ("RGB", "RGBA") and (info.transparent_color or info.gamma):
        info.low_bytes = _low_bytes(source)
    small = to_mode(center_crop_resize(image, info, image_size, size), mode)
    pixels = np.asarray(small).reshape(image_size, image_size, len(mode))
    return DecodedImage(pixels, *(size[::-1] if info.orientation in TRANSPOSED else size), _kind_of(image, source))


def _low_bytes(source: ImageFile) -> Image.Image:
    """Return the low bytes of the samples of a 16-bit PNG. Pillow itself keeps only the high bytes."""
    image = Image.open(source.open(), formats=["PNG"])
    image.tile = [tile._replace(args=tile.args.replace(";16B", ";16L")) for tile in image.tile]
    image.load()
    return image


def _release_decoder(image: Image.Image) -> None:
    """Free the decoder and its buffers before Pillow copies the decoded pixels."""
    image._decoder = None
    type(image).load_prepare(image)


def _kind_of(image: Image.Image, source: ImageFile) -> str:
    if image.has_transparency_data or source.transparent_color is not None:
        return "with transparency"
    return "grayscale" if is_grayscale(image) else "color"
