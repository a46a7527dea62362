"""Correct what Pillow decodes wrongly in TIFF files, and give reasons for rejecting unsupported ones."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, BinaryIO

from PIL import Image
from PIL.TiffImagePlugin import ImageFileDirectory_v2

from dp.system.validation import quote

WIDTH, HEIGHT, BITS, COMPRESSION, PHOTOMETRIC, ORIENTATION, SAMPLES = 256, 257, 258, 259, 262, 274, 277
STRIP_ROWS, PLANAR, TILE_WIDTH, TILE_ROWS, SAMPLE_FORMAT = 278, 284, 322, 323, 339
WHITE_IS_ZERO, RGB, CMYK, YCBCR = 0, 2, 5, 6
NEEDED = {WIDTH, HEIGHT, PHOTOMETRIC}  # required tags
ADVICE = "export it with 8 or 16 bits per sample, or as PNG"


def read_tags(file: BinaryIO) -> Mapping[int, Any]:
    """Return the tags of the first image. Raises the errors of Pillow for damaged tags."""
    file.seek(0)
    head = file.read(8)
    if head[2:4] in (b"+\0", b"\0+"):  # BigTIFF
        head += file.read(8)
    tags = ImageFileDirectory_v2(head)
    file.seek(tags.next)
    tags.load(file)
    return tags


def unsupported_reason(tags: Mapping[int, Any]) -> str | None:
    """Return why an image with these tags is not supported, or None."""
    formats, bits = _numbers(tags.get(SAMPLE_FORMAT, 1)), max(_numbers(tags.get(BITS, 1)), default=1)
    for number, name in {3: "floating-point", 2: "signed-integer", 5: "complex", 6: "complex"}.items():
        if number in formats:
            return f"{name} TIFF is not supported; {ADVICE}"
    if bits > 16:
        return f"{bits}-bit integer TIFF is not supported; {ADVICE}"
    photometric, is_raw = tags.get(PHOTOMETRIC, 0), tags.get(COMPRESSION, 1) == 1
    is_planar = tags.get(PLANAR, 1) == 2 and tags.get(SAMPLES, 1) > 1
    if photometric == YCBCR and is_raw and bits == 8 and tags.get(SAMPLES, 1) > 1:
        return "uncompressed YCbCr TIFF is not supported; export it as RGB"
    if is_planar and (photometric not in (RGB, CMYK, YCBCR) or (is_raw and bits == 16 and _is_more_than_rgb(tags))):
        return "TIFF with this kind of samples in separate planes is not supported; export it with interleaved channels"
    return None


def _is_more_than_rgb(tags: Mapping[int, Any]) -> bool:
    return tags.get(PHOTOMETRIC) != RGB or tags.get(SAMPLES) != 3


def describe(tags: Mapping[int, Any]) -> str:
    """Return the reason for rejecting a TIFF that Pillow does not support, with the tags that define its kind."""
    named = {"photometric interpretation": PHOTOMETRIC, "bits per sample": BITS, "samples per pixel": SAMPLES}
    named |= {"compression": COMPRESSION}
    kind = ", ".join(f"{name} {quote(tags[tag])}" for name, tag in named.items() if tag in tags)
    return f"this kind of TIFF is not supported ({kind}); {ADVICE}"


def correct(image: Image.Image) -> tuple[int, bool, int]:
    """Prepare an opened TIFF for decoding. Return its bits per sample, whether 0 will be white in the decoded image,
    and its orientation, which Pillow would otherwise apply at full size. Checked with the private attributes of Pillow
    12.2 and 12.3.
    """
    tags = image.tag_v2
    bits = max(_numbers(tags.get(BITS, 1)), default=1)
    orientation = tags.get(ORIENTATION, 1)
    if tags.get(PLANAR, 1) == 2 and tags.get(SAMPLES, 1) == 1:
        tags[PLANAR] = 1  # equivalent for one sample, but Pillow would choose a wrong mode
        image._setup()
    image.getexif = Image.Exif  # empty: Pillow does not rotate the image or parse damaged entries
    image._size = image._tile_size  # as stored
    if tags.get(PLANAR, 1) == 2 and bits == 16 and tags.get(COMPRESSION, 1) == 1:
        # Pillow would decode the planes with 8 bits.
        order = "L" if tags.prefix == b"II" else "B"
        image.tile = [tile._replace(args=(f"{tile.args[0]};16{order}", *tile.args[1:])) for tile in image.tile]
    is_inverted = image.mode.startswith("I;16") and tags.get(PHOTOMETRIC, 0) == WHITE_IS_ZERO
    return bits, is_inverted, orientation if isinstance(orientation, int) else 1


def block_bytes(image: Image.Image) -> int:
    """Return the size of the largest strip or tile in bytes. libtiff decompresses each one as a whole."""
    tags = image.tag_v2
    if tags.get(COMPRESSION, 1) == 1:
        return 0
    width = tags.get(TILE_WIDTH, image.width)
    rows = tags.get(TILE_ROWS, min(tags.get(STRIP_ROWS, image.height), image.height))
    bits = 32 if tags.get(PHOTOMETRIC) == YCBCR else sum(_numbers(tags.get(BITS, 1)))
    return width * rows * bits // 8


def _numbers(value: Any) -> tuple[int, ...]:
    return tuple(n for n in (value if isinstance(value, tuple) else (value,)) if isinstance(n, int))
