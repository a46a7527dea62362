"""The files of a prepared dataset: the array of its images, and the report. Loads no torch, and neither does anything
else that prepares a dataset.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np

from dp.data.codec import MODES, make_grid
from dp.data.report import REPORT, DatasetReport
from dp.system.validation import quote

IMAGES = "images.npy"  # uint8 [N,H,W,C]


def is_prepared(folder: Path) -> bool:
    """Return whether a folder holds the files of a prepared dataset."""
    return (folder / IMAGES).is_file() and (folder / REPORT).is_file()


def load_prepared(folder: Path, image_size: int, mode: str) -> tuple[np.ndarray, DatasetReport]:
    """Return the images of a prepared dataset, uint8 [N,image_size,image_size,C] and read from disk on access, and its
    report. Raises ValueError if it is damaged, or has another size or mode.
    """
    try:
        images = prepared_images(folder)
        report = DatasetReport.load(folder)
        if len(images) != len(report.accepted):
            raise ValueError(f"{IMAGES} has {len(images):,} images, {REPORT} {len(report.accepted):,} names")
        if report.classes and len(report.labels) != len(images):
            raise ValueError(f"{IMAGES} has {len(images):,} images, {REPORT} {len(report.labels):,} labels")
    except (OSError, ValueError) as error:
        raise ValueError(f"the dataset in {quote(str(folder))} is damaged ({error}); prepare it again") from None
    height, width, channels = images.shape[1:]
    if (height, width, channels) != (image_size, image_size, len(mode)):
        found = f"{width} x {height} {MODES.get(channels, f'with {channels} channels')}"
        expected = f"{image_size} x {image_size} {mode}"
        raise ValueError(f"the dataset in {quote(str(folder))} is {found}, expected {expected}; prepare it again")
    return images, report


def prepared_images(folder: Path) -> np.ndarray:
    """Return the array of a prepared dataset, uint8 [N,H,W,C], mapped into memory. Raises ValueError if it is
    damaged.
    """
    if not (folder / IMAGES).is_file():  # opening a pipe would block
        raise ValueError(f"{IMAGES} is missing, or not a file")
    try:
        # Copy on write protects the file, and torch warns about read-only arrays.
        images = np.load(folder / IMAGES, mmap_mode="c", allow_pickle=False)
    except Exception as error:  # NumPy has no common base class for the errors of damaged files
        raise ValueError(f"{IMAGES} cannot be read ({error})") from None
    if not isinstance(images, np.ndarray) or images.dtype != np.uint8 or images.ndim != 4 or not len(images):
        raise ValueError(f"{IMAGES} does not hold images")
    return images


def contact_sheet(folder: str | Path, count: int = 24) -> np.ndarray:
    """Return up to `count` evenly spaced images of a prepared dataset as one grid of full rows, uint8 [H,W,C]. Raises
    ValueError if it is damaged.
    """
    images = prepared_images(Path(folder))
    if images.shape[-1] not in MODES or not images.size:
        raise ValueError(f"{IMAGES} does not hold images")
    shown = min(count, len(images))
    widest = min(shown, math.ceil(math.sqrt(count)))
    columns = min(range(widest, widest // 2, -1), key=lambda columns: shown % columns)
    shown -= shown % columns  # a missing image would be a black tile
    return make_grid(images[np.linspace(0, len(images) - 1, shown).round().astype(int)], columns)


@contextmanager
def npy_writer(path: Path, shape: tuple[int, ...]) -> Iterator[Callable[[np.ndarray], None]]:
    """Yield a function that appends one uint8 array of `shape` to a new .npy file. The header, which states the number
    of arrays, is completed at the end.
    """
    count = 0

    def write_header() -> int:
        header = {"descr": "|u1", "fortran_order": False, "shape": (count, *shape)}
        np.lib.format.write_array_header_1_0(file, header)  # padded to a multiple of 64 bytes
        return file.tell()

    def append(array: np.ndarray) -> None:
        nonlocal count
        file.write(array)
        count += 1

    with path.open("wb") as file:
        start = write_header()
        yield append
        file.seek(0)
        if write_header() != start:
            raise RuntimeError(f"the length of the header of {quote(str(path))} depends on the number of images")
