"""The image formats that are read, and why a file is not: a kind that is not supported, or too much memory."""

from __future__ import annotations

import re

from PIL import Image, features

from dp.data.formats import tiff
from dp.data.formats.excerpt import Source

HAS_AVIF = features.check("avif")
EXTENSIONS = ("jpg", "jpeg", "jfif", "png", "tif", "tiff", "webp", "bmp", "gif") + ("avif",) * HAS_AVIF
FORMATS = ("JPEG", "PNG", "TIFF", "WEBP", "BMP", "GIF") + ("AVIF",) * HAS_AVIF  # that an untrusted file may reach
SIGNATURES = {  # how a file of each format begins
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
HEIC_ADVICE = "HEIC is not read here; export it as JPEG"
AVIF_ADVICE = "AVIF is not supported by the Pillow that is installed here; export it as JPEG or PNG"
BYTES_PER_PIXEL, BYTES_BESIDE = 8, 100_000_000  # that decoding may take
# Measured per pixel, with 8 bits per sample: two canvases and a copy; planes, frames of the codec and a copy.
WEBP_BYTES, AVIF_BYTES = 12.3, {"RGB": 12, "RGBA": 14}


def too_much_memory(image: Image.Image, size: tuple[int, int], scale: int) -> str | None:
    """Return why decoding would take too much memory. size: in the file; scale: the decoder's reduction factor."""
    pixels, channels = size[0] * size[1], len(image.getbands())
    needed = 4 * pixels // scale**2
    if image.format == "WEBP":
        needed = WEBP_BYTES * pixels
    elif image.format == "AVIF":
        needed = AVIF_BYTES[image.mode] * pixels
    elif image.format == "JPEG" and image.info.get("progressive"):
        needed += 2 * channels * pixels  # all coefficients
    elif image.format == "TIFF":
        needed += tiff.block_bytes(image)
    if needed > BYTES_PER_PIXEL * pixels + BYTES_BESIDE:
        what = f"{size[0]} x {size[1]} pixels"
        return f"{what}: this {image.format} takes {needed / 1e6:,.0f} MB to decode; save it as PNG, or smaller"
    return None


def why_unidentified(source: Source) -> str:
    """Return why Pillow cannot open it, as the decoder for its content reports it."""
    source.file.seek(0)
    head = source.file.read(16)
    kind = next((name for name, start in SIGNATURES.items() if re.match(start, head, re.DOTALL)), None)
    if kind is None:
        return f"not a picture, whatever its name says: its content is none of {', '.join(FORMATS)}"
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
        return f"damaged, or {kind} of a kind that is not supported: {error}"
    return f"damaged {kind}"


def _why_no_tiff(source: Source) -> str:
    try:
        tags = tiff.read_tags(source.file)
        if not tags.keys() >= tiff.NEEDED:
            return "damaged TIFF: the list of its tags is incomplete"
        return tiff.problem(tags) or tiff.description(tags)
    except Exception as error:  # as when decoding
        return f"damaged TIFF: {error}"
