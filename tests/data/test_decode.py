"""dp.data.decode: color profiles, damaged metadata, unusual TIFF, PNG and JPEG files, and the memory of decoding."""

from __future__ import annotations

import io
import itertools
import os
import struct
import subprocess
import sys
import time
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageCms, TiffImagePlugin, features

from dp.data import decode as decoder
from dp.data.decode import MAX_PIXELS, InvalidImage, decode, decode_image
from dp.data.formats import supported
from dp.data.formats.metadata import MAX_BLOCKS, read_metadata

CASES = Path(__file__).parent.parent / "data" / "cases"
SIZE = 48
LEFT, RIGHT = (220, 30, 40), (40, 60, 220)
ADOBE_LEFT, ADOBE_RIGHT = (255, 24, 36), (21, 57, 224)  # the same samples, read as Adobe RGB (1998), in sRGB
NEEDS_AVIF = pytest.mark.skipif(not features.check("avif"), reason="this Pillow reads no AVIF")


def halves(left, right, dtype=np.uint8, height: int = 48, width: int = 64) -> np.ndarray:
    """Return [height, width, C] with one color on the left and one on the right."""
    array = np.empty((height, width, len(left)), dtype)
    array[:, : width // 2], array[:, width // 2 :] = left, right
    return array


def encode(image: Image.Image, format: str, **options) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, format, **options)
    return buffer.getvalue()


def chunk(kind: bytes, body: bytes) -> bytes:
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))


def png(array: np.ndarray, before: bytes = b"", depth: int = 0, palette: bool = False) -> bytes:
    """Return a PNG of [height, width, C] with chunks `before` its pixels. depth: below 8 for packed samples."""
    height, width, channels = array.shape
    color = 3 if palette else {1: 0, 2: 4, 3: 2, 4: 6}[channels]
    depth = depth or array.dtype.itemsize * 8
    if depth < 8:
        bits = np.unpackbits(array.astype(np.uint8), axis=2)[..., -depth:]
        array = np.packbits(bits.reshape(height, -1), axis=1)
    rows = array.astype(array.dtype.newbyteorder(">")).reshape(height, -1)
    data = zlib.compress(b"".join(b"\0" + row.tobytes() for row in rows), 1)
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, depth, color, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + header + before + chunk(b"IDAT", data) + chunk(b"IEND", b"")


def gamma(value: int) -> bytes:
    return chunk(b"gAMA", struct.pack(">I", value))


def primaries(*values: float) -> bytes:
    return chunk(b"cHRM", struct.pack(">8I", *(round(value * 100_000) for value in values)))


def embedded(profile: bytes) -> bytes:
    return chunk(b"iCCP", b"name\0\0" + zlib.compress(profile, 1))


def pixels(content: bytes, mode: str = "RGB", size: int = SIZE) -> np.ndarray:
    return decode_image(io.BytesIO(content), size, mode).pixels.astype(int)


def seen(content: bytes, mode: str = "RGB") -> list[tuple[int, ...]]:
    """Return the colors at the centers of the two halves."""
    array = pixels(content, mode)
    return [tuple(array[SIZE // 2, SIZE // 4].tolist()), tuple(array[SIZE // 2, 3 * SIZE // 4].tolist())]


def same(got, expected, tolerance: float = 1) -> bool:
    return np.abs(np.subtract(got, expected)).max() <= tolerance


def refusal(content: bytes) -> str:
    with pytest.raises(InvalidImage) as caught:
        pixels(content)
    return str(caught.value)


PLAIN = Image.fromarray(halves(LEFT, RIGHT))
with Image.open(CASES / "icc-adobe.jpg") as _image:
    ADOBE = _image.info["icc_profile"]


# ----------------------------------------------------------------------------
# The cases of the issue

EXPECTED = {
    "icc-adobe.jpg": ((ADOBE_LEFT, ADOBE_RIGHT), 3),
    "big-ztxt.png": ((LEFT, RIGHT), 1),
    "cut-2-bytes.jpg": ((LEFT, RIGHT), 3),
    "real.avif": ((LEFT, RIGHT), 3),
    "rgb16planar.tif": ((LEFT, RIGHT), 1),
    "grey16-trns.png": (((0, 0, 0), (255, 255, 255)), 1),
}


@pytest.mark.parametrize("name", EXPECTED)
def test_files_of_former_bugs_have_the_right_colors(name):
    expected, tolerance = EXPECTED[name]
    if name.endswith("avif") and not features.check("avif"):
        with pytest.raises(InvalidImage, match="AVIF"):
            decode(CASES / name, SIZE, "RGB")
    else:
        array = decode(CASES / name, SIZE, "RGB").astype(int)
        assert same(array[SIZE // 2, [SIZE // 4, 3 * SIZE // 4]], expected, tolerance)


def test_avif_without_a_decoder_is_rejected_by_its_name_and_by_its_content(monkeypatch):
    without = tuple(format for format in supported.FORMATS if format != "AVIF")  # as in a Pillow built without it
    for module in (decoder, supported):
        monkeypatch.setattr(module, "HAS_AVIF", False)
        monkeypatch.setattr(module, "FORMATS", without)
    with pytest.raises(InvalidImage, match=r"^the installed version of Pillow does not support AVIF"):
        decode(CASES / "real.avif", SIZE, "RGB")
    assert refusal((CASES / "real.avif").read_bytes()).startswith(
        "the installed version of Pillow does not support AVIF"
    )


# ----------------------------------------------------------------------------
# Color: profiles

WAYS = {
    "JPEG": {"quality": 95},
    "PNG": {},
    "TIFF": {},
    "WEBP": {"lossless": True},
    "AVIF": {"quality": 95, "subsampling": "4:4:4"},
}
EACH_FORMAT = pytest.mark.parametrize("format", [
    pytest.param(format, marks=NEEDS_AVIF if format == "AVIF" else ()) for format in WAYS
])  # fmt: skip


@EACH_FORMAT
def test_an_embedded_profile_is_applied(format):
    content = encode(PLAIN, format, icc_profile=ADOBE, **WAYS[format])
    assert same(seen(content), (ADOBE_LEFT, ADOBE_RIGHT), 8 if format == "AVIF" else 2)


@EACH_FORMAT
@pytest.mark.parametrize("profile", [ADOBE[:60], ADOBE[:200], ADOBE[:-1], b"rubbish" * 30, ADOBE[:200] + bytes(292)])
def test_a_damaged_profile_is_ignored(format, profile):
    assert same(seen(encode(PLAIN, format, icc_profile=profile, **WAYS[format])), (LEFT, RIGHT), 3)


def icc(space: bytes, gamma: float, colorants: bool) -> bytes:
    """Return a small ICC profile (version 2, display) with one tone curve, and the colorants of sRGB for RGB."""

    def curve() -> bytes:
        return b"curv" + bytes(4) + struct.pack(">IH", 1, round(gamma * 256)) + bytes(2)

    def xyz(*values: float) -> bytes:
        return b"XYZ " + bytes(4) + struct.pack(">3i", *(round(value * 65536) for value in values))

    tags = {b"wtpt": xyz(0.9642, 1, 0.8249)}
    if colorants:
        tags |= {b"rXYZ": xyz(0.4361, 0.2225, 0.0139), b"gXYZ": xyz(0.3851, 0.7169, 0.0971)}
        tags |= {b"bXYZ": xyz(0.1431, 0.0606, 0.7141), b"rTRC": curve(), b"gTRC": curve(), b"bTRC": curve()}
    else:
        tags |= {b"kTRC": curve()}
    table, body = struct.pack(">I", len(tags)), b""
    for name, value in tags.items():
        table += name + struct.pack(">II", 132 + 12 * len(tags) + len(body), len(value))
        body += value
    head = struct.pack(">I4sI4s4s4s", 132 + len(tags) * 12 + len(body), bytes(4), 0x02200000, b"mntr", space, b"XYZ ")
    head = head.ljust(36, b"\0") + b"acsp" + bytes(28) + struct.pack(">3i", 63190, 65536, 54061)
    return head.ljust(128, b"\0") + table + body


# Samples of linear light, seen in sRGB: the sRGB curve of v / 255.
LINEAR = {40: 110, 128: 188, 220: 239, 30: 96, 60: 133}


def test_gray_and_rgb_profiles_are_applied_to_grayscale_images():
    grey = halves((128,), (40,))
    expected = [(LINEAR[128],) * 3, (LINEAR[40],) * 3]
    for profile in (icc(b"GRAY", 1.0, False), icc(b"RGB ", 1.0, True)):
        assert same(seen(png(grey, embedded(profile))), expected)
        assert same(seen(encode(Image.fromarray(grey[..., 0]), "JPEG", icc_profile=profile)), expected, 2)
        wide = grey.astype(np.uint16) * 257
        assert same(seen(png(wide, embedded(profile))), expected)
        clear = np.concatenate([grey, halves((255,), (128,))], axis=2)
        left, right = seen(png(clear, embedded(profile)), "RGBA")
        assert same(left, (*expected[0], 255)) and same(right, (*expected[1], 128), 2)


@pytest.mark.parametrize("space", [b"GRAY", b"CMYK", b"Lab ", b"YCbr"])
def test_a_profile_for_other_color_spaces_is_ignored(space):
    profile = icc(space, 1.0, space != b"GRAY")
    assert same(seen(encode(PLAIN, "JPEG", icc_profile=profile, quality=95)), (LEFT, RIGHT), 3)
    assert same(seen(encode(PLAIN, "TIFF", icc_profile=profile)), (LEFT, RIGHT))


def test_an_rgb_profile_is_not_applied_to_cmyk():
    for format, tolerance in (("JPEG", 6), ("TIFF", 1)):
        assert same(seen(encode(PLAIN.convert("CMYK"), format, icc_profile=ADOBE)), (LEFT, RIGHT), tolerance)


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_a_profile_does_not_change_transparency(dtype):
    scale = 1 if dtype == np.uint8 else 257
    array = halves((*LEFT, 255), (*RIGHT, 128), dtype) * dtype(scale)
    left, right = seen(png(array, embedded(ADOBE)), "RGBA")
    assert same(left, (*ADOBE_LEFT, 255)) and same(right, (*ADOBE_RIGHT, 128), 2)


def test_a_profile_is_applied_to_a_palette():
    colors = chunk(b"PLTE", bytes(LEFT + RIGHT))
    indices = halves((0,), (1,))
    assert same(seen(png(indices, embedded(ADOBE) + colors, palette=True)), (ADOBE_LEFT, ADOBE_RIGHT))
    clear = embedded(ADOBE) + colors + chunk(b"tRNS", b"\xff\0")
    assert same(seen(png(indices, clear, palette=True)), (ADOBE_LEFT, (255, 255, 255)))


def test_an_srgb_profile_changes_nothing():
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    assert same(seen(png(halves(LEFT, RIGHT), embedded(profile))), (LEFT, RIGHT))


# ----------------------------------------------------------------------------
# Color: PNG's gamma and primaries

SRGB = (0.3127, 0.3290, 0.64, 0.33, 0.30, 0.60, 0.15, 0.06)
P3 = (0.3127, 0.3290, 0.680, 0.320, 0.265, 0.690, 0.15, 0.06)
LIGHT_LEFT, LIGHT_RIGHT = [tuple(LINEAR[level] for level in color) for color in (LEFT, RIGHT)]
IS_SRGB = chunk(b"sRGB", b"\0")


@pytest.mark.parametrize(
    "before, expected",
    {
        "gamma of sRGB": (gamma(45_455), (LEFT, RIGHT)),
        "near it, with its primaries": (gamma(45_500) + primaries(*SRGB), (LEFT, RIGHT)),
        "not quite near it: a plain power, without the straight foot of sRGB's curve": (
            gamma(45_000),
            ((221, 23, 34), (34, 56, 221)),
        ),
        "linear light": (gamma(100_000), (LIGHT_LEFT, LIGHT_RIGHT)),
        "sRGB wins": (gamma(100_000) + primaries(*P3) + IS_SRGB, (LEFT, RIGHT)),
        "sRGB wins before them": (IS_SRGB + gamma(100_000), (LEFT, RIGHT)),
        "a profile wins": (embedded(ADOBE) + gamma(100_000), (ADOBE_LEFT, ADOBE_RIGHT)),
        "a damaged profile does not": (embedded(ADOBE[:99]) + gamma(100_000), (LIGHT_LEFT, LIGHT_RIGHT)),
        "no gamma at all": (gamma(0), (LEFT, RIGHT)),
        "no primaries at all": (primaries(*[0] * 8), (LEFT, RIGHT)),
        "primaries on a line": (primaries(0.3, 0.3, 0.2, 0.2, 0.4, 0.4, 0.5, 0.5), (LEFT, RIGHT)),
        "a wrong checksum": (gamma(100_000)[:-1] + b"?", (LEFT, RIGHT)),
        "a wrong length": (chunk(b"gAMA", b"\0\1") + chunk(b"cHRM", b"\0"), (LEFT, RIGHT)),
    }.values(),
)
def test_the_gamma_of_a_png_is_applied(before, expected):
    assert same(seen(png(halves(LEFT, RIGHT), before)), expected)


def test_wide_primaries_are_converted_as_by_color_management():
    # A Display P3 profile made of the same numbers: D65 adapted to D50 by Bradford, as in Apple's.
    light = np.array([[0.5151, 0.2920, 0.1571], [0.2412, 0.6922, 0.0666], [-0.0011, 0.0419, 0.7841]])  # to XYZ at D50
    srgb = np.array([[3.1339, -1.6169, -0.4906], [-0.9788, 1.9161, 0.0335], [0.0719, -0.2290, 1.4052]])  # from it
    for stated, exponent in ((gamma(100_000), 1.0), (gamma(55_556), 1.8)):
        for color, got in zip((LEFT, RIGHT), seen(png(halves(LEFT, RIGHT), stated + primaries(*P3)))):
            linear = (srgb @ light @ (np.array(color) / 255) ** exponent).clip(0, 1)
            encoded = np.where(linear <= 0.0031308, 12.92 * linear, 1.055 * linear ** (1 / 2.4) - 0.055)
            assert same(got, encoded * 255, 2)


def test_dark_16_bit_samples_of_linear_light_keep_their_precision():
    # 30 of sRGB is 3.3 of 255 in linear light: with 8 bits it would be off by two levels.
    light = np.where(
        np.arange(256) <= 10, np.arange(256) / 255 / 12.92, ((np.arange(256) / 255 + 0.055) / 1.055) ** 2.4
    )
    left, right = (tuple(round(light[level] * 65535) for level in color) for color in (LEFT, RIGHT))
    assert same(seen(png(halves(left, right, np.uint16), gamma(100_000))), (LEFT, RIGHT), 0)
    clear = halves((*left, 65535), (*right, 0), np.uint16)
    assert same(seen(png(clear, gamma(100_000))), (LEFT, (255, 255, 255)), 0)
    assert same(seen(png(halves(left[1:2], left[:1], np.uint16), gamma(100_000))), ((30,) * 3, (220,) * 3), 0)


# ----------------------------------------------------------------------------
# Transparent colors of PNG

WHITE = (255, 255, 255)


@pytest.mark.parametrize("depth", [1, 2, 4, 8, 16])
def test_exactly_the_transparent_gray_of_a_png_is_transparent(depth):
    most = (1 << depth) - 1
    marked, other = most // 2, most // 2 + 1
    array = halves((other,), (marked,), np.uint16 if depth == 16 else np.uint8)
    content = png(array, chunk(b"tRNS", struct.pack(">H", marked)), depth)
    assert same(seen(content), ((round(other / most * 255),) * 3, WHITE))
    assert decode_image(io.BytesIO(content), SIZE, "RGB").kind == "with transparency"


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_exactly_the_transparent_color_of_a_png_is_transparent(dtype):
    marked, other = (10, 20, 31), (10, 20, 30)
    content = png(halves(other, marked, dtype), chunk(b"tRNS", struct.pack(">3H", *marked)))
    assert same(seen(content), (other if dtype == np.uint8 else (0, 0, 0), WHITE))


# ----------------------------------------------------------------------------
# Metadata


def exif(*entries: tuple[int, int, int, bytes]) -> bytes:
    """Return an EXIF block with these entries: tag, type, count, value."""
    body = b"".join(struct.pack(">HHI", *entry[:3]) + entry[3] for entry in entries)
    return b"Exif\0\0MM\0*\0\0\0\x08" + struct.pack(">H", len(entries)) + body + bytes(4)


ODD_EXIF = {
    "rubbish": b"Exif\0\0" + b"rubbish " * 4,
    "nothing": b"Exif\0\0",
    "a beginning": b"Exif\0\0II*\0",
    "more entries than there are": b"Exif\0\0II*\0\x08\0\0\0\xff\xff",
    "a far directory": b"Exif\0\0II*\0\xff\xff\xff\x7f",
    "a vast orientation": exif((0x0112, 4, 1, b"\xff" * 4)),
    "orientation 9": exif((0x0112, 3, 1, b"\0\x09\0\0")),
    "text as orientation": exif((0x0112, 2, 4, b"abc\0")),
    "a fraction as orientation": exif((0x0112, 5, 1, b"\0\0\0\x1a")),
    "many orientations": exif((0x0112, 3, 1 << 31, b"\0\6\0\0")),
    "a type that is none": exif((0x010F, 99, 1, bytes(4)), (0x0112, 99, 1, b"\0\6\0\0")),
    "zero by zero": exif((0x011A, 5, 1, b"\0\0\0\x1a")) + bytes(8),
}


@pytest.mark.parametrize("block", ODD_EXIF.values(), ids=ODD_EXIF)
def test_damaged_exif_does_not_affect_the_image(block):
    if len(block) > 6:
        assert same(seen(encode(PLAIN, "WEBP", lossless=True, exif=block)), (LEFT, RIGHT))
    segment = b"\xff\xe1" + struct.pack(">H", len(block) + 2) + block
    jpeg = encode(PLAIN, "JPEG", quality=95)
    assert same(seen(jpeg[:2] + segment + jpeg[2:]), (LEFT, RIGHT), 3)
    assert same(seen(png(halves(LEFT, RIGHT), chunk(b"eXIf", block[6:]))), (LEFT, RIGHT))


@NEEDS_AVIF
def test_damaged_exif_does_not_affect_an_avif():
    content = encode(PLAIN, "AVIF", exif=exif((0x0112, 3, 1, b"\0\1\0\0"), (0x0128, 3, 1, b"\0\2\0\0")), **WAYS["AVIF"])
    assert b"MM\0*" in content
    assert same(seen(content.replace(b"MM\0*", b"rubb")), (LEFT, RIGHT), 3)
    turned = encode(PLAIN.rotate(90, expand=True), "AVIF", exif=exif((0x0112, 3, 1, b"\0\6\0\0")), **WAYS["AVIF"])
    assert same(seen(turned), (LEFT, RIGHT), 3)


TEXT = b"key\0" + b"x" * 30
ANCILLARY = {  # made when they are used: to pack them takes seconds
    "20 MB of text": lambda: chunk(b"tEXt", b"k\0" + bytes(20_000_000)),
    "text that unpacks to 50 MB": lambda: chunk(b"zTXt", b"k\0\0" + zlib.compress(bytes(50_000_000), 1)),
    "iTXt that unpacks to 50 MB": lambda: chunk(b"iTXt", b"k\0\1\0\0\0" + zlib.compress(bytes(50_000_000), 1)),
    "50 texts of 2 MB": lambda: chunk(b"zTXt", b"k\0\0" + zlib.compress(bytes(2_000_000))) * 50,
    "50,000 texts": lambda: chunk(b"tEXt", TEXT) * 50_000,
    "a profile that unpacks to 100 MB": lambda: embedded(bytes(100_000_000)),
    "a profile that does not unpack": lambda: chunk(b"iCCP", b"k\0\0rubbish"),
    "EXIF of 20 MB": lambda: chunk(b"eXIf", b"II*\0\x08\0\0\0\0\0" + bytes(20_000_000)),
    "a wrong checksum": lambda: chunk(b"tEXt", TEXT)[:-1] + b"?",
    "nothing in them": lambda: b"".join(chunk(kind, b"") for kind in (
        b"tEXt", b"zTXt", b"iTXt", b"iCCP", b"gAMA", b"cHRM", b"pHYs", b"sRGB", b"tIME", b"eXIf", b"acTL", b"abCd"
    )),
}  # fmt: skip


@pytest.mark.parametrize("make", ANCILLARY.values(), ids=ANCILLARY)
def test_ancillary_chunks_do_not_affect_a_png(make):
    before = make()
    content = png(halves(LEFT, RIGHT), before)
    started = time.process_time()
    assert same(seen(content), (LEFT, RIGHT))
    after = content.replace(before, b"")
    assert same(seen(after[:-12] + before + after[-12:]), (LEFT, RIGHT))
    assert time.process_time() - started < 5


def test_a_large_exif_chunk_still_rotates_the_image_upright():
    block = exif((0x0112, 3, 1, b"\0\3\0\0"))[6:] + bytes(20_000_000)
    assert same(seen(png(halves(LEFT, RIGHT), chunk(b"eXIf", block))), (RIGHT, LEFT))


def test_application_segments_do_not_affect_a_jpeg():
    jpeg = encode(PLAIN, "JPEG", quality=95)
    bodies = [b"Photoshop 3.0\0" + b"8BIM" * 9, b"MPF\0II*\0rubbish", b"JFIF\0", b"Adobe", b"ICC_PROFILE\0\5\2xx", b""]
    bodies += [b"http://ns.adobe.com/xap/1.0/\0" + b"x" * 60_000] * 100
    for marker in (0xE0, 0xE1, 0xE2, 0xED, 0xEE, 0xFE):
        segments = b"".join(struct.pack(">BBH", 0xFF, marker, len(body) + 2) + body for body in bodies)
        assert same(seen(jpeg[:2] + segments + jpeg[2:]), (LEFT, RIGHT), 3)


def test_comments_do_not_affect_a_gif_or_take_time():
    # Pillow adds each block of a comment to all before: 32 s for these 10 MB.
    gif = encode(PLAIN.quantize(4), "GIF")
    start = 13 + 3 * (2 << (gif[10] & 7))  # behind the colors
    content = gif[:start] + b"!\xfe" + (b"\xff" + b"x" * 255) * 40_000 + b"\0" + gif[start:]
    started = time.process_time()
    assert same(seen(content), (LEFT, RIGHT), 2)
    assert time.process_time() - started < 5


# ----------------------------------------------------------------------------
# TIFF


def tiff(array: np.ndarray, photometric: int, bits: int = 8, *, planar: int = 1, packed: bool = False,
         order: str = "<", extra: int | None = None, format: int = 1, tile: int = 0,
         tags: dict[int, tuple[int, tuple[int, ...]]] | None = None) -> bytes:  # fmt: skip
    """Return a TIFF of [height, width, C], also of kinds that Pillow cannot write. tags: type and values of others."""
    height, width, channels = array.shape

    def pack(block: np.ndarray) -> bytes:
        if bits == 12:
            return np.packbits(np.unpackbits(block.astype(">u2").view(np.uint8).reshape(len(block), -1, 2), axis=2)
                               [..., 4:].reshape(len(block), -1), axis=1).tobytes()  # fmt: skip
        return block.astype(f"{order}{'f' if format == 3 else 'u'}{bits // 8}").tobytes()

    planes = np.split(array, channels, axis=2) if planar == 2 else [array]
    rows, columns = (tile, tile) if tile else (20, width)
    blocks = []
    for plane, y, x in itertools.product(planes, range(0, height, rows), range(0, width, columns)):
        block = plane[y : y + rows, x : x + columns]
        if tile:
            block = np.pad(block, ((0, rows - block.shape[0]), (0, columns - block.shape[1]), (0, 0)))
        blocks.append(zlib.compress(pack(block)) if packed else pack(block))
    sizes = tuple(map(len, blocks))
    offsets = tuple(8 + total for total in itertools.accumulate((0, *sizes[:-1])))
    values = {256: (4, (width,)), 257: (4, (height,)), 258: (3, (bits,) * channels), 259: (3, (8 if packed else 1,)),
              262: (3, (photometric,)), 277: (3, (channels,)), 284: (3, (planar,)),
              339: (3, (format,) * channels)}  # fmt: skip
    values |= {322: (4, (tile,)), 323: (4, (tile,)), 324: (4, offsets), 325: (4, sizes)} if tile else {}
    values |= {} if tile else {273: (4, offsets), 278: (4, (rows,)), 279: (4, sizes)}
    values |= ({338: (3, (extra,))} if extra is not None else {}) | (tags or {})
    data = b"".join(blocks)
    start = 8 + len(data) + len(data) % 2
    entries, beyond = b"", b""
    for tag, (kind, numbers) in sorted(values.items()):
        value = struct.pack(f"{order}{len(numbers)}{ {1: 'B', 2: 'B', 3: 'H', 4: 'I', 7: 'B'}[kind] }", *numbers)
        if len(value) > 4:
            value, beyond = struct.pack(f"{order}I", start + 6 + 12 * len(values) + len(beyond)), beyond + value
        entries += struct.pack(f"{order}HHI", tag, kind, len(numbers)) + value.ljust(4, b"\0")
    head = (b"II*\0" if order == "<" else b"MM\0*") + struct.pack(f"{order}I", start) + data
    return head.ljust(start, b"\0") + struct.pack(f"{order}H", len(values)) + entries + bytes(4) + beyond


def turned_to(space: str, color: tuple[int, ...]) -> tuple[int, ...]:
    return Image.new("RGB", (1, 1), color).convert(space).getpixel((0, 0))


KINDS = {  # name -> photometric interpretation, left, right, kind of the extra sample
    "grey": (1, (220,), (40,), None),
    "white is zero": (0, (35,), (215,), None),
    "RGB": (2, LEFT, RIGHT, None),
    "RGBA": (2, (*LEFT, 255), (*RIGHT, 255), 2),
    "RGBX": (2, (*LEFT, 9), (*RIGHT, 9), 0),
    "grey and alpha": (1, (220, 255), (40, 255), 2),
    "CMYK": (5, (35, 225, 215, 0), (215, 195, 35, 0), None),
    "YCbCr": (6, turned_to("YCbCr", LEFT), turned_to("YCbCr", RIGHT), None),
    "Lab": (8, (50, 20, 20), (50, 20, 20), None),
}


@pytest.mark.parametrize("name", KINDS)
def test_every_kind_of_tiff_has_the_right_colors_or_is_rejected_with_the_reason(name):
    photometric, left, right, extra = KINDS[name]
    accepted = 0
    for bits, planar, packed, order, tile in itertools.product((8, 12, 16), (1, 2), (False, True), "<>", (0, 16)):
        scale = {8: 1, 12: 4095 / 255, 16: 257}[bits]
        array = (halves(left, right, np.float64) * scale).round().astype(np.int64)
        subsampling = {530: (3, (1, 1))} if photometric == 6 else None
        content = tiff(array, photometric, bits, planar=planar, packed=packed, order=order, extra=extra, tile=tile,
                       tags=subsampling)  # fmt: skip
        try:
            array = np.delete(pixels(content), range(21, 27), axis=1)  # but the border between the halves
        except InvalidImage as reason:
            assert "TIFF" in str(reason) and "not supported" in str(reason) and "damaged" not in str(reason)
            continue
        accepted += 1
        expected = ((220,) * 3, (40,) * 3) if len(left) < 3 else (LEFT, RIGHT)
        if name == "Lab":  # one color: nothing but stripes to look for
            assert np.ptp(array, axis=(0, 1)).max() == 0
        else:
            assert same(array[:, :21], expected[0], 3) and same(array[:, 21:], expected[1], 3), (bits, planar, packed)
    assert accepted >= 8


@pytest.mark.parametrize(
    "bits, format, reason",
    [
        (32, 3, "^floating-point TIFF is not supported"),
        (32, 1, "^32-bit integer TIFF is not supported"),
        (32, 2, "^signed-integer TIFF is not supported"),
        (16, 2, "^signed-integer TIFF is not supported"),
        (8, 2, "^signed-integer TIFF is not supported"),
        (16, 3, "^floating-point TIFF is not supported"),
    ],
)
@pytest.mark.parametrize("channels", [1, 3])
def test_unsupported_sample_formats_are_rejected_by_name(bits, format, reason, channels):
    content = tiff(halves((100,) * channels, (9,) * channels), 2 if channels == 3 else 1, bits, format=format)
    with pytest.raises(InvalidImage, match=reason):
        pixels(content)


@pytest.mark.parametrize("tag", [270, 271, 700, 33723, 34377, 34665, 34675])
@pytest.mark.parametrize("harm", [None, (4, b"\xff\xff\xff\x7f\xff\xff\xff\x7f"), (2, b"\x63\0")])
def test_damaged_optional_tags_do_not_affect_a_tiff(tag, harm):
    for packed in (False, True):
        content = bytearray(tiff(halves(LEFT, RIGHT), 2, packed=packed, tags={tag: (7, tuple(b"rubbish"))}))
        at = content.rindex(struct.pack("<HHI", tag, 7, 7))
        if harm:  # a count and an offset beyond the end; a type that is none
            content[at + harm[0] : at + harm[0] + len(harm[1])] = harm[1]
        assert same(seen(bytes(content)), (LEFT, RIGHT))


@pytest.mark.parametrize("packed", [False, True])
def test_a_rotated_tiff_is_set_upright_once(packed):
    stored = np.ascontiguousarray(np.rot90(halves(LEFT, RIGHT)))  # what orientation 6 turns back
    content = tiff(stored, 2, packed=packed, tags={274: (3, (6,))})
    picture = decode_image(io.BytesIO(content), SIZE, "RGB")
    assert (picture.width, picture.height) == (64, 48)
    assert same(seen(content), (LEFT, RIGHT))


@pytest.mark.parametrize(
    "content, reason",
    [
        (tiff(halves(LEFT, RIGHT), 2)[:-150], "^damaged"),
        (tiff(halves(LEFT, RIGHT), 2, tags={259: (3, (34712,))}), r"this kind of TIFF is not supported .*34712"),
        (b"RIFF\0\0\0\0WAVEfmt ", "not a readable image"),
        (b"\0\0\0\x0cJXL \r\n\x87\n", "^JPEG XL is not supported"),
        (b"\0\0\0\x0cjP  \r\n\x87\n", "^JPEG 2000 is not supported"),
        (encode(PLAIN, "JPEG").replace(b"\xff\xc0\0\x11\x08", b"\xff\xc0\0\x11\x0c"), "12-bit"),
    ],
)
def test_the_reason_names_the_format(content, reason):
    with pytest.raises(InvalidImage, match=reason):
        pixels(content)


# ----------------------------------------------------------------------------
# JPEG that ends early

PHOTO = Image.fromarray(
    np.asarray(Image.fromarray(np.random.default_rng(0).integers(0, 256, (15, 20, 3), np.uint8)).resize((400, 300)))
)
SAVED = {
    "sequential": {},
    "progressive": {"progressive": True},
    "with restarts": {"restart_marker_rows": 1},
    "with many restarts": {"restart_marker_blocks": 3},
}


@pytest.mark.parametrize("mode", ["RGB", "L", "CMYK"])
@pytest.mark.parametrize("options", SAVED.values(), ids=SAVED)
def test_a_jpeg_may_lack_its_last_bytes_but_no_more(mode, options):
    content = encode(PHOTO.convert(mode), "JPEG", **options)
    whole = pixels(content)
    for cut in (1, 2, 3):
        assert same(pixels(content[:-cut]), whole, 2)
    for share in (0.05, 0.25, 0.5, 0.75):
        assert refusal(content[: -int(len(content) * share)]) == "damaged: the file ends before the image does"


def test_a_progressive_jpeg_without_its_last_scans_is_rejected():
    content = encode(PHOTO, "JPEG", progressive=True)
    scans = [at for at in range(len(content)) if content.startswith(b"\xff\xda", at)]
    assert len(scans) > 5
    for at in scans[1:]:  # as a download that stopped there: a complete, blurred image
        with pytest.raises(InvalidImage, match="ends before"):
            pixels(content[:at])


def test_a_png_that_ends_early_is_rejected():
    content = encode(PHOTO, "PNG")
    for share in (0.05, 0.5, 0.9):
        assert refusal(content[: -int(len(content) * share)]) == "damaged: the file ends before the image does"


def test_adobe_cmyk_and_ycck_are_not_inverted():
    # Pillow writes Adobe's marker and inverted samples, without a transform (CMYK); with transform 2 it is YCCK.
    assert same(seen(encode(PLAIN.convert("CMYK"), "JPEG", quality=95)), (LEFT, RIGHT), 6)
    inks = np.asarray(PLAIN.convert("CMYK"))
    ycc = np.asarray(Image.fromarray(inks[..., :3]).convert("YCbCr"))
    stored = Image.fromarray(np.dstack([255 - ycc, inks[..., 3]]), "CMYK")  # Pillow inverts what it writes
    content = bytearray(encode(stored, "JPEG", quality=100))
    content[content.index(b"Adobe") + 11] = 2
    assert same(seen(bytes(content)), (LEFT, RIGHT), 6)


# ----------------------------------------------------------------------------
# Large images


def test_a_large_jpeg_is_decoded_smaller_and_looks_the_same(monkeypatch):
    waves = np.add.outer(np.sin(np.arange(2611) / 150), np.cos(np.arange(4003) / 90)) * 60 + 128
    content = encode(
        Image.fromarray(np.dstack([waves] * 3).astype(np.uint8)), "JPEG", exif=exif((0x0112, 3, 1, b"\0\6\0\0"))
    )
    small = decode_image(io.BytesIO(content), 64, "RGB")
    monkeypatch.setattr(decoder, "DRAFT_PIXELS", MAX_PIXELS)
    full = decode_image(io.BytesIO(content), 64, "RGB")
    assert small[1:] == full[1:] == (2611, 4003, "color")
    assert same(small.pixels.astype(int), full.pixels.astype(int), 3)


@pytest.mark.parametrize("size", [2, 7, 63, 300])
@pytest.mark.parametrize("shape", [(400, 307), (307, 400)])
def test_strips_give_the_pixels_of_one_resize(monkeypatch, size, shape):
    monkeypatch.setattr("dp.data.formats.crop_resize.STRIP_PIXELS", 3000)
    image = Image.fromarray(np.random.default_rng(1).integers(0, 256, (*shape, 3), np.uint8))
    side = min(image.size)
    left, top = (round((length - side) * size / side / 2) * side / size for length in image.size)
    whole = image.resize((size, size), Image.Resampling.BICUBIC, box=(left, top, left + side, top + side))
    assert same(
        pixels(encode(image, "PNG"), "RGB", size), np.asarray(whole, int)
    )  # 1: the filter's weights are rounded


def test_an_image_that_takes_too_much_memory_is_rejected_with_the_reason(tmp_path):
    Image.new("RGB", (6000, 5000)).save(tmp_path / "a.webp", method=0)
    with pytest.raises(InvalidImage, match=r"^6000 x 5000 pixels: this WEBP takes 369 MB to decode"):
        decode(tmp_path / "a.webp", SIZE, "RGB")


SIDE = 2000
FIXED_BYTES = 30_000_000  # less than the 100 MB that are allowed, which would hide most mistakes at this size
MEASURE = """
import sys
from pathlib import Path
from PIL import Image
from dp.data.decode import decode

def peak():
    return int(next(line for line in open("/proc/self/status") if line.startswith("VmHWM")).split()[1]) * 1024

Image.init()
with open("/proc/self/clear_refs", "w") as file:  # the peak of the imports is not to hide anything
    file.write("5")
before = peak()
for path in sorted(Path(sys.argv[1]).iterdir()):
    decode(path, 64, "RGB")
    print(path.name, peak() - before)
"""


@pytest.mark.skipif(not os.access("/proc/self/clear_refs", os.W_OK), reason="this system does not tell peak memory")
def test_decoding_takes_at_most_8_bytes_per_pixel(tmp_path):
    marked = gamma(100_000) + chunk(b"tRNS", b"\0\7" * 3)
    palette = chunk(b"PLTE", bytes(range(256)) * 3) + chunk(b"tRNS", bytes(range(256)))
    ramp = np.resize(np.arange(256), (SIDE, SIDE, 4)).astype(np.uint16)
    turned = exif((0x0112, 3, 1, b"\0\6\0\0"))
    image = Image.fromarray(ramp[..., :3].astype(np.uint8))
    files = {
        "1-palette.png": png(ramp[..., :1].astype(np.uint8), palette, palette=True),
        "2-grey16.png": png(ramp[..., :1], gamma(100_000) + chunk(b"tRNS", b"\0\7")),
        "3-turned.jpg": encode(image, "JPEG", exif=turned),
        "3-cmyk.jpg": encode(image.convert("CMYK"), "JPEG"),
        "4-rgba.png": png(ramp.astype(np.uint8), chunk(b"eXIf", turned[6:])),
        "5-turned.tif": encode(image, "TIFF", exif=turned[6:], compression="tiff_lzw"),
        "6-rgb16.png": png(ramp[..., :3], marked),
        "7-rgba16.png": png(ramp, gamma(100_000)),
    }
    for name, content in files.items():
        (tmp_path / name).write_bytes(content)
    done = subprocess.run(
        [sys.executable, "-c", MEASURE, str(tmp_path)],
        cwd=Path(__file__).parents[2], capture_output=True, text=True, timeout=120,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    peaks = {name: int(count) for name, count in map(str.split, done.stdout.splitlines())}
    assert len(peaks) == len(files)
    assert max(peaks.values()) <= 8 * SIDE**2 + FIXED_BYTES, peaks


@pytest.mark.parametrize("value", ["no profile", 7])
def test_a_profile_of_the_wrong_type_is_ignored(value):
    tags = TiffImagePlugin.ImageFileDirectory_v2()
    tags[34675] = value
    tags.tagtype[34675] = {str: 2, int: 3}[type(value)]
    assert same(seen(encode(Image.fromarray(halves(LEFT, RIGHT)), "TIFF", tiffinfo=tags)), [LEFT, RIGHT])


def test_many_tiny_metadata_blocks_take_no_memory_or_time():
    content = encode(Image.fromarray(halves(LEFT, RIGHT)), "GIF")
    start = 13 + 3 * (2 << (content[10] & 7))
    few = content[:start] + b"\x21\xf9\x00" * 1000 + content[start:]
    assert len(read_metadata(io.BytesIO(few)).parts) == 3
    many = content[:start] + b"\x21\xf9\x00" * (MAX_BLOCKS + 1) + content[start:]
    assert "blocks of metadata" in refusal(many)
    segments = b"\xff\xd8" + b"\xff\xfe\x00\x02\xff\xdb\x00\x02" * MAX_BLOCKS
    assert "blocks of metadata" in refusal(segments)
