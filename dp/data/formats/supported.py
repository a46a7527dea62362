"""The supported image formats, and the reasons for rejecting other files: the format, or the memory for decoding."""

from __future__ import annotations

import re

from PIL import Image, features

from dp.data.formats import tiff
from dp.data.formats.excerpt import ImageFile

HAS_AVIF = features.check("avif")
EXTENSIONS = ("jpg", "jpeg", "jfif", "png", "tif", "tiff", "webp", "bmp", "gif") + ("avif",) * HAS_AVIF
FORMATS = ("JPEG", "PNG", "TIFF", "WEBP", "BMP", "GIF") + (
    "AVIF",
) * HAS_AVIF  # the only decoders of Pillow that are used
SIGNATURES = {  # regular expressions for the first bytes
    "JPEG": rb"\xff\xd8\xff",
    "PNG": rb"\x89PNG\r\n\x1a\n",
    "TIFF": rb"II[*+]\0|MM\0[*+]",
    "GIF": rb"GIF8",
    "BMP": rb"BM.{4}\0{4}",
    "WEBP": rb"RIFF.{4}WEBP",
    "AVIF": rb".{4}ftypavi[fs]",
    "HEIC": rb".{4}ftyp(hei|hev|mif1|msf1)",
    "JPEG XL": rb"\xff\x0a|\0{3}\x0cJXL ",
    "JPEG 2000": rb"\0{3}\x0cjP  |\xff\x4f\xff\x51",
    "Photoshop": rb"8BPS",
}
HEIC_ADVICE = "HEIC is not supported; export it as JPEG"
AVIF_ADVICE = "the installed version of Pillow does not support AVIF; export it as JPEG or PNG"
BYTES_PER_PIXEL, EXTRA_BYTES = 8, 100_000_000  # memory limit of decoding
# Measured bytes per pixel with 8 bits per sample. WebP: two canvases and a copy. AVIF: planes, codec frames and a copy.
WEBP_BYTES, AVIF_BYTES = 12.3, {"RGB": 12, "RGBA": 14}


def why_too_large(image: Image.Image, size: tuple[int, int], scale: int) -> str | None:
    """Return why decoding would take too much memory, or None. size: width and height in the file. scale: the factor by
    which the decoder reduces the image.
    """
    pixels, channels = size[0] * size[1], len(image.getbands())
    needed = 4 * pixels // scale**2
    if image.format == "WEBP":
        needed = WEBP_BYTES * pixels
    elif image.format == "AVIF":
        needed = AVIF_BYTES[image.mode] * pixels
    elif image.format == "JPEG" and image.info.get("progressive"):
        needed += 2 * channels * pixels  # the decoder stores all coefficients
    elif image.format == "TIFF":
        needed += tiff.block_bytes(image)
    if needed > BYTES_PER_PIXEL * pixels + EXTRA_BYTES:
        return (
            f"{size[0]} x {size[1]} pixels: this {image.format} takes {needed / 1e6:,.0f} MB to decode; save it as PNG,"
            " or smaller"
        )
    return None


def why_unidentified(source: ImageFile) -> str:
    """Return why Pillow cannot open a file: the format by its first bytes, or the error of the decoder for it."""
    source.file.seek(0)
    head = source.file.read(16)
    kind = next((name for name, start in SIGNATURES.items() if re.match(start, head, re.DOTALL)), None)
    if kind is None:
        return f"not a readable image: its content is none of {', '.join(FORMATS)}"
    if kind == "HEIC":
        return HEIC_ADVICE
    if kind == "AVIF" and not HAS_AVIF:
        return AVIF_ADVICE
    if kind not in FORMATS:
        return f"{kind} is not supported; export it as JPEG or PNG"
    if kind == "TIFF":
        return _why_no_tiff(source)
    try:
        Image.OPEN[kind][0](source.open(), "")
    except Exception as error:  # as when decoding
        return f"damaged, or an unsupported kind of {kind}: {error}"
    return f"damaged {kind}"


def _why_no_tiff(source: ImageFile) -> str:
    try:
        tags = tiff.read_tags(source.file)
        if not tags.keys() >= tiff.NEEDED:
            return "damaged TIFF: the list of its tags is incomplete"
        return tiff.unsupported_reason(tags) or tiff.describe(tags)
    except Exception as error:  # as when decoding
        return f"damaged TIFF: {error}"
