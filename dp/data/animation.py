"""Trajectories as files: strips, GIF, MP4, ZIP. Arrays are uint8 [K,H,W,C], a frame for each kept step."""

from __future__ import annotations

import io
import zipfile
from collections.abc import Iterable, Mapping

import av
import numpy as np
from PIL import Image

from dp.data.codec import encode, over_white, to_pillow


def enlarged(array: np.ndarray, side: int) -> np.ndarray:
    """[..., H,W,C], each pixel as a square of pixels, so many that the longer side comes near to `side`; even sides."""
    factor = max(2, 2 * round(side / max(array.shape[-3:-1]) / 2))
    return array.repeat(factor, -3).repeat(factor, -2)


def film_strip(frames: np.ndarray, gap: int = 2) -> np.ndarray:
    """[K,H,W,C] -> one picture [H, K W and white gaps, C]."""
    k, h, w, c = frames.shape
    strip = np.full((h, k * (w + gap) - gap, c), 255, np.uint8)
    for i, frame in enumerate(frames):
        strip[:, i * (w + gap) : i * (w + gap) + w] = frame
    return strip


def encode_gif(frames: Iterable[np.ndarray], count: int, seconds: float, comment: str = "") -> bytes:
    """`count` frames [H,W,C] -> an endless GIF, `seconds` a frame and two at the end; at most 256 colours in each."""
    pictures = (over_white(to_pillow(frame)).convert("RGB").quantize(256, dither=Image.Dither.NONE) for frame in frames)
    durations = [max(20, round(1000 * seconds))] * (count - 1) + [2000]
    first = next(pictures)
    rest = {"save_all": True, "append_images": pictures, "duration": durations, "loop": 0}
    return encode(first, format="GIF", comment=comment.encode(), optimize=False, disposal=1, **rest)


def encode_mp4(frames: Iterable[np.ndarray], fps: int, comment: str = "") -> bytes:
    """Frames [H,W,C] of even sides -> H.264 in an MP4 that every browser plays. Colours are stored for squares of 2 by
    2 pixels, so pictures are best `enlarged` before.
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


def zipped(files: Mapping[str, bytes]) -> bytes:
    """Name -> content, as a ZIP; stored as they are, since pictures are compressed already."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for name, content in files.items():
            archive.writestr(zipfile.ZipInfo(name), content)
    return buffer.getvalue()
