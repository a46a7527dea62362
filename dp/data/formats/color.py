"""Convert colors to sRGB, by an embedded ICC profile or by the gamma and primaries of a PNG."""

from __future__ import annotations

import io
from functools import lru_cache

import numpy as np
from PIL import Image, ImageCms

SRGB = ImageCms.createProfile("sRGB")
SRGB_GAMMA, TOLERANCE = 0.45455, 0.001
D65 = (0.3127, 0.3290)  # x and y of white in sRGB
SRGB_PRIMARIES = (*D65, 0.64, 0.33, 0.30, 0.60, 0.15, 0.06)  # x and y of white, red, green and blue in turn
BRADFORD = np.array([[0.8951, 0.2664, -0.1614], [-0.7502, 1.7135, 0.0367], [0.0389, -0.0685, 1.0296]])
MODES = {"GRAY": "L", "RGB": "RGB", "CMYK": "CMYK"}  # color space of a profile -> mode of the images that it describes
APPLICABLE = {"L": ("L", "RGB"), "RGB": ("RGB",), "CMYK": ("CMYK",)}  # mode of an image -> modes of usable profiles


def profile_transform(profile: bytes, mode: str) -> ImageCms.ImageCmsTransform | None:
    """Return the transform from an L, RGB or CMYK image with this ICC profile to sRGB, in mode RGB. Return None if the
    profile is damaged or describes other colors. A grayscale image may have an RGB profile.
    """
    if not isinstance(profile, bytes):  # a TIFF tag may hold numbers or text instead
        return None
    try:
        source = ImageCms.ImageCmsProfile(io.BytesIO(profile))
        described = MODES.get(source.profile.xcolor_space.strip())
        if described not in APPLICABLE[mode]:
            return None
        return ImageCms.buildTransform(source, SRGB, described, "RGB")
    except (OSError, ImageCms.PyCMSError):
        return None


def is_srgb(gamma: float | None, primaries: tuple[float, ...] | None) -> bool:
    """Return whether the gamma and primaries of a PNG are those of sRGB. None means not specified."""
    plain_gamma = gamma is None or abs(gamma - SRGB_GAMMA) <= TOLERANCE
    return plain_gamma and (primaries is None or _matrix(primaries) is None)


@lru_cache(maxsize=8)
def tone_curve(steps: int, gamma: float | None) -> np.ndarray:
    """Return the 8-bit sRGB values of `steps` equally spaced samples with this gamma. None means that of sRGB."""
    samples = np.linspace(0, 1, steps)
    if gamma is not None:
        samples = _encode(samples ** (1 / gamma))
    return (samples * 255).round().astype(np.uint8)


def convert_primaries(image: Image.Image, primaries: tuple[float, ...]) -> Image.Image:
    """Convert an RGB image with sRGB's tone curve from `primaries` to those of sRGB."""
    matrix = _matrix(primaries)
    if matrix is None:
        return image
    levels = np.asarray(image) / 255
    light = np.where(levels <= 0.04045, levels / 12.92, ((levels + 0.055) / 1.055) ** 2.4)
    return Image.fromarray((_encode(np.clip(light @ matrix.T, 0, 1)) * 255).round().astype(np.uint8))


def _encode(light: np.ndarray) -> np.ndarray:
    """Convert linear light to sRGB samples, both in [0, 1]."""
    return np.where(light <= 0.0031308, light * 12.92, 1.055 * light ** (1 / 2.4) - 0.055)


def _matrix(primaries: tuple[float, ...]) -> np.ndarray | None:
    """Return the matrix from linear RGB with these primaries to linear sRGB, which maps white to white. Return None for
    the primaries of sRGB and for invalid ones.
    """
    if np.allclose(primaries, SRGB_PRIMARIES, rtol=0, atol=TOLERANCE):
        return None
    if min(primaries[1::2]) <= 0:
        return None
    cone_of_white, cone_of_d65 = (BRADFORD @ _xyz(*white) for white in (primaries[:2], D65))
    adapt = np.linalg.inv(BRADFORD) @ np.diag(cone_of_d65 / cone_of_white) @ BRADFORD
    try:
        return np.linalg.inv(_to_xyz(SRGB_PRIMARIES)) @ adapt @ _to_xyz(primaries)
    except np.linalg.LinAlgError:  # primaries on one line
        return None


def _xyz(x: float, y: float) -> np.ndarray:
    return np.array([x / y, 1, (1 - x - y) / y])


def _to_xyz(primaries: tuple[float, ...]) -> np.ndarray:
    white, *colors = (_xyz(x, y) for x, y in zip(primaries[::2], primaries[1::2]))
    columns = np.stack(colors, axis=1)
    return columns * np.linalg.solve(columns, white)
