"""dp.data.codec: images as tensors, arrays and bytes."""

from __future__ import annotations

import io

import numpy as np
import pytest
import torch
from PIL import Image

from dp.data import codec

CHANNELS = sorted(codec.MODES)


def decoded(data: bytes) -> Image.Image:
    image = Image.open(io.BytesIO(data))
    image.load()
    return image


def smooth(channels: int) -> np.ndarray:
    """Return an image that JPEG preserves well: gradients without edges, opaque if it has an alpha channel."""
    y, x = np.mgrid[0:32, 0:48]
    array = np.stack([x * 5, y * 7, 255 - x * 3, np.full_like(x, 255)], axis=-1).astype(np.uint8)
    return array[..., :channels]


@pytest.mark.parametrize("channels", CHANNELS)
def test_every_uint8_survives_the_round_trip_to_floats(channels):
    array = np.resize(np.arange(256, dtype=np.uint8), (2, 16, 16, channels))
    floats = codec.to_float(torch.from_numpy(array))
    assert floats.shape == (2, channels, 16, 16) and floats.dtype == torch.float32
    assert floats.min() == 0 and floats.max() == 1
    back = codec.to_uint8(floats)
    assert back.dtype == np.uint8
    np.testing.assert_array_equal(back, array)


def test_channels_and_pixels_keep_their_order():
    # One bright value, at a place that no mix-up of the four axes would leave alone.
    tensor = torch.zeros(2, 3, 5, 7)
    tensor[1, 2, 3, 4] = 1
    assert list(map(tuple, np.argwhere(codec.to_uint8(tensor)))) == [(1, 3, 4, 2)]


@pytest.mark.parametrize("offset, expected", [(-0.49, 0), (0.0, 0), (0.49, 0), (0.51, 1)])
def test_floats_are_rounded_to_the_nearest_level(offset, expected):
    levels = torch.arange(1, 255, dtype=torch.float32)
    got = codec.to_uint8(((levels + offset) / 255).reshape(1, 1, 1, -1)).ravel()
    np.testing.assert_array_equal(got, levels.numpy() + expected)


def test_values_outside_the_unit_range_are_clamped_not_wrapped():
    got = codec.to_uint8(torch.tensor([-3.0, -0.01, 1.01, 3.0]).reshape(1, 1, 1, 4))
    assert got.ravel().tolist() == [0, 0, 255, 255]


@pytest.mark.parametrize(
    "count, columns, rows_by_columns", [(1, None, (1, 1)), (4, None, (2, 2)), (5, None, (2, 3)), (5, 2, (3, 2))]
)
def test_a_grid_is_filled_row_by_row_and_missing_tiles_are_black(count, columns, rows_by_columns):
    h, w = 2, 3
    tiles = np.stack([np.full((h, w, 3), 10 * (i + 1), np.uint8) for i in range(count)])
    picture = codec.make_grid(tiles, columns)
    rows, cols = rows_by_columns
    assert picture.shape == (rows * h, cols * w, 3) and picture.dtype == np.uint8
    for place in range(rows * cols):
        r, c = divmod(place, cols)
        tile = picture[r * h : (r + 1) * h, c * w : (c + 1) * w]
        assert (tile == (10 * (place + 1) if place < count else 0)).all(), f"tile {place}"


def test_a_grid_does_not_rotate_its_tiles():
    tile = np.arange(2 * 3 * 3, dtype=np.uint8).reshape(1, 2, 3, 3)
    np.testing.assert_array_equal(codec.make_grid(tile), tile[0])


@pytest.mark.parametrize("channels", CHANNELS)
def test_png_is_lossless(channels):
    array = np.random.default_rng(0).integers(0, 256, (9, 7, channels), np.uint8)
    data = codec.encode_png(array)
    assert data.startswith(b"\x89PNG")
    image = decoded(data)
    assert image.mode == codec.MODES[channels]
    np.testing.assert_array_equal(np.asarray(image).reshape(array.shape), array)


@pytest.mark.parametrize("channels", CHANNELS)
def test_jpeg_is_close(channels):
    array = smooth(channels)
    image = decoded(codec.encode_jpeg(array))
    assert image.format == "JPEG" and image.mode == ("L" if channels == 1 else "RGB")
    seen = array[..., :3] if channels == 4 else array
    off = np.abs(np.asarray(image).reshape(seen.shape).astype(int) - seen)
    assert off.mean() < 2 and off.max() < 16


def test_jpeg_keeps_color_at_full_resolution():
    # Pixel-wide red and blue columns: with chroma subsampling both would become the same purple.
    array = np.zeros((16, 16, 3), np.uint8)
    array[:, 0::2, 0] = array[:, 1::2, 2] = 255
    seen = np.asarray(decoded(codec.encode_jpeg(array))).astype(int)
    assert (seen[:, 0::2, 0] - seen[:, 1::2, 0]).min() > 150


@pytest.mark.parametrize("alpha, expected", [(255, (200, 0, 0)), (0, (255, 255, 255)), (128, (227, 127, 127))])
def test_transparency_is_composited_on_white(alpha, expected):
    array = np.full((16, 16, 4), (200, 0, 0, alpha), np.uint8)
    flat = codec.over_white(codec.to_pillow(array))
    assert flat.mode == "RGB"
    assert np.abs(np.asarray(flat).astype(int) - expected).max() <= 1
    sent = np.asarray(decoded(codec.encode_jpeg(array))).astype(int)
    assert np.abs(sent - expected).max() <= 4  # the JPEG of a flat colour


@pytest.mark.parametrize("mode", ["L", "RGB"])
def test_an_image_without_transparency_is_unchanged(mode):
    image = Image.new(mode, (2, 2), "red")
    assert codec.over_white(image) is image
