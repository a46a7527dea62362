"""Exact models: the best possible denoiser for a model's training images (`dp.diffusion.exact`), as a checkpoint that
can be sampled like any other. There is one for each model whose whole training set is here: a bundled model with a
`training_set` in its config.json, which says that images.zip is all of it, and a training run that has its dataset.

Its images are copies of training images. Those of a run carry the run, so they are as private as the run.
"""

from __future__ import annotations

import hashlib
import zipfile
from dataclasses import replace
from functools import lru_cache
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from PIL import Image

from dp.checkpoints.catalog import CheckpointInfo, inspect_folder
from dp.checkpoints.classes import classes_of
from dp.data.codec import MODES
from dp.data.prepared import IMAGES, is_prepared, load_prepared, prepared_images
from dp.data.report import REPORT
from dp.diffusion.exact import ExactDenoiser
from dp.diffusion.policy import DiffusionPolicy
from dp.system.validation import message_of, quote
from dp.training.run_folder import RunFolder

ARCHIVE = "images.zip"
MOST_NUMBERS = 60_000_000  # in all images of a set: beyond it, a step takes seconds


Stamp = frozenset[tuple[str, int, int]]  # of files: name, time and size


class TrainingSet(NamedTuple):
    """images: uint8 [N,H,W,C]. labels: the class of each, 0 for none. mirrored: whether training mirrored them."""

    images: np.ndarray
    labels: list[int]
    mirrored: bool


def find_exact(entry: CheckpointInfo) -> CheckpointInfo:
    """Return the exact model of a checkpoint. Raises ValueError, with the reason, where there is none."""
    if entry.is_exact:
        return entry
    if entry.problem:
        raise ValueError(entry.problem)
    found = _find(entry.path, entry.run, entry.hub, stamp_of(files_of(entry)))
    if isinstance(found, str):
        raise ValueError(found)
    return found


def with_exact(entries: list[CheckpointInfo]) -> list[CheckpointInfo]:
    """Return bundled checkpoints, each followed by its exact model, if there is one."""
    return [model for entry in entries for model in (entry, exact_or_none(entry)) if model]


def exact_or_none(entry: CheckpointInfo) -> CheckpointInfo | None:
    try:
        return find_exact(entry)
    except ValueError:
        return None


def files_of(entry: CheckpointInfo) -> list[Path]:
    """Return the files that the exact model of a checkpoint depends on."""
    if not entry.run:
        return [entry.path / "config.json", entry.path / ARCHIVE]
    run = run_of(entry)
    return [entry.path / "config.json", run.config_file, run.dataset / IMAGES, run.dataset / REPORT]


def stamp_of(files: list[Path]) -> Stamp:
    """Return the names, times and sizes of those files that exist."""
    found = [(str(file), file.stat()) for file in files if file.exists()]
    return frozenset((name, stat.st_mtime_ns, stat.st_size) for name, stat in found)


@lru_cache(maxsize=4096)
def _find(path: Path, run: str | None, hub: str | None, stamp: Stamp) -> CheckpointInfo | str:
    """Return the exact model of a checkpoint with files of that stamp, or the reason why there is none."""
    entry = inspect_folder(path)
    if entry is None or entry.problem:  # deleted or damaged a moment ago
        return f"the checkpoint in {quote(str(path))} cannot be read"
    entry, config = replace(entry, run=run, hub=hub), entry.config
    try:
        count = count_images(entry)
    except (OSError, ValueError, zipfile.BadZipFile) as error:
        is_reason = isinstance(error, ValueError)
        return message_of(error) if is_reason else f"the training images of {entry.name} cannot be read ({error})"
    scale = config["policy"].get("scale", 1)
    if scale != 1:
        return f"the best prediction is known only for an input scale of 1, and {entry.name} has {scale:g}"
    numbers = count * config["network"]["channels"] * config["network"]["image_size"] ** 2
    if numbers > MOST_NUMBERS:
        return f"the training images of {entry.name} have {numbers:,} numbers, and the limit is {MOST_NUMBERS:,}"
    exact = {"policy": config["policy"] | {"objective": "x0", "consistency": False}, "images": count}
    dropped = {"step", "original"} | ({"sampling"} if config["policy"].get("consistency") else set())
    return replace(entry, config={key: config[key] for key in config if key not in dropped} | exact, is_exact=True)


def count_images(entry: CheckpointInfo) -> int:
    """Return the size of a model's training set. Raises ValueError, with the reason, where it is not here."""
    if entry.kind != "image":
        raise ValueError(f"this needs training images, and {entry.name} is a model of sequences")
    if entry.hub:
        raise ValueError(f"this needs its training images, and {entry.hub} came from the Hub without them")
    if entry.run:
        dataset = run_of(entry).dataset
        if not is_prepared(dataset):
            raise ValueError(f"this needs the dataset of the training run {entry.run}, which is not here")
        return len(prepared_images(dataset))
    if "training_set" not in entry.config:
        raise ValueError(f"this needs all training images of {entry.name}, which do not come with it")
    with zipfile.ZipFile(entry.path / ARCHIVE) as archive:
        return len(archive.namelist())


def load_exact(entry: CheckpointInfo) -> tuple[DiffusionPolicy, str]:
    """Return the policy of an exact model, and the SHA-256 of its images. Raises ValueError if they are damaged."""
    training, options = training_set(entry), entry.config["policy"]
    labels = np.array(training.labels, np.int64)
    sha256 = hashlib.sha256(training.images.tobytes() + labels.tobytes() + bytes([training.mirrored])).hexdigest()
    schedule = {key: options[key] for key in ("noise_schedule", "schedule_kwargs") if key in options}
    images = torch.from_numpy(training.images.astype(np.float32) / 255).permute(0, 3, 1, 2).contiguous()
    denoiser = ExactDenoiser(images, labels=torch.from_numpy(labels), mirrored=training.mirrored, **schedule)
    return DiffusionPolicy(denoiser, **options), sha256


def training_set(entry: CheckpointInfo, most: int | None = None) -> TrainingSet:
    """Return the training images of a checkpoint that are here, or `most` of them, evenly chosen: of a bundled model
    without a `training_set` they are a sample. Raises ValueError if there are none, or if they are damaged.
    """
    network = entry.config["network"]
    size, mode = network["image_size"], MODES[network["channels"]]
    if not entry.run:
        found = read_archive(entry, size, mode)
    else:
        run = run_of(entry)
        images, report = load_prepared(run.dataset, size, mode)
        labels = list(report.labels) if network.get("num_classes") else [0] * len(images)
        mirrored = run.config().get("trainer", {}).get("augment_horizontal_flip", True)
        found = TrainingSet(images, labels, bool(mirrored))
    chosen = np.unique(np.linspace(0, len(found.labels) - 1, most or len(found.labels)).round().astype(int))
    return found._replace(images=found.images[chosen], labels=[found.labels[i] for i in chosen])


def read_archive(entry: CheckpointInfo, size: int, mode: str) -> TrainingSet:
    """Return the images that come with a bundled model, in folders named after its classes, if it has any."""
    if entry.hub or not (entry.path / ARCHIVE).is_file():
        raise ValueError(f"{entry.name} comes without any images")
    classes = ["", *classes_of(entry.config)]
    images, labels = [], []
    with zipfile.ZipFile(entry.path / ARCHIVE) as archive:
        for name in sorted(archive.namelist()):
            with archive.open(name) as file, Image.open(file) as image:
                images.append(np.array(image.convert(mode)).reshape(size, size, -1))
            labels.append(classes.index(name.rpartition("/")[0]))
    return TrainingSet(np.stack(images), labels, entry.config.get("training_set", {}).get("mirrored", False))


def run_of(entry: CheckpointInfo) -> RunFolder:
    return RunFolder(entry.path.parent.parent)
