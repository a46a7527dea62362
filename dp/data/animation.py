"""Encode the steps of a run as film strips, GIF, MP4 or ZIP. Arrays are uint8 [K,H,W,C], one frame per step."""

from __future__ import annotations

import io
import time
import zipfile
from collections.abc import Iterable, Mapping

import av
import numpy as np
from PIL import Image

from dp.data.codec import encode, over_white, to_pillow


def upscale_nearest(array: np.ndarray, side: int) -> np.ndarray:
    """Enlarge images [...,H,W,C] by nearest-neighbor interpolation, by the even factor (at least 2) that brings the
    longer side closest to `side`.
    """
    factor = max(2, 2 * round(side / max(array.shape[-3:-1]) / 2))
    return array.repeat(factor, -3).repeat(factor, -2)


def film_strip(frames: np.ndarray, gap: int = 2) -> np.ndarray:
    """Return the frames [K,H,W,C] side by side as one image [H, K W + (K - 1) gap, C], with white gaps."""
    k, h, w, c = frames.shape
    strip = np.full((h, k * (w + gap) - gap, c), 255, np.uint8)
    for i, frame in enumerate(frames):
        strip[:, i * (w + gap) : i * (w + gap) + w] = frame
    return strip


def encode_gif(frames: Iterable[np.ndarray], count: int, seconds: float, comment: str = "") -> bytes:
    """Encode `count` frames [H,W,C] as a looping GIF with up to 256 colors per frame. Each frame is shown for `seconds`
    (at least 0.02), the last one for two seconds.
    """
    images = (over_white(to_pillow(frame)).convert("RGB").quantize(256, dither=Image.Dither.NONE) for frame in frames)
    durations = [max(20, round(1000 * seconds))] * (count - 1) + [2000]
    first = next(images)
    rest = {"save_all": True, "append_images": images, "duration": durations, "loop": 0}
    return encode(first, format="GIF", comment=comment.encode(), optimize=False, disposal=1, **rest)


def encode_mp4(frames: Iterable[np.ndarray], fps: int, comment: str = "") -> bytes:
    """Encode frames [H,W,C], whose sides must be even, as H.264 in an MP4 that every browser can play. Chroma is
    subsampled 2x2, so enlarge small images with `upscale_nearest` first.
    """
    buffer = io.BytesIO()
    with av.open(buffer, "w", format="mp4") as container:
        container.metadata["comment"] = comment
        stream = container.add_stream("libx264", rate=fps, options={"crf": "12", "preset": "veryfast"})
        stream.pix_fmt = "yuv420p"
        for i, frame in enumerate(frames):
            if i == 0:
                stream.height, stream.width = frame.shape[:2]
            rgb = np.ascontiguousarray(np.asarray(over_white(to_pillow(frame)).convert("RGB")))
            container.mux(stream.encode(av.VideoFrame.from_ndarray(rgb, format="rgb24")))
        container.mux(stream.encode())
    return buffer.getvalue()


def make_zip(files: Mapping[str, bytes]) -> bytes:
    """Return a ZIP of the files, given by name and dated now. They are stored uncompressed, because image formats are
    compressed.
    """
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for name, content in files.items():
            archive.writestr(zipfile.ZipInfo(name, time.localtime()[:6]), content)
    return buffer.getvalue()
