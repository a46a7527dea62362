"""dp.data.animation: encoded files, decoded again."""

import io
import json
import zipfile

import av
import numpy as np
import pytest
from PIL import Image

from dp.data.animation import encode_gif, encode_mp4, film_strip, make_zip, upscale_nearest
from dp.data.codec import encode_png, read_png_text


@pytest.fixture
def frames():
    """Return nine different frames of 16 x 16 pixels with few colors."""
    random = np.random.default_rng(0)
    palette = random.integers(0, 256, (40, 3), np.uint8)
    return palette[random.integers(0, 40, (9, 16, 16))]


def test_upscaled_pixels_are_squares_of_an_even_side(frames):
    large = upscale_nearest(frames, 100)
    assert large.shape == (9, 96, 96, 3)
    np.testing.assert_array_equal(large[:, ::6, ::6], frames)
    np.testing.assert_array_equal(large[:, 5::6, 5::6], frames)
    assert upscale_nearest(frames, 1).shape == (9, 32, 32, 3)  # never smaller


def test_a_film_strip_has_the_frames_side_by_side(frames):
    strip = film_strip(frames, gap=3)
    assert strip.shape == (16, 9 * 19 - 3, 3)
    np.testing.assert_array_equal(strip[:, 19:35], frames[1])
    assert (strip[:, 16:19] == 255).all()


def test_a_gif_with_few_colors_is_exact_and_pauses_at_the_end(frames):
    with Image.open(io.BytesIO(encode_gif(frames, 9, 0.05, "made here"))) as gif:
        assert gif.n_frames == 9 and gif.info["loop"] == 0 and gif.info["comment"] == b"made here"
        durations = []
        for i, frame in enumerate(frames):
            gif.seek(i)
            np.testing.assert_array_equal(np.asarray(gif.convert("RGB")), frame)
            durations.append(gif.info["duration"])
    assert durations == [50] * 8 + [2000]


def test_an_mp4_has_every_frame_nearly_unchanged(frames):
    large = upscale_nearest(frames, 128)
    with av.open(io.BytesIO(encode_mp4(large, 20, "made here"))) as container:
        assert container.metadata["comment"] == "made here"
        shown = [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]
        assert container.streams.video[0].average_rate == 20
    assert len(shown) == 9
    for frame, exact in zip(shown, large):
        assert np.abs(frame.astype(int) - exact.astype(int)).mean() < 6


@pytest.mark.parametrize("channels", [1, 4])
def test_grayscale_and_transparent_frames_can_be_encoded(channels):
    frames = np.full((3, 16, 16, channels), 200, np.uint8)
    frames[1:, 0], frames[2, 1] = 90, 30  # equal neighbours would be one
    assert Image.open(io.BytesIO(encode_gif(frames, 3, 0.1))).n_frames == 3
    assert encode_mp4(upscale_nearest(frames, 32), 10)


def test_a_zip_round_trip():
    with zipfile.ZipFile(io.BytesIO(make_zip({"a/1.png": b"one", "b": b"two"}))) as archive:
        assert {name: archive.read(name) for name in archive.namelist()} == {"a/1.png": b"one", "b": b"two"}


def test_a_png_stores_text(frames):
    data = encode_png(frames[0], {"dp": json.dumps({"seed": 1}), "parameters": "äöü"})
    assert read_png_text(data) == {"dp": '{"seed": 1}', "parameters": "äöü"}
    np.testing.assert_array_equal(np.asarray(Image.open(io.BytesIO(data))), frames[0])


@pytest.mark.parametrize("data", [b"", b"not a picture", b"\x89PNG\r\n\x1a\n" + b"\0" * 30])
def test_reading_the_text_of_a_non_png_raises_an_error(data):
    with pytest.raises(ValueError, match="not a readable PNG"):
        read_png_text(data)
