"""A folder of pictures -> one checked, decoded uint8 array, and a report that names every file left out with its
reason.

Everything is decoded once, when the dataset is made: a file that cannot be read is found before training starts and
never during it, and training touches no image decoder. An array past `MEMORY_LIMIT` bytes lies in a temporary file
instead of memory. A folder that `dp.data.prepare.prepare` wrote holds the array already, and is mapped into memory.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from dp.data.codec import MODES, to_float
from dp.data.decode import EXTENSIONS, Refused, decode
from dp.system.records import read
from dp.system.validation import quote

MEMORY_LIMIT = 2 << 30
MAX_REPORT = 200_000_000  # bytes of report.json: it names every file
IMAGES, REPORT = "images.npy", "report.json"  # a prepared dataset: uint8 [N,H,W,C], and what became of each file


@dataclass
class Report:
    """The result for each file of a folder: the names of the accepted images, in order, and (name, reason) of each
    rejected file. Names are relative to the folder, or as a prepared dataset stores them.
    """

    used: list[str] = field(default_factory=list)
    refused: list[tuple[str, str]] = field(default_factory=list)

    def __str__(self) -> str:
        lines = [f"{len(self.used)} pictures used, {len(self.refused)} files left out"]
        return "\n".join(lines + [f"  {name}: {reason}" for name, reason in self.refused])


class ImageDataset(Dataset):
    """All pictures below `folder`, or those of a prepared dataset, as items [C, image_size, image_size] in [0, 1].

    exts: extensions taken, in any case. convert_image_to: 'L', 'RGB' (the default) or 'RGBA'; transparency is laid over
    white where the mode has none. EXIF orientation is applied, the short side is resized to `image_size` with
    antialiasing, and the centre is cropped. `images` is the decoded array, uint8 [N,H,W,C]; `report` says what was left
    out and why. No picture at all is a ValueError with that report; so is a prepared dataset of another size or mode.
    """

    def __init__(
        self,
        folder: str | Path,
        image_size: int,
        exts: Sequence[str] = EXTENSIONS,
        augment_horizontal_flip: bool = False,
        convert_image_to: str | None = None,
    ):
        mode = convert_image_to or "RGB"
        if mode not in MODES.values():
            raise ValueError(f"convert_image_to must be one of {', '.join(MODES.values())}, got {quote(mode)}")
        if image_size < 1:
            raise ValueError(f"image_size must be at least 1, got {quote(image_size)}")
        folder = Path(folder)
        if not os.path.isdir(folder):  # False also for a name that is too long
            raise ValueError(f"there is no folder {quote(str(folder))}")
        self.folder, self.image_size, self.augment_horizontal_flip = folder, image_size, augment_horizontal_flip
        self.exts = exts
        self.is_prepared = is_prepared(folder)
        if self.is_prepared:
            self.images, self.report = load_prepared(folder, image_size, mode)
        else:
            self.images, self.report = decode_folder(folder, image_size, mode, exts)
        self._check_not_empty()

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> Tensor:
        image = to_float(torch.from_numpy(np.array(self.images[index])[None]))[0]
        return image.flip(-1) if self.augment_horizontal_flip and torch.rand(()) < 0.5 else image

    def leave_out(self, folder: Path, reason: str) -> None:
        """Drop the pictures below `folder`, and name them in the report."""
        if self.is_prepared:  # its names are no paths
            return
        paths = {name: (self.folder / name).resolve() for name in self.report.used}
        dropped = [name for name, path in paths.items() if folder.resolve() in path.parents]
        if dropped:
            self.images = self.images[[name not in dropped for name in self.report.used]]
            self.report.used = [name for name in self.report.used if name not in dropped]
            self.report.refused += [(name, reason) for name in dropped]
            self._check_not_empty()

    def _check_not_empty(self) -> None:
        if not len(self.images):
            looked_for = ", ".join(self.exts)
            raise ValueError(f"no usable image in {quote(str(self.folder))} (looked for {looked_for}): {self.report}")


def is_prepared(folder: Path) -> bool:
    return (folder / IMAGES).is_file() and (folder / REPORT).is_file()


def load_prepared(folder: Path, image_size: int, mode: str) -> tuple[np.ndarray, Report]:
    """Map a dataset that `dp.data.prepare.prepare` wrote: uint8 [N,image_size,image_size,C], read from disk on access,
    and its report.
    """
    try:
        images = prepared_images(folder)
        facts = read(folder / REPORT, MAX_REPORT)
        report = Report(list(facts["used"]), [(name, reason) for name, reason in facts["refused"]])
        if len(images) != len(report.used):
            raise ValueError(f"{images.shape} for {len(report.used)} names")
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ValueError(f"the dataset in {quote(str(folder))} is damaged ({error}); prepare it again") from None
    height, width, channels = images.shape[1:]
    if (height, width, channels) != (image_size, image_size, len(mode)):
        was = f"{width} x {height} {MODES.get(channels, f'with {channels} channels')}"
        wanted = f"{image_size} x {image_size} {mode}"
        raise ValueError(f"the dataset in {quote(str(folder))} is {was}, and {wanted} is asked for; prepare it again")
    return images, report


def prepared_images(folder: Path) -> np.ndarray:
    """Return the array of a prepared dataset, uint8 [N,H,W,C]. Raises ValueError where it is damaged."""
    if not (folder / IMAGES).is_file():  # a pipe would never answer
        raise ValueError(f"{IMAGES} is missing, or not a file")
    try:
        # Copy on write: the file cannot change through it, and torch takes no read-only array without a warning.
        images = np.load(folder / IMAGES, mmap_mode="c", allow_pickle=False)
    except Exception as error:  # NumPy has no one class for what may be wrong with a file
        raise ValueError(f"{IMAGES} cannot be read ({error})") from None
    if not isinstance(images, np.ndarray) or images.dtype != np.uint8 or images.ndim != 4 or not len(images):
        raise ValueError(f"{IMAGES} does not hold images")
    return images


@contextmanager
def appending(path: Path, shape: tuple[int, ...]) -> Iterator[Callable[[np.ndarray], None]]:
    """A function that adds one uint8 array of `shape` to a new .npy file, whose head is put right at the end."""
    count = 0

    def write_head() -> int:
        head = {"descr": "|u1", "fortran_order": False, "shape": (count, *shape)}
        np.lib.format.write_array_header_1_0(file, head)  # padded to a multiple of 64 bytes
        return file.tell()

    def append(array: np.ndarray) -> None:
        nonlocal count
        file.write(array)
        count += 1

    with path.open("wb") as file:
        start = write_head()
        yield append
        file.seek(0)
        if write_head() != start:
            raise RuntimeError(f"the head of {quote(str(path))} does not have one length for every number of pictures")


def decode_folder(folder: Path, image_size: int, mode: str, exts: Sequence[str]) -> tuple[np.ndarray, Report]:
    """Every file below `folder`, in the order of their names -> uint8 [N,image_size,image_size,C], and the report."""
    report = Report()
    files = sorted(files_below(folder, report))
    images = allocate((len(files), image_size, image_size, len(mode)))  # each letter of the three modes is a channel
    for path in files:
        name = path.relative_to(folder).as_posix()
        try:
            images[len(report.used)] = decode(path, image_size, mode, exts)
            report.used.append(name)
        except Refused as reason:
            report.refused.append((name, str(reason)))
    return images[: len(report.used)], report


def files_below(folder: Path, report: Report) -> Iterator[Path]:
    """All files below `folder`, and links to folders; a folder that cannot be opened goes to the report."""

    def refuse(error: OSError) -> None:
        report.refused.append((Path(error.filename).relative_to(folder).as_posix(), "no permission to open"))

    for here, folders, names in os.walk(folder, onerror=refuse):
        yield from (Path(here, name) for name in names)
        yield from (Path(here, name) for name in folders if os.path.islink(Path(here, name)))


def allocate(shape: tuple[int, ...]) -> np.ndarray:
    """A uint8 array of that shape: in memory, or past MEMORY_LIMIT in a temporary file that goes with it."""
    if int(np.prod(shape)) <= MEMORY_LIMIT:
        return np.empty(shape, np.uint8)
    with tempfile.TemporaryFile() as file:
        return np.memmap(file, np.uint8, "w+", shape=shape)
