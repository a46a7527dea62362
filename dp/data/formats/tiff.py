"""TIFF files that Pillow decodes wrongly or rejects without a word: what to correct, and the reason for a rejection."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, BinaryIO

from PIL import Image
from PIL.TiffImagePlugin import ImageFileDirectory_v2

from dp.system.validation import quote

WIDTH, HEIGHT, BITS, COMPRESSION, PHOTOMETRIC, ORIENTATION, SAMPLES = 256, 257, 258, 259, 262, 274, 277
STRIP_ROWS, PLANAR, TILE_WIDTH, TILE_ROWS, SAMPLE_FORMAT = 278, 284, 322, 323, 339
WHITE_IS_ZERO, RGB, CMYK, YCBCR = 0, 2, 5, 6
NEEDED = {WIDTH, HEIGHT, PHOTOMETRIC}  # to know what an image is
ADVICE = "export it with 8 or 16 bits per sample, or as PNG"


def read_tags(file: BinaryIO) -> Mapping[int, Any]:
    """The tags of the first image. Raises what Pillow raises where they are damaged."""
    file.seek(0)
    head = file.read(8)
    if head[2:4] in (b"+\0", b"\0+"):  # BigTIFF
        head += file.read(8)
    tags = ImageFileDirectory_v2(head)
    file.seek(tags.next)
    tags.load(file)
    return tags


def problem(tags: Mapping[int, Any]) -> str | None:
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


def description(tags: Mapping[int, Any]) -> str:
    """The kind of TIFF, for one that Pillow does not know."""
    said = {"photometric interpretation": PHOTOMETRIC, "bits per sample": BITS, "samples per pixel": SAMPLES}
    said |= {"compression": COMPRESSION}
    kind = ", ".join(f"{name} {quote(tags[tag])}" for name, tag in said.items() if tag in tags)
    return f"TIFF of this kind is not supported ({kind}); {ADVICE}"


def correct(image: Image.Image) -> tuple[int, bool, int]:
    """Prepare an opened TIFF for decoding -> its bits per sample, whether 0 is white in what will be decoded, and its
    orientation, which Pillow would otherwise apply at full size. The private names are those of Pillow 12.2 and 12.3.
    """
    tags = image.tag_v2
    bits = max(_numbers(tags.get(BITS, 1)), default=1)
    orientation = tags.get(ORIENTATION, 1)
    if tags.get(PLANAR, 1) == 2 and tags.get(SAMPLES, 1) == 1:
        tags[PLANAR] = 1  # the same for one sample, but Pillow would take another kind of samples
        image._setup()
    image.getexif = Image.Exif  # empty: Pillow finds nothing to turn, and reads no damaged entry
    image._size = image._tile_size  # as stored
    if tags.get(PLANAR, 1) == 2 and bits == 16 and tags.get(COMPRESSION, 1) == 1:
        # Pillow takes the planes for 8-bit ones.
        order = "L" if tags.prefix == b"II" else "B"
        image.tile = [tile._replace(args=(f"{tile.args[0]};16{order}", *tile.args[1:])) for tile in image.tile]
    is_inverted = image.mode.startswith("I;16") and tags.get(PHOTOMETRIC, 0) == WHITE_IS_ZERO
    return bits, is_inverted, orientation if isinstance(orientation, int) else 1


def block_bytes(image: Image.Image) -> int:
    """Return the size of the largest strip or tile, which libtiff unpacks as a whole."""
    tags = image.tag_v2
    if tags.get(COMPRESSION, 1) == 1:
        return 0
    width = tags.get(TILE_WIDTH, image.width)
    rows = tags.get(TILE_ROWS, min(tags.get(STRIP_ROWS, image.height), image.height))
    bits = 32 if tags.get(PHOTOMETRIC) == YCBCR else sum(_numbers(tags.get(BITS, 1)))
    return width * rows * bits // 8


def _numbers(value: Any) -> tuple[int, ...]:
    return tuple(n for n in (value if isinstance(value, tuple) else (value,)) if isinstance(n, int))
