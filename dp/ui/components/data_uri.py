"""Images and bytes as data URIs, the form in which the components receive them."""

from __future__ import annotations

import base64

import numpy as np

from dp.data.codec import encode_jpeg, encode_png


def jpeg_uri(image: np.ndarray) -> str:
    return data_uri("image/jpeg", encode_jpeg(image))


def png_uri(image: np.ndarray) -> str:
    return data_uri("image/png", encode_png(image))


def data_uri(media_type: str, content: bytes) -> str:
    return f"data:{media_type};base64,{base64.b64encode(content).decode()}"
