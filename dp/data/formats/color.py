"""Colors in the space that a file states -> sRGB, by an embedded ICC profile or by PNG's gamma and primaries."""

from __future__ import annotations

import io
from functools import lru_cache

import numpy as np
from PIL import Image, ImageCms

SRGB = ImageCms.createProfile("sRGB")
SRGB_GAMMA, TOLERANCE = 0.45455, 0.001
D65 = (0.3127, 0.3290)
SRGB_PRIMARIES = (*D65, 0.64, 0.33, 0.30, 0.60, 0.15, 0.06)  # x and y of white, red, green and blue
BRADFORD = np.array([[0.8951, 0.2664, -0.1614], [-0.7502, 1.7135, 0.0367], [0.0389, -0.0685, 1.0296]])
MODES = {"GRAY": "L", "RGB": "RGB", "CMYK": "CMYK"}  # a profile's color space -> the mode that it describes
FITS = {"L": ("L", "RGB"), "RGB": ("RGB",), "CMYK": ("CMYK",)}  # mode -> those of the profiles that are applied to it


def profile_transform(profile: bytes, mode: str) -> ImageCms.ImageCmsTransform | None:
    """From the colors of an L, RGB or CMYK image to RGB in sRGB; None where the profile is damaged or describes other
    colors. A grey image may have an RGB profile, which describes its greys, too.
    """
    if not isinstance(profile, bytes):  # a TIFF may have numbers or text in that place
        return None
    try:
        source = ImageCms.ImageCmsProfile(io.BytesIO(profile))
        described = MODES.get(source.profile.xcolor_space.strip())
        if described not in FITS[mode]:
            return None
        return ImageCms.buildTransform(source, SRGB, described, "RGB")
    except (OSError, ImageCms.PyCMSError):
        return None


def is_srgb(gamma: float | None, primaries: tuple[float, ...] | None) -> bool:
    """Whether PNG's gamma and primaries, each perhaps not stated, are those of sRGB."""
    plain_gamma = gamma is None or abs(gamma - SRGB_GAMMA) <= TOLERANCE
    return plain_gamma and (primaries is None or _matrix(primaries) is None)


@lru_cache(maxsize=8)
def tone_curve(steps: int, gamma: float | None) -> np.ndarray:
    """The 8-bit sRGB level of each of `steps` equally spaced samples; None: the samples are sRGB's own."""
    samples = np.linspace(0, 1, steps)
    if gamma is not None:
        samples = _encode(samples ** (1 / gamma))
    return (samples * 255).round().astype(np.uint8)


def by_primaries(image: Image.Image, primaries: tuple[float, ...]) -> Image.Image:
    """Convert an RGB image with sRGB's tone curve from `primaries` to those of sRGB."""
    matrix = _matrix(primaries)
    if matrix is None:
        return image
    levels = np.asarray(image) / 255
    light = np.where(levels <= 0.04045, levels / 12.92, ((levels + 0.055) / 1.055) ** 2.4)
    return Image.fromarray((_encode(np.clip(light @ matrix.T, 0, 1)) * 255).round().astype(np.uint8))


def _encode(light: np.ndarray) -> np.ndarray:
    """Linear light -> samples of sRGB, both in [0, 1]."""
    return np.where(light <= 0.0031308, light * 12.92, 1.055 * light ** (1 / 2.4) - 0.055)


def _matrix(primaries: tuple[float, ...]) -> np.ndarray | None:
    """Linear RGB of `primaries` -> linear sRGB, whites onto each other; None for sRGB's and for impossible ones."""
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
