"""A folder of pictures -> one checked, decoded uint8 array, and a report that names every file left out with its
reason.

Everything is decoded once, when the dataset is made: a file that cannot be read is found before training starts and
never during it, and training touches no image decoder. An array past `MEMORY_LIMIT` bytes lies in a temporary file
instead of memory.
"""

from __future__ import annotations

import os
import tempfile
import warnings
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from PIL import ExifTags, Image
from torch import Tensor
from torch.utils.data import Dataset

from dp.images import MODES, over_white, to_float

EXTENSIONS = ("jpg", "jpeg", "jfif", "png", "tif", "tiff", "webp", "bmp", "gif")
FORMATS = ("JPEG", "PNG", "TIFF", "WEBP", "BMP", "GIF")  # the decoders that an untrusted file may reach
HEIC_ADVICE = "HEIC is not read here; export it as JPEG"
MAX_PIXELS = 100_000_000
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
    files = files_below(folder, report)
    images = allocate((len(files), image_size, image_size, len(mode)))  # each letter of the three modes is a channel
    for path in files:
        name = path.relative_to(folder).as_posix()
        try:
            images[len(report.used)] = decode(path, image_size, mode, exts)
            report.used.append(name)
        except Refused as reason:
            report.refused.append((name, str(reason)))
    return images[: len(report.used)], report


def files_below(folder: Path, report: Report) -> list[Path]:
    """All files below `folder`, and links to folders, sorted; a folder that cannot be opened goes to the report."""

    def refuse(error: OSError) -> None:
        report.refused.append((Path(error.filename).relative_to(folder).as_posix(), "no permission to open"))

    files = []
    for here, folders, names in os.walk(folder, onerror=refuse):
        files += [Path(here, name) for name in names]
        files += [Path(here, name) for name in folders if os.path.islink(Path(here, name))]
    return sorted(files)


def allocate(shape: tuple[int, ...]) -> np.ndarray:
    """A uint8 array of that shape: in memory, or past MEMORY_LIMIT in a temporary file that goes with it."""
    if int(np.prod(shape)) <= MEMORY_LIMIT:
        return np.empty(shape, np.uint8)
    with tempfile.TemporaryFile() as file:
        return np.memmap(file, np.uint8, "w+", shape=shape)


class Refused(Exception):
    """Why a file is not used, in a few words for the person who put it there."""


def decode(path: Path, image_size: int, mode: str, exts: Sequence[str] = EXTENSIONS) -> np.ndarray:
    """One picture file -> uint8 [image_size, image_size, C], upright and cropped. Raises Refused with the reason."""
    suffix = path.suffix.lower().lstrip(".")
    if os.path.isdir(path):  # could lead round in a circle, or out of the folder that was named
        raise Refused("a link to a folder, which is not followed; copy the folder here")
    if path.name.startswith("._"):
        raise Refused("a macOS side file, not a picture")
    if suffix in ("heic", "heif"):
        raise Refused(HEIC_ADVICE)
    if suffix not in {ext.lower().lstrip(".") for ext in exts}:
        raise Refused(f"not one of the picture types read here ({', '.join(exts)})")
    try:
        if path.stat().st_size == 0:
            raise Refused("the file is empty")
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # size is checked here; metadata that Pillow finds odd does not matter
            with Image.open(path, formats=FORMATS) as image:
                if image.width * image.height > MAX_PIXELS:
                    raise Refused(f"{image.width} x {image.height} pixels, more than {MAX_PIXELS:,}")
                image.load()  # decodes the first frame
                image = square(convert(upright(image), mode), image_size)
                return np.asarray(image).reshape(image_size, image_size, len(mode))
    except Image.UnidentifiedImageError:
        if is_heic(path):
            raise Refused(HEIC_ADVICE) from None
        raise Refused(f"not a picture, whatever its name says: its content is none of {', '.join(FORMATS)}") from None
    except Image.DecompressionBombError:
        raise Refused(f"more than {MAX_PIXELS:,} pixels") from None
    except PermissionError:
        raise Refused("no permission to read it") from None
    except Refused:
        raise
    except Exception as error:  # Pillow's decoders answer a damaged file with almost any exception
        raise Refused(f"damaged: {error}") from None


def is_heic(path: Path) -> bool:
    with path.open("rb") as file:
        return file.read(12)[4:] in (b"ftypheic", b"ftypheix", b"ftypmif1", b"ftypmsf1")


def convert(image: Image.Image, mode: str) -> Image.Image:
    """Any mode -> 'L', 'RGB' or 'RGBA'. 16-bit greys are scaled to 8 bits; transparency is laid over white where `mode`
    has none.
    """
    if image.mode.startswith("I"):
        wide = np.asarray(image)
        if wide.min() < 0 or wide.max() > 65535:
            raise Refused("32-bit integer pixels; export it with 8 or 16 bits")
        image = Image.fromarray((wide / 257).round().astype(np.uint8), "L")  # 65535 = 257 * 255
    elif image.mode == "F":
        raise Refused("floating-point pixels; export it with 8 or 16 bits")
    elif image.mode == "LAB":
        image = image.convert("RGB")  # the only way out of it that Pillow knows
    if mode == "RGBA":
        return image.convert("RGBA")
    if image.has_transparency_data:
        image = over_white(image.convert("RGBA"))
    return image.convert(mode)


TURNS = {  # EXIF orientation -> what puts the picture upright
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


def upright(image: Image.Image) -> Image.Image:
    """Turned as EXIF says. ImageOps.exif_transpose also rewrites all of the metadata, and fails on an odd entry."""
    try:
        turn = TURNS.get(image.getexif().get(ExifTags.Base.Orientation))
    except Exception:  # unreadable metadata says nothing
        turn = None
    return image if turn is None else image.transpose(turn)


def square(image: Image.Image, image_size: int) -> Image.Image:
    """The centre square, resized with antialiasing: the same as resizing the short side first, without the cost of a
    very long other side.
    """
    side = min(image.size)
    # whole pixels of the resized picture
    left, top = (round((length - side) * image_size / side / 2) * side / image_size for length in image.size)
    return image.resize((image_size, image_size), Image.Resampling.BICUBIC, box=(left, top, left + side, top + side))
