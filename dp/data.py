"""A folder of pictures -> one checked, decoded uint8 array, and a report that names every file left out with its
reason.

Everything is decoded once, when the dataset is made: a file that cannot be read is found before training starts and
never during it, and training touches no image decoder. An array past `MEMORY_LIMIT` bytes lies in a temporary file
instead of memory.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from dp.decoder import EXTENSIONS, Refused, decode
from dp.images import MODES, to_float

MEMORY_LIMIT = 2 << 30


@dataclass
class Report:
    """What became of each file of a folder: the names used, in order, and (name, reason) of each one left out. Names
    are relative to the folder.
    """

    used: list[str] = field(default_factory=list)
    refused: list[tuple[str, str]] = field(default_factory=list)

    def __str__(self) -> str:
        lines = [f"{len(self.used)} pictures used, {len(self.refused)} files left out"]
        return "\n".join(lines + [f"  {name}: {reason}" for name, reason in self.refused])


class ImageDataset(Dataset):
    """All pictures below `folder` as items [C, image_size, image_size] in [0, 1].

    exts: extensions taken, in any case. convert_image_to: 'L', 'RGB' (the default) or 'RGBA'; transparency is laid over
    white where the mode has none. EXIF orientation is applied, the short side is resized to `image_size` with
    antialiasing, and the centre is cropped. `images` is the decoded array, uint8 [N,H,W,C]; `report` says what was left
    out and why. No picture at all is a ValueError with that report.
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
            raise ValueError(f"convert_image_to must be one of {', '.join(MODES.values())}, got {mode!r}")
        if image_size < 1:
            raise ValueError(f"image_size must be at least 1, got {image_size}")
        folder = Path(folder)
        if not folder.is_dir():
            raise ValueError(f"there is no folder {str(folder)!r}")
        self.folder, self.image_size, self.augment_horizontal_flip = folder, image_size, augment_horizontal_flip
        self.exts = exts
        self.images, self.report = decode_folder(folder, image_size, mode, exts)
        self._check_not_empty()

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> Tensor:
        image = to_float(torch.from_numpy(np.array(self.images[index])[None]))[0]
        return image.flip(-1) if self.augment_horizontal_flip and torch.rand(()) < 0.5 else image

    def leave_out(self, folder: Path, reason: str) -> None:
        """Drop the pictures below `folder`, and name them in the report."""
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
            raise ValueError(f"no usable picture in {str(self.folder)!r} (looked for {looked_for}): {self.report}")


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
