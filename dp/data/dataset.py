"""A folder of images as one checked uint8 array, with a report that gives the reason for every rejected file.

Every file is decoded once, when the dataset is created. Unreadable files are therefore found before training starts,
and training decodes nothing. An array of more than `MEMORY_LIMIT` bytes is stored in a temporary file. A folder that
was written by `dp.data.prepare.prepare` already holds the array, which is then mapped into memory.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from dp.data.classes import check_classes, find_classes
from dp.data.codec import MODES, to_float
from dp.data.decode import EXTENSIONS, InvalidImage, decode
from dp.data.prepared import is_prepared, load_prepared
from dp.data.report import DatasetReport
from dp.data.sources import walk_files
from dp.system.validation import quote

MEMORY_LIMIT = 2 << 30


class ImageDataset(Dataset):
    """All images below `folder`, or those of a prepared dataset, as items [C, image_size, image_size] in [0, 1].

    exts: accepted file extensions, in any case. convert_image_to: 'L', 'RGB' (the default) or 'RGBA'; transparent
    images are composited on white if the mode has no alpha channel. EXIF orientation is applied, the short side is
    resized to `image_size` with antialiasing, and the center is cropped. `images` is the decoded array, uint8
    [N,H,W,C]; `report` is a DatasetReport. classes: the folders directly below are classes, see
    `dp.data.classes.find_classes`; `classes` are then their names, and `labels` the label of each image. Raises
    ValueError if there is no usable image (with the report), fewer than two classes if they are wanted, and if a
    prepared dataset has another size or mode.
    """

    def __init__(
        self,
        folder: str | Path,
        image_size: int,
        exts: Sequence[str] = EXTENSIONS,
        augment_horizontal_flip: bool = False,
        convert_image_to: str | None = None,
        classes: bool = False,
    ):
        mode = convert_image_to or "RGB"
        if mode not in MODES.values():
            raise ValueError(f"convert_image_to must be one of {', '.join(MODES.values())}, got {quote(mode)}")
        if image_size < 1:
            raise ValueError(f"image_size must be at least 1, got {quote(image_size)}")
        folder = Path(folder)
        if not os.path.isdir(folder):  # also False for a name that is too long
            raise ValueError(f"there is no folder {quote(str(folder))}")
        self.folder, self.image_size, self.augment_horizontal_flip = folder, image_size, augment_horizontal_flip
        self.exts = exts
        self.is_prepared = is_prepared(folder)
        if self.is_prepared:
            self.images, self.report = load_prepared(folder, image_size, mode)
        else:
            self.images, self.report = decode_folder(folder, image_size, mode, exts)
        self._check_not_empty()
        self.has_classes, self.classes, self.labels = classes, [], []
        self._find_classes()

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> Tensor:
        image = to_float(torch.from_numpy(np.array(self.images[index])[None]))[0]
        return image.flip(-1) if self.augment_horizontal_flip and torch.rand(()) < 0.5 else image

    def exclude(self, folder: Path, reason: str) -> None:
        """Remove the images below `folder`, and add them to the report as rejected for this reason. Has no effect on a
        prepared dataset, whose names are not paths.
        """
        if self.is_prepared:
            return
        paths = {name: (self.folder / name).resolve() for name in self.report.accepted}
        excluded = [name for name, path in paths.items() if folder.resolve() in path.parents]
        if excluded:
            self.images = self.images[[name not in excluded for name in self.report.accepted]]
            self.report.accepted = [name for name in self.report.accepted if name not in excluded]
            self.report.rejected += [(name, reason) for name in excluded]
            self._check_not_empty()
            self._find_classes()

    def _find_classes(self) -> None:
        if not self.has_classes:
            return
        found = self.report.classes, self.report.labels
        self.classes, self.labels = found if self.is_prepared else find_classes(self.report.accepted)
        check_classes(self.classes, str(self.folder))

    def _check_not_empty(self) -> None:
        if not len(self.images):
            extensions = ", ".join(self.exts)
            raise ValueError(f"no usable image in {quote(str(self.folder))} (looked for {extensions}): {self.report}")


# ----------------------------------------------------------------------------
# Folders of image files


def decode_folder(folder: Path, image_size: int, mode: str, exts: Sequence[str]) -> tuple[np.ndarray, DatasetReport]:
    """Decode all images below `folder` in the order of their names. Return them, uint8 [N,image_size,image_size,C], and
    the report.
    """
    report = DatasetReport()
    files = sorted(walk_files(folder, report))
    images = allocate((len(files), image_size, image_size, len(mode)))  # each letter of the mode is one channel
    for path in files:
        name = path.relative_to(folder).as_posix()
        try:
            images[len(report.accepted)] = decode(path, image_size, mode, exts)
            report.accepted.append(name)
        except InvalidImage as reason:
            report.rejected.append((name, str(reason)))
    return images[: len(report.accepted)], report


def allocate(shape: tuple[int, ...]) -> np.ndarray:
    """Return an uninitialized uint8 array, in memory or, above MEMORY_LIMIT, in a temporary file that is deleted with
    the array.
    """
    if int(np.prod(shape)) <= MEMORY_LIMIT:
        return np.empty(shape, np.uint8)
    with tempfile.TemporaryFile() as file:
        return np.memmap(file, np.uint8, "w+", shape=shape)
