"""dp.data.dataset: a folder of arbitrary files becomes a checked dataset, and the report lists every file."""

from __future__ import annotations

import io
import os
import random
import re
import struct
import warnings
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from dp.data import dataset
from dp.data.dataset import ImageDataset, decode

SIZE = 16
WHITE = (255, 255, 255)
GREYS = (0x00, 0x80, 0xFF, 0x40)
# Four quadrants, all different: seen from their colours, no turn and no mirror image of the picture is the picture.
COLOURS = ((220, 30, 40), (30, 200, 60), (40, 60, 220), (240, 220, 50))


def quadrants(values=COLOURS, height: int = 48, width: int = 64, dtype=np.uint8) -> np.ndarray:
    """Return [height, width, ...] with one value per quadrant: top left, top right, bottom left, bottom right."""
    values = np.asarray(values, dtype)
    rows, columns = np.arange(height) >= height // 2, np.arange(width) >= width // 2
    return values[2 * rows[:, None] + columns[None, :]]


def seen(item: torch.Tensor) -> np.ndarray:
    """Return the colors at the centers of an item's four quadrants, from 0 to 255: [4, C]."""
    c, size, _ = item.shape
    return (item.reshape(c, 2, size // 2, 2, size // 2)[:, :, size // 4, :, size // 4] * 255).reshape(c, 4).T.numpy()


def encode(image: Image.Image, format: str, **options) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, format, **options)
    return buffer.getvalue()


def png_by_hand(width: int, height: int, depth: int, colour: int, rows: bytes = b"", extra: bytes = b"") -> bytes:
    """Return a PNG of a kind that Pillow cannot write. rows: the raw scanlines, each after a filter byte."""

    def chunk(kind: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + header + extra + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")


def as_stored(upright: np.ndarray, orientation: int) -> np.ndarray:
    """Return the pixels that a camera stores with this EXIF orientation, by the table of the standard (EXIF 2.3, tag
    274): the side of the scene that becomes row 0, and the side that becomes column 0.
    """
    turned = upright.swapaxes(0, 1) if orientation >= 5 else upright  # 5 to 8: rows and columns are swapped
    return {
        1: turned,  # top, left
        2: turned[:, ::-1],  # top, right
        3: turned[::-1, ::-1],  # bottom, right
        4: turned[::-1],  # bottom, left
        5: turned,  # left, top
        6: turned[::-1],  # right, top
        7: turned[::-1, ::-1],  # right, bottom
        8: turned[:, ::-1],  # left, bottom
    }[orientation]


def exif(orientation: int) -> Image.Exif:
    made = Image.Exif()
    made[0x0112] = orientation
    return made


PICTURE = Image.fromarray(quadrants())
PALETTE = PICTURE.quantize(4)
CLEAR = int(np.asarray(PALETTE)[-1, -1])  # the palette's number for the colour of the last quadrant
SHEER = np.concatenate([quadrants(), quadrants([[255], [255], [128], [0]])], axis=-1)  # RGBA: half and wholly clear
GREY = Image.fromarray(quadrants(GREYS))
GREY16 = quadrants([grey * 257 for grey in GREYS], dtype=np.uint16)  # 0x80 -> 0x8080
HALF_BLUE = (147, 157, 237)  # (40, 60, 220) at alpha 128 over white
LATER = PICTURE.rotate(180)  # a second frame, that must not be taken


def good_files() -> dict[str, tuple[bytes, tuple, float]]:
    """Return name -> (content, the four expected colors as RGB, the tolerance for lossy formats)."""
    over_white, keyed = (*COLOURS[:2], HALF_BLUE, WHITE), (*COLOURS[:3], WHITE)
    greys, black_or_white = tuple((g, g, g) for g in GREYS), tuple((g, g, g) for g in (0, 255, 255, 0))
    deep = quadrants(np.asarray(COLOURS) * 257, dtype=">u2").reshape(48, -1)
    files = {
        "plain.png": (encode(PICTURE, "PNG"), COLOURS, 0),
        "nested/deeper/one.jpg": (encode(PICTURE, "JPEG"), COLOURS, 4),
        "nested/SHOUT.JPG": (encode(PICTURE, "JPEG"), COLOURS, 4),
        "other.jpeg": (encode(PICTURE, "JPEG", progressive=True), COLOURS, 4),
        "other.jfif": (encode(PICTURE, "JPEG"), COLOURS, 4),
        "really-a-png.jpg": (encode(PICTURE, "PNG"), COLOURS, 0),
        "cmyk.jpg": (encode(PICTURE.convert("CMYK"), "JPEG"), COLOURS, 6),
        "phone-burst.jpg": (encode(PICTURE, "MPO", save_all=True, append_images=[LATER]), COLOURS, 4),
        "lossy.webp": (encode(PICTURE, "WEBP", quality=95), COLOURS, 12),
        "sheer.webp": (encode(Image.fromarray(SHEER), "WEBP", lossless=True), over_white, 1),
        "plain.bmp": (encode(PICTURE, "BMP"), COLOURS, 0),
        "rgb8.tif": (encode(PICTURE, "TIFF"), COLOURS, 0),
        "packed.TIFF": (encode(PICTURE, "TIFF", compression="tiff_lzw"), COLOURS, 0),
        "grey16.tif": (encode(Image.fromarray(GREY16), "TIFF"), greys, 0),
        "grey16.png": (encode(Image.fromarray(GREY16), "PNG"), greys, 0),
        "rgb16.png": (
            png_by_hand(64, 48, 16, 2, b"".join(b"\0" + row.tobytes() for row in deep)),
            COLOURS,
            1,
        ),
        "grey8.png": (encode(GREY, "PNG"), greys, 0),
        "one-bit.png": (encode(GREY.convert("1", dither=Image.Dither.NONE), "PNG"), black_or_white, 0),
        "animated.gif": (
            encode(PALETTE, "GIF", save_all=True, append_images=[LATER.quantize(4)], duration=100, loop=0),
            COLOURS,
            2,
        ),
        "animated.png": (encode(PICTURE, "PNG", save_all=True, append_images=[LATER]), COLOURS, 0),
        "palette.png": (encode(PALETTE, "PNG"), COLOURS, 2),
        "palette-clear.png": (encode(PALETTE, "PNG", transparency=CLEAR), keyed, 2),
        "palette-clear.gif": (encode(PALETTE, "GIF", transparency=CLEAR), keyed, 2),
        "rgb-keyed.png": (encode(PICTURE, "PNG", transparency=COLOURS[3]), keyed, 0),
        "grey-keyed.png": (encode(GREY, "PNG", transparency=GREYS[3]), (*greys[:3], WHITE), 0),
        "rgba.png": (encode(Image.fromarray(SHEER), "PNG"), over_white, 1),
        "la.png": (
            encode(Image.fromarray(quadrants([(0, 255), (128, 255), (0, 128), (64, 0)])).convert("LA"), "PNG"),
            ((0,) * 3, (128,) * 3, (127,) * 3, WHITE),
            1,
        ),
    }  # fmt: skip
    for orientation in range(1, 9):
        stored = Image.fromarray(np.ascontiguousarray(as_stored(quadrants(), orientation)))
        files[f"turned-{orientation}.jpg"] = (encode(stored, "JPEG", exif=exif(orientation)), COLOURS, 4)
    stored = Image.fromarray(np.ascontiguousarray(as_stored(quadrants(), 6)))
    files["turned.png"] = (encode(stored, "PNG", exif=exif(6)), COLOURS, 0)
    files["turned.webp"] = (encode(stored, "WEBP", exif=exif(6), quality=95), COLOURS, 12)
    files["turned.tif"] = (encode(stored, "TIFF", exif=exif(6)), COLOURS, 0)
    return files


JPEG = encode(PICTURE, "JPEG")
BAD = {  # name -> (content, what the reason must say)
    "cut-short.jpg": (JPEG[: len(JPEG) // 2], "damaged"),
    "cut-short.png": (encode(PICTURE, "PNG", compress_level=0)[:-5000], "damaged"),
    "cut-short.tif": (encode(PICTURE, "TIFF")[:-5000], "damaged|not a readable image"),
    "text.png": (b"Dear diary,\n" * 50, "not a readable image"),
    "page.jpg": (b"<!doctype html><title>404</title>", "not a readable image"),
    "empty.png": (b"", "empty"),
    "._plain.jpg": (b"\0\5\x16\7" + b"\0" * 100, "macOS resource file"),
    "nested/._one.jpg": (b"\0\5\x16\7" + b"\0" * 100, "macOS resource file"),
    ".DS_Store": (b"\0\0\0\1Bud1", "not a supported image type"),
    "notes.txt": (b"notes", "not a supported image type"),
    "no-suffix": (JPEG, "not a supported image type"),
    "drawing.svg": (b"<svg/>", "not a supported image type"),
    "phone.heic": (b"\0\0\0\x18ftypheic", "export it as JPEG"),
    "phone.HEIF": (b"\0\0\0\x18ftypheic", "export it as JPEG"),
    "vast.png": (png_by_hand(60_000, 60_000, 8, 2), "pixels"),  # past Pillow's own limit, too
    "large.png": (png_by_hand(12_000, 9_000, 8, 2), "12000 x 9000 pixels"),  # ours only
    "float.tif": (encode(Image.new("F", (20, 20), 0.5), "TIFF"), "8 or 16 bits"),
    "int32.tif": (encode(Image.new("I", (20, 20), 70_000), "TIFF"), "8 or 16 bits"),
}
GOOD = good_files()


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    root = tmp_path_factory.mktemp("zoo")
    for name, (content, *_) in (GOOD | BAD).items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(content)
    (root / "a-folder.png").mkdir()  # not a file, whatever its name
    return root


@pytest.fixture(scope="module")
def zoo(folder) -> ImageDataset:
    return ImageDataset(folder, SIZE)


# ----------------------------------------------------------------------------
# The folder with everything in it


@pytest.mark.parametrize("name", GOOD)
def test_a_valid_file_is_decoded_upright_with_the_right_colors(zoo, name):
    item = zoo[zoo.report.accepted.index(name)]
    assert item.shape == (3, SIZE, SIZE) and item.dtype == torch.float32
    assert item.min() >= 0 and item.max() <= 1
    _, colours, tolerance = GOOD[name]
    np.testing.assert_allclose(seen(item), colours, atol=tolerance + 0.01)  # 0.01: levels as floats


@pytest.mark.parametrize("name", BAD)
def test_a_bad_file_is_rejected_with_a_reason(zoo, name):
    [reason] = [reason for refused, reason in zoo.report.rejected if refused == name]
    assert re.search(BAD[name][1], reason)
    assert "\n" not in reason


def test_every_file_is_either_accepted_or_rejected(zoo):
    names = zoo.report.accepted + [name for name, _ in zoo.report.rejected]
    assert sorted(names) == sorted(GOOD | BAD)
    assert len(zoo) == len(zoo.images) == len(zoo.report.accepted) == len(GOOD)


def test_the_report_counts_and_names_the_rejected_files(zoo):
    text = str(zoo.report)
    assert f"{len(GOOD)} images accepted, {len(BAD)} files rejected" in text
    assert all(f"{name}: {reason}" in text for name, reason in zoo.report.rejected)


def test_images_are_sorted_by_name(zoo):
    # Whatever order the file system lists them in: a seed must mean the same pictures on every machine.
    assert zoo.report.accepted == sorted(zoo.report.accepted, key=lambda name: Path(name).parts)


def test_above_the_memory_limit_the_images_are_in_a_temporary_file(zoo, folder, monkeypatch):
    monkeypatch.setattr(dataset, "MEMORY_LIMIT", 0)
    on_disk = ImageDataset(folder, SIZE)
    assert isinstance(on_disk.images, np.memmap) and not isinstance(zoo.images, np.memmap)
    np.testing.assert_array_equal(on_disk.images, zoo.images)
    assert on_disk.report == zoo.report
    assert torch.equal(on_disk[3], zoo[3])


def test_odd_metadata_causes_no_warnings(folder):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        ImageDataset(folder, SIZE)


# ----------------------------------------------------------------------------
# Modes


@pytest.mark.parametrize("name", ["rgba.png", "sheer.webp"])
def test_rgba_keeps_the_transparency(folder, name):
    array = decode(folder / name, SIZE, "RGBA")
    expected = [(*COLOURS[0], 255), (*COLOURS[1], 255), (*COLOURS[2], 128)]
    np.testing.assert_allclose(array[4::8, 4::8].reshape(4, 4)[:3], expected, atol=2)
    assert array[12, 12, 3] == 0  # the colour of a wholly clear pixel is nobody's business


@pytest.mark.parametrize(
    "name, expected",
    [
        ("plain.png", [(*colour, 255) for colour in COLOURS]),
        ("cmyk.jpg", [(*colour, 255) for colour in COLOURS]),
        ("grey16.png", [(g, g, g, 255) for g in GREYS]),
        ("turned.png", [(*colour, 255) for colour in COLOURS]),
    ],
)
def test_rgba_of_an_opaque_image_is_opaque(folder, name, expected):
    np.testing.assert_allclose(decode(folder / name, SIZE, "RGBA")[4::8, 4::8].reshape(4, 4), expected, atol=6)


@pytest.mark.parametrize(
    "name, expected",
    [
        ("grey8.png", GREYS),
        ("grey16.png", GREYS),
        ("grey16.tif", GREYS),
        ("grey-keyed.png", (*GREYS[:3], 255)),
        ("la.png", (0, 128, 127, 255)),
        # ITU-R BT.601: 0.299 R + 0.587 G + 0.114 B
        ("plain.png", [round(0.299 * r + 0.587 * g + 0.114 * b) for r, g, b in COLOURS]),
        ("rgb-keyed.png", [*(round(0.299 * r + 0.587 * g + 0.114 * b) for r, g, b in COLOURS[:3]), 255]),
    ],
)
def test_mode_l_is_grayscale_composited_on_white(folder, name, expected):
    array = decode(folder / name, SIZE, "L")
    assert array.shape == (SIZE, SIZE, 1)
    np.testing.assert_allclose(array[4::8, 4::8].ravel(), expected, atol=1)


@pytest.mark.parametrize("mode, channels", [("L", 1), ("RGB", 3), ("RGBA", 4), (None, 3)])
def test_an_item_has_the_channels_of_the_mode(tmp_path, mode, channels):
    PICTURE.save(tmp_path / "a.png")
    dataset = ImageDataset(tmp_path, SIZE, convert_image_to=mode)
    assert dataset[0].shape == (channels, SIZE, SIZE)
    assert dataset.images.shape == (1, SIZE, SIZE, channels) and dataset.images.dtype == np.uint8


@pytest.mark.parametrize("level", [0, 1, 0x80, 0xFE, 0xFF])
def test_16_bit_grayscale_is_scaled_to_the_nearest_8_bit_level(tmp_path, level):
    # 65535 = 257 * 255, so a level is 257 wide, and 128 to either side of its middle still belong to it.
    for off in (-128, 0, 128):
        wide = min(max(level * 257 + off, 0), 65535)
        Image.fromarray(np.full((4, 4), wide, np.uint16)).save(tmp_path / "g.png")
        assert (decode(tmp_path / "g.png", 4, "L") == level).all(), hex(wide)


# ----------------------------------------------------------------------------
# Geometry


@pytest.mark.parametrize("long_side", [8, 9, 10, 11, 12, 15, 30])
@pytest.mark.parametrize("is_tall", [False, True])
def test_an_image_with_the_right_short_side_is_center_cropped_without_changing_a_pixel(tmp_path, long_side, is_tall):
    array = np.random.default_rng(0).integers(0, 256, (8, long_side, 3), np.uint8)
    # An odd number of pixels too many has no middle: one more may go on either side, but none may be blended.
    spare = long_side - 8
    expected = [array[:, left : left + 8] for left in {spare // 2, (spare + 1) // 2}]
    if is_tall:
        array, expected = array.swapaxes(0, 1), [crop.swapaxes(0, 1) for crop in expected]
    Image.fromarray(np.ascontiguousarray(array)).save(tmp_path / "a.png")
    got = decode(tmp_path / "a.png", 8, "RGB")
    assert any(np.array_equal(got, crop) for crop in expected)


@pytest.mark.parametrize("shape", [(64, 96), (96, 64), (40, 40), (32, 50), (50, 32), (10, 15)])
def test_an_image_is_resized_and_then_cropped(tmp_path, shape):
    # Against the plain way, on noise, which no other part of the picture resembles. The long side comes out whole here.
    image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (*shape, 3), np.uint8))
    image.save(tmp_path / "a.png")
    width, height = (side * SIZE // min(shape) for side in image.size)
    whole = np.asarray(image.resize((width, height), Image.Resampling.BICUBIC)).astype(int)
    got = decode(tmp_path / "a.png", SIZE, "RGB")
    off = [
        np.abs(got - whole[top : top + SIZE, left : left + SIZE]).max()
        for top in {(height - SIZE) // 2, (height - SIZE + 1) // 2}
        for left in {(width - SIZE) // 2, (width - SIZE + 1) // 2}
    ]
    assert min(off) <= 1  # the filter's weights are rounded


def test_downscaling_is_antialiased(tmp_path):
    # A fine chequerboard: without antialiasing, shrinking picks single pixels, black or white or whatever beats come.
    board = (np.indices((120, 120)).sum(0) % 2 * 255).astype(np.uint8)
    Image.fromarray(board).save(tmp_path / "a.png")
    inside = decode(tmp_path / "a.png", 11, "L")[1:-1, 1:-1].astype(int)
    assert np.abs(inside - 127.5).max() < 6


@pytest.mark.parametrize("shape", [(1, 5000), (5000, 1), (1, 1), (2, 3)])
def test_the_crop_of_a_very_narrow_image_is_its_center(tmp_path, shape):
    h, w = shape
    ramp = np.add.outer(np.linspace(0, 100, h), np.linspace(0, 100, w)).astype(np.uint8)
    Image.fromarray(ramp).save(tmp_path / "a.png")
    array = decode(tmp_path / "a.png", SIZE, "L")
    assert array.shape == (SIZE, SIZE, 1)
    assert abs(array.mean() - ramp.mean()) < 3


def test_half_of_the_items_are_flipped_and_none_by_default(tmp_path):
    PICTURE.save(tmp_path / "a.png")
    plain = ImageDataset(tmp_path, SIZE)[0]
    torch.manual_seed(0)
    flipping = ImageDataset(tmp_path, SIZE, augment_horizontal_flip=True)
    items = [flipping[0] for _ in range(64)]
    mirrored = [torch.equal(item, plain.flip(-1)) for item in items]
    assert all(is_mirrored or torch.equal(item, plain) for item, is_mirrored in zip(items, mirrored, strict=True))
    assert 16 < sum(mirrored) < 48  # four standard deviations
    steady = ImageDataset(tmp_path, SIZE)
    assert all(torch.equal(steady[0], plain) for _ in range(8))


def test_an_item_is_a_writable_copy(tmp_path):
    PICTURE.save(tmp_path / "a.png")
    dataset = ImageDataset(tmp_path, SIZE)
    before = dataset[0].clone()
    dataset[0].zero_()
    assert torch.equal(dataset[0], before)


# ----------------------------------------------------------------------------
# Damage: arbitrary bytes are decoded or raise InvalidImage


@pytest.mark.parametrize("name", ["other.jpeg", "plain.png", "sheer.webp", "rgb8.tif", "plain.bmp", "animated.gif"])
def test_a_damaged_file_raises_only_invalid_image(tmp_path, name):
    content, path = GOOD[name][0], tmp_path / name
    draw = random.Random(name)
    for trial in range(30):
        hurt = bytearray(content)
        if trial % 3 == 0:
            del hurt[draw.randrange(1, len(hurt)) :]
        else:  # the structure stands mostly in the first bytes
            for _ in range(draw.randrange(1, 6)):
                hurt[draw.randrange(min(200, len(hurt)) if trial % 3 == 1 else len(hurt))] = draw.randrange(256)
        path.write_bytes(hurt)
        try:
            array = decode(path, SIZE, "RGB")
        except dataset.InvalidImage as reason:
            assert str(reason)
        else:
            assert array.shape == (SIZE, SIZE, 3)


ODD_TAGS = {  # what no camera should have written: tag, type, value
    "a fraction as the maker": (0x010F, 5, b"\0\0\0\x26"),
    "text as the resolution": (0x011A, 2, b"\0\0\0\x26"),
    "a fraction as the unit": (0x0128, 5, b"\0\0\0\x26"),
}


@pytest.mark.parametrize("format", ["JPEG", "PNG"])
@pytest.mark.parametrize("tag", ODD_TAGS.values(), ids=ODD_TAGS)
def test_odd_metadata_affects_neither_the_image_nor_its_orientation(tmp_path, format, tag):
    entries = sorted([(0x0112, 3, b"\0\6\0\0"), tag])  # orientation 6, and the odd one
    block = b"Exif\0\0MM\0*\0\0\0\x08" + struct.pack(">H", len(entries))
    block += b"".join(struct.pack(">HHI", number, kind, 1) + value for number, kind, value in entries)
    block += struct.pack(">I", 0) + struct.pack(">II", 1, 2)  # no further directory; the fraction 1/2, at offset 0x26
    stored = Image.fromarray(np.ascontiguousarray(as_stored(quadrants(), 6)))
    (tmp_path / f"a.{format.lower()}").write_bytes(encode(stored, format, exif=block))
    np.testing.assert_allclose(seen(ImageDataset(tmp_path, SIZE)[0]), COLOURS, atol=4)


@pytest.mark.parametrize("format", ["JPEG", "PNG"])
def test_unreadable_metadata_does_not_affect_the_image(tmp_path, format):
    (tmp_path / f"a.{format.lower()}").write_bytes(encode(PICTURE, format, exif=b"Exif\0\0" + b"rubbish " * 4))
    np.testing.assert_allclose(seen(ImageDataset(tmp_path, SIZE)[0]), COLOURS, atol=4)


def test_a_link_to_a_folder_is_rejected(tmp_path):
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / "a.png").write_bytes(GOOD["plain.png"][0])
    (tmp_path / "here").mkdir()
    (tmp_path / "here" / "b.png").write_bytes(GOOD["plain.png"][0])
    try:
        (tmp_path / "here" / "album").symlink_to(tmp_path / "elsewhere", target_is_directory=True)
    except OSError:
        pytest.skip("this system makes no links for plain users")
    report = ImageDataset(tmp_path / "here", SIZE).report
    assert report.accepted == ["b.png"]
    assert report.rejected == [("album", "a link to a folder, which is not followed; copy the folder here")]


def test_a_folder_without_permission_is_rejected(tmp_path, monkeypatch):
    # As root everything may be opened, so the refusal is the system's own, made here.
    (tmp_path / "locked").mkdir()
    PICTURE.save(tmp_path / "a.png")
    scandir = os.scandir

    def guarded(path):
        if Path(path).name == "locked":
            raise PermissionError(13, "Permission denied", str(path))
        return scandir(path)

    monkeypatch.setattr(os, "scandir", guarded)
    report = ImageDataset(tmp_path, SIZE).report
    assert report.accepted == ["a.png"] and report.rejected == [("locked", "no permission to open")]


def test_a_broken_link_is_rejected(tmp_path):
    PICTURE.save(tmp_path / "a.png")
    try:
        (tmp_path / "gone.png").symlink_to(tmp_path / "nowhere.png")
    except OSError:
        pytest.skip("this system makes no links for plain users")
    report = ImageDataset(tmp_path, SIZE).report
    assert report.accepted == ["a.png"] and [name for name, _ in report.rejected] == ["gone.png"]


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="this system has no pipes with names")
@pytest.mark.timeout(20)
def test_a_pipe_is_rejected_without_blocking(tmp_path):
    PICTURE.save(tmp_path / "a.png")
    os.mkfifo(tmp_path / "b.png")
    report = ImageDataset(tmp_path, SIZE).report
    assert report.accepted == ["a.png"]
    assert report.rejected == [("b.png", "not a regular file (a pipe or a device)")]


# ----------------------------------------------------------------------------
# Settings and errors


def test_exts_select_files_regardless_of_case_and_dot(folder):
    dataset = ImageDataset(folder, SIZE, exts=["WEBP", ".bmp"])
    assert dataset.report.accepted == ["lossy.webp", "plain.bmp", "sheer.webp", "turned.webp"]
    assert len(dataset.report.rejected) == len(GOOD) + len(BAD) - 4


@pytest.mark.parametrize(
    "settings, message",
    [
        ({"convert_image_to": "CMYK"}, "L, RGB, RGBA.*'CMYK'"),
        ({"convert_image_to": "rgb"}, "'rgb'"),
        ({"image_size": 0}, "image_size.*0"),
        ({"image_size": -4}, "image_size.*-4"),
    ],
)
def test_a_setting_out_of_range_is_rejected_with_its_value(tmp_path, settings, message):
    PICTURE.save(tmp_path / "a.png")
    with pytest.raises(ValueError, match=message):
        ImageDataset(**{"folder": tmp_path, "image_size": SIZE} | settings)


@pytest.mark.parametrize("make", ["nothing", "file"])
def test_a_missing_folder_is_an_error_with_its_name(tmp_path, make):
    path = tmp_path / "pictures"
    if make == "file":
        path.write_text("")
    with pytest.raises(ValueError, match="pictures"):
        ImageDataset(path, SIZE)


def test_a_folder_without_images_is_an_error_with_the_reasons(tmp_path):
    (tmp_path / "empty.png").write_bytes(b"")
    (tmp_path / "phone.heic").write_bytes(b"x")
    with pytest.raises(ValueError) as caught:
        ImageDataset(tmp_path, SIZE)
    message = str(caught.value)
    assert str(tmp_path) in message
    assert "empty.png: the file is empty" in message and "phone.heic" in message and "export it as JPEG" in message


@pytest.mark.parametrize("limit", [0, dataset.MEMORY_LIMIT])
def test_an_empty_folder_is_an_error(tmp_path, monkeypatch, limit):
    monkeypatch.setattr(dataset, "MEMORY_LIMIT", limit)
    with pytest.raises(ValueError, match="no usable image"):
        ImageDataset(tmp_path, SIZE)
