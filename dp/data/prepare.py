"""Prepare a dataset: check and decode a folder, files or archives, or several of these, and report on every file.

    images.npy   uint8 [N,H,W,C], in the order of the names
    report.json  `dp.data.report.Findings`

`ImageDataset` and `Trainer` take the folder of these two as it is. Everything is listed first, so that what is too much
is said before the work begins; then each file is decoded once and let go. Names from outside are only ever shown.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from hashlib import blake2b
from pathlib import Path
from typing import NamedTuple

from dp.data.archives import archive_kinds
from dp.data.codec import MODES
from dp.data.dataset import IMAGES, appending, is_prepared
from dp.data.decode import Picture, Refused, check_name, read_picture
from dp.data.limits import Limits
from dp.data.report import Findings
from dp.data.sources import Found, files_of, is_left_aside
from dp.system.atomic_files import replacing
from dp.system.text import shown
from dp.system.validation import quote

PROGRESS_S = 0.1  # from one word on the progress to the next
LISTING_S = 1.0  # the same while files are listed
REASON = 300  # characters of one, which may quote what it is about
SANE = Limits()


class Progress(NamedTuple):
    """So many of the files looked at; `total` is None while they are listed; `report` comes with the last one."""

    done: int
    total: int | None
    name: str
    report: Findings | None = None


def prepare(
    sources: str | Path | Sequence[str | Path],
    into: str | Path,
    image_size: int,
    mode: str = "RGB",
    *,
    names: Sequence[str] | None = None,
    limits: Limits = SANE,
) -> Iterator[Progress]:
    """A folder, a file, an archive (zip or tar), or a list of them -> the dataset folder `into`: whole at the last
    `Progress`, or not there at all. May be closed at any time.

    mode: 'L', 'RGB' or 'RGBA'. names: what each of `sources` was called where it came from; its own name otherwise.
    Too much, no usable image, or an `into` that holds anything but a dataset is a ValueError.
    """
    into, paths = Path(into), [Path(path) for path in ([sources] if isinstance(sources, (str, Path)) else sources)]
    names = [path.name or str(path) for path in paths] if names is None else list(names)
    if mode not in MODES.values():
        raise ValueError(f"mode must be one of {', '.join(MODES.values())}, got {quote(mode)}")
    if image_size < 1:
        raise ValueError(f"image_size must be at least 1, got {quote(image_size)}")
    if len(names) != len(paths):
        raise ValueError(f"{len(names)} names for {len(paths)} sources")
    if into.exists() and not (into.is_dir() and (is_prepared(into) or not any(into.iterdir()))):
        raise ValueError(f"{quote(str(into))} holds other things than a dataset; choose another place")
    yield Progress(0, None, "")
    report = Findings()
    with ExitStack() as opened:
        found: list[Found] = []
        said = time.monotonic()
        for path, name in zip(paths, names):
            before = len(found), report.left_aside
            try:
                for one in files_of(path, name, len(paths) > 1, limits, opened, report):
                    if is_left_aside(one.inner):
                        report.left_aside += 1
                    else:
                        found.append(one)
                    if len(found) + report.left_aside > limits.files:
                        raise ValueError(f"more than {limits.files:,} files; bring fewer")
                    if time.monotonic() - said > LISTING_S:  # a compressed tar is unpacked here
                        yield Progress(0, None, shown(one.name))
                        said = time.monotonic()
            except Refused as reason:  # the source as a whole
                del found[before[0] :]
                report.left_aside = before[1]
                report.refused.append((name, str(reason)))
        report.refused = [(shown(name), shown(reason, REASON)) for name, reason in report.refused]
        total_bytes = sum(one.size for one in found if one.size <= limits.file_bytes)
        if total_bytes > limits.total_bytes:
            raise ValueError(f"{total_bytes:,} bytes in all, more than {limits.total_bytes:,}; bring fewer files")
        found.sort(key=lambda one: one.name.split("/"))
        with replacing(into) as aside:
            aside.mkdir()
            yield from _decode(found, aside / IMAGES, (image_size, image_size, len(mode)), mode, limits, report)
            report.save(aside)
    yield Progress(len(found), len(found), "", report)


def _decode(
    found: list[Found], path: Path, shape: tuple[int, int, int], mode: str, limits: Limits, report: Findings
) -> Iterator[Progress]:
    """Each file -> the next row of the array at `path`, or a line of `report`."""
    kept: dict[bytes, str] = {}  # hash of the pixels -> name
    pictures, said = [], 0.0
    with appending(path, shape) as append:
        for done, one in enumerate(found):
            name = shown(one.name)
            if time.monotonic() - said > PROGRESS_S:
                yield Progress(done, len(found), name)
                said = time.monotonic()
            try:
                picture = _read(one, shape[0], mode, limits)
            except Refused as reason:
                report.refused.append((name, shown(str(reason), REASON)))
                continue
            key = blake2b(picture.pixels, digest_size=16).digest()
            if key in kept:
                report.duplicates.append((name, kept[key]))
                continue
            kept[key] = name
            append(picture.pixels)
            report.used.append(name)
            pictures.append((picture.width, picture.height, picture.kind))
        if not pictures:
            raise ValueError(report.nothing())
    report.describe(pictures, shape[0])


def _read(one: Found, image_size: int, mode: str, limits: Limits) -> Picture:
    if one.is_named:
        if archive_kinds.stem(one.name) is not None:
            raise Refused("an archive inside a folder or an archive is not opened; bring it by itself")
        if why := archive_kinds.why_not_read(one.name):
            raise Refused(why)
        check_name(one.inner)
    if one.size > limits.file_bytes:
        raise Refused(f"{one.size:,} bytes, more than {limits.file_bytes:,}")
    with one.open() as file:
        return read_picture(file, image_size, mode, limits.pixels)
