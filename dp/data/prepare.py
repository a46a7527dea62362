"""Prepare a dataset: check and decode folders, files and archives, and report the result for every file.

    images.npy   uint8 [N,H,W,C], in the order of the names
    report.json  `dp.data.report.DatasetReport`

`ImageDataset` and `Trainer` accept the folder of these two files. All sources are listed first, so that exceeded limits
are reported before decoding begins. Each file is then decoded once, and only one is in memory at a time. The sources'
file names are never used as paths to write to.
"""

from __future__ import annotations

import time
from collections.abc import Generator, Iterator, Sequence
from contextlib import ExitStack
from hashlib import blake2b
from pathlib import Path
from typing import NamedTuple

from dp.data.archives import archive_kinds
from dp.data.classes import find_classes
from dp.data.codec import MODES
from dp.data.decode import DecodedImage, InvalidImage, check_name, decode_image, is_ignored
from dp.data.limits import Limits
from dp.data.prepared import IMAGES, is_prepared, npy_writer
from dp.data.report import DatasetReport
from dp.data.sources import SourceFile, iter_files
from dp.system.atomic_files import replacing
from dp.system.text import shown
from dp.system.validation import quote

PROGRESS_S = 0.1  # interval between progress reports while files are decoded
LISTING_S = 1.0  # the same while files are listed
MAX_REASON = 300  # length limit of a reason, which may quote the file
DEFAULT_LIMITS = Limits()


class Progress(NamedTuple):
    """The number of files done, their total (None while files are still being listed), and the name of the current
    file. The last one has the `report`.
    """

    done: int
    total: int | None
    name: str
    report: DatasetReport | None = None


def prepare(
    sources: str | Path | Sequence[str | Path],
    output_dir: str | Path,
    image_size: int,
    mode: str = "RGB",
    *,
    names: Sequence[str] | None = None,
    limits: Limits = DEFAULT_LIMITS,
) -> Iterator[Progress]:
    """Create the dataset folder `output_dir` from a folder, a file, an archive (zip or tar), or a list of these. Yield
    the progress. The folder appears complete, just before the last `Progress`; closing the iterator earlier leaves
    nothing behind.

    mode: 'L', 'RGB' or 'RGBA'. names: the display names of the sources, by default their file names. Raises ValueError
    if a limit is exceeded, there is no usable image, or `output_dir` holds anything but a dataset.
    """
    paths = [Path(path) for path in ([sources] if isinstance(sources, (str, Path)) else sources)]
    names = [path.name or str(path) for path in paths] if names is None else list(names)
    output_dir = Path(output_dir)
    if mode not in MODES.values():
        raise ValueError(f"mode must be one of {', '.join(MODES.values())}, got {quote(mode)}")
    if image_size < 1:
        raise ValueError(f"image_size must be at least 1, got {quote(image_size)}")
    if len(names) != len(paths):
        raise ValueError(f"{len(names)} names for {len(paths)} sources")
    if output_dir.exists() and not (output_dir.is_dir() and (is_prepared(output_dir) or not any(output_dir.iterdir()))):
        raise ValueError(f"{quote(str(output_dir))} is not empty and not a dataset; choose another folder")
    yield Progress(0, None, "")
    report = DatasetReport()
    with ExitStack() as stack:
        files = yield from _list_files(paths, names, limits, stack, report)
        with replacing(output_dir) as partial_dir:
            partial_dir.mkdir()
            shape = (image_size, image_size, len(mode))
            accepted = yield from _decode_files(files, partial_dir / IMAGES, shape, mode, limits, report)
            # Whole names: those of the report may be shortened. An archive is no class if it is the only source.
            inner = [file.inner if len(paths) == 1 else file.name for file in accepted]
            report.classes, report.labels = find_classes(inner, may_be_wrapped=True)
            report.save(partial_dir)
    yield Progress(len(files), len(files), "", report)


def _list_files(
    paths: list[Path], names: list[str], limits: Limits, stack: ExitStack, report: DatasetReport
) -> Generator[Progress, None, list[SourceFile]]:
    """Yield the progress, and return the files of all sources, sorted by name. Sources that are unusable as a whole are
    added to the report. Raises ValueError if a limit is exceeded.
    """
    files: list[SourceFile] = []
    last_progress = time.monotonic()
    for path, name in zip(paths, names):
        count, ignored = len(files), report.ignored
        try:
            for file in iter_files(path, name, len(paths) > 1, limits, stack, report):
                if is_ignored(file.inner):
                    report.ignored += 1
                else:
                    files.append(file)
                if len(files) + report.ignored > limits.files:
                    raise ValueError(f"more than {limits.files:,} files; bring fewer")
                if time.monotonic() - last_progress > LISTING_S:  # listing a compressed tar decompresses it
                    yield Progress(0, None, shown(file.name))
                    last_progress = time.monotonic()
        except InvalidImage as reason:
            del files[count:]
            report.ignored = ignored
            report.rejected.append((name, str(reason)))
    report.rejected = [(shown(name), shown(reason, MAX_REASON)) for name, reason in report.rejected]
    total_bytes = sum(file.size for file in files if file.size <= limits.file_bytes)
    if total_bytes > limits.total_bytes:
        raise ValueError(f"{total_bytes:,} bytes in total, more than {limits.total_bytes:,}; bring fewer files")
    return sorted(files, key=lambda file: file.name.split("/"))


def _decode_files(
    files: list[SourceFile],
    path: Path,
    shape: tuple[int, int, int],
    mode: str,
    limits: Limits,
    report: DatasetReport,
) -> Generator[Progress, None, list[SourceFile]]:
    """Decode the files to the array at `path`, without duplicates, and add the result for each file to the report.
    Yield the progress, and return the accepted files. Raises ValueError if there is no usable image.
    """
    name_by_hash: dict[bytes, str] = {}
    found: list[tuple[int, int, str]] = []  # original width, height and kind of each accepted image
    accepted: list[SourceFile] = []
    last_progress = 0.0
    with npy_writer(path, shape) as append:
        for done, file in enumerate(files):
            name = shown(file.name)
            if time.monotonic() - last_progress > PROGRESS_S:
                yield Progress(done, len(files), name)
                last_progress = time.monotonic()
            try:
                image = _decode(file, shape[0], mode, limits)
            except InvalidImage as reason:
                report.rejected.append((name, shown(str(reason), MAX_REASON)))
                continue
            digest = blake2b(image.pixels, digest_size=16).digest()
            if digest in name_by_hash:
                report.duplicates.append((name, name_by_hash[digest]))
                continue
            name_by_hash[digest] = name
            append(image.pixels)
            report.accepted.append(name)
            accepted.append(file)
            found.append((image.width, image.height, image.kind))
        if not found:
            raise ValueError(report.no_images_message())
    report.describe(found, shape[0])
    return accepted


def _decode(file: SourceFile, image_size: int, mode: str, limits: Limits) -> DecodedImage:
    if file.needs_image_name:
        if archive_kinds.stem(file.name) is not None:
            raise InvalidImage("an archive inside a folder or an archive is not opened; bring it by itself")
        if reason := archive_kinds.unsupported_reason(file.name):
            raise InvalidImage(reason)
        check_name(file.inner)
    if file.size > limits.file_bytes:
        raise InvalidImage(f"{file.size:,} bytes, more than {limits.file_bytes:,}")
    with file.open() as opened:
        return decode_image(opened, image_size, mode, limits.pixels)
