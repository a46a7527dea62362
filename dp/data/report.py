"""The report of a dataset: the result for each file on disk, and a summary for the person who uploaded the images."""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from dp.system.records import WHOLE, fits, read
from dp.system.validation import quote

REPORT = "report.json"
MAX_LISTED_CLASSES = 12
MAX_REPORT = 200_000_000  # size limit of report.json in bytes; it names every file


@dataclass
class DatasetReport:
    """The result for each file of a dataset.

    accepted: the names of the images, in the order of the array. rejected: name and reason of each rejected file.
    duplicates: the name of each image that was skipped, and that of the accepted image with the same pixels. ignored:
    number of hidden and system files. kinds: number of images by kind (color, grayscale, with transparency). sizes:
    smallest, median and largest size before resizing, [width, height]. smaller: number of images that were enlarged.
    classes: the names of the classes, if the folders are classes (see `dp.data.classes`). labels: the label of each
    accepted image, from 1, or 0 for no class.

    Names are relative to the folder, or as `dp.data.sources` composes them for a prepared dataset. Datasets that are
    decoded in memory have only `accepted` and `rejected`.
    """

    accepted: list[str] = field(default_factory=list)
    rejected: list[tuple[str, str]] = field(default_factory=list)
    duplicates: list[tuple[str, str]] = field(default_factory=list)
    ignored: int = 0
    kinds: dict[str, int] = field(default_factory=dict)
    sizes: dict[str, list[int]] = field(default_factory=dict)
    smaller: int = 0
    classes: list[str] = field(default_factory=list)
    labels: list[int] = field(default_factory=list)

    def __str__(self) -> str:
        lines = [f"{len(self.accepted)} images accepted, {len(self.rejected)} files rejected"]
        return "\n".join(lines + [f"  {name}: {reason}" for name, reason in self.rejected])

    def save(self, folder: Path) -> None:
        """Write report.json to the folder of a prepared dataset."""
        (folder / REPORT).write_text(json.dumps(asdict(self), indent=1, ensure_ascii=False), encoding="utf-8")

    @classmethod
    def load(cls, folder: str | Path) -> DatasetReport:
        """Load the report of a prepared dataset. Raises ValueError if it is damaged, and OSError."""
        facts = {OLD_FIELDS.get(key, key): value for key, value in read(Path(folder) / REPORT, MAX_REPORT).items()}
        if wrong := [key for key, is_valid in FIELDS.items() if key in facts and not is_valid(facts[key])]:
            raise ValueError(f"the dataset's {REPORT} is damaged: {min(wrong)!r} is {quote(facts[min(wrong)])}")
        if unknown := facts.keys() - FIELDS.keys():
            raise ValueError(f"the dataset's {REPORT} is damaged: unknown field {quote(min(unknown))}")
        if any(label > len(facts.get("classes", [])) for label in facts.get("labels", [])):
            raise ValueError(f"the dataset's {REPORT} is damaged: a label beyond its classes")
        kinds = {OLD_KINDS.get(kind, kind): count for kind, count in facts.get("kinds", {}).items()}
        pairs = {key: list(map(tuple, facts.get(key, []))) for key in ("rejected", "duplicates")}
        return cls(**facts | pairs | {"kinds": kinds})

    def describe(self, images: list[tuple[int, int, str]], image_size: int) -> None:
        """Set the sizes and kinds from the accepted images: the original width, height and kind of each."""
        sizes = sorted(([width, height] for width, height, _ in images), key=lambda size: (min(size), max(size)))
        self.sizes = {"smallest": sizes[0], "median": sizes[len(sizes) // 2], "largest": sizes[-1]}
        self.smaller = sum(min(size) < image_size for size in sizes)
        self.kinds = dict(Counter(kind for *_, kind in images).most_common())

    def class_counts(self) -> dict[str, int]:
        """Return how many images each class has."""
        counts = Counter(self.labels)
        return {name: counts[label] for label, name in enumerate(self.classes, 1)}

    def summary_lines(self) -> list[str]:
        """Return the summary for the person who uploaded the images, without file names. The last line says what to
        expect from training on them.
        """
        count = len(self.accepted)
        kinds = ", ".join(f"{number:,} {kind}" for kind, number in self.kinds.items())
        sizes = ", ".join(f"{which} {width} x {height}" for which, (width, height) in self.sizes.items())
        lines = [f"{count:,} images accepted ({kinds}; {sizes})." if count > 1 else f"One image accepted ({sizes})."]
        if self.rejected:
            lines.append(f"{_counted(len(self.rejected), 'file')} skipped.")
        if self.duplicates:
            lines.append(f"{_counted(len(self.duplicates), 'exact duplicate')} ignored.")
        if self.ignored:
            lines.append(f"{_counted(self.ignored, 'hidden or system file')} ignored.")
        if self.smaller:
            subject = f"{_counted(self.smaller, 'image')} {'is' if self.smaller == 1 else 'are'}"
            lines.append(f"{subject} smaller than the training size and will look blurred.")
        return [*lines, *self._class_lines(), next(advice for limit, advice in EXPECT if count < limit)]

    def _class_lines(self) -> list[str]:
        """Return what the report says about the classes: their sizes, the smallest, and the images without one."""
        if not self.classes:
            return []
        counts = self.class_counts()
        few, most = min(counts.values()), max(counts.values())
        many = f"{len(counts):,} classes, from the folders"
        if len(counts) <= MAX_LISTED_CLASSES:
            is_one = list(counts.values()).count(few) == 1  # more than one need no mark: their sizes say it
            marks = {name: " (fewest)" for name, count in counts.items() if count == few and is_one}
            sizes = ", ".join(f"{name} {count:,}{marks.get(name, '')}" for name, count in counts.items())
            lines = [f"{many}: {sizes}."]
        else:
            smallest = sorted(counts, key=lambda name: counts[name])[: MAX_LISTED_CLASSES // 2]
            sizes = ", ".join(f"{name} {counts[name]:,}" for name in smallest)
            lines = [f"{many}, of {few:,} to {most:,} images; the smallest: {sizes}."]
        return lines + ([f"{none:,} without a class, outside these folders."] if (none := self.labels.count(0)) else [])

    def no_images_message(self) -> str:
        """Return why there is no usable image, with the first reasons."""
        reasons = [f"{name}: {reason}" for name, reason in self.rejected[:5]] or ["no files found"]
        reasons += [f"and {len(self.rejected) - 5:,} more"] if len(self.rejected) > 5 else []
        reasons += [f"{_counted(self.ignored, 'hidden or system file')} ignored"] if self.ignored else []
        return f"no usable image ({'; '.join(reasons)})"


def _counted(number: int, noun: str) -> str:
    return f"{number:,} {noun}" if number == 1 else f"{number:,} {noun}s"


def _are_texts(value: Any, count: int | None = None) -> bool:
    return isinstance(value, list) and all(isinstance(v, str) for v in value) and count in (None, len(value))


def _are_pairs(value: Any) -> bool:
    return isinstance(value, list) and all(_are_texts(pair, 2) for pair in value)


def _is_whole(value: Any) -> bool:
    return value is not None and fits(value, WHOLE)


def _are_counts(value: Any) -> bool:
    return isinstance(value, dict) and all(map(_is_whole, value.values()))


def _are_sizes(value: Any) -> bool:
    sizes = value.values() if isinstance(value, dict) else [None]
    return all(isinstance(size, list) and len(size) == 2 and all(map(_is_whole, size)) for size in sizes)


FIELDS: dict[str, Callable[[Any], bool]] = {  # of report.json, each with its check
    "accepted": _are_texts,
    "rejected": _are_pairs,
    "duplicates": _are_pairs,
    "ignored": _is_whole,
    "kinds": _are_counts,
    "sizes": _are_sizes,
    "smaller": _is_whole,
    "classes": _are_texts,
    "labels": lambda value: isinstance(value, list) and all(map(_is_whole, value)),
}
# Names in reports of the first version.
OLD_FIELDS = {"used": "accepted", "refused": "rejected", "left_aside": "ignored"}
OLD_KINDS = {"colour": "color", "grey": "grayscale"}

# The statement about the 112 faces was measured (checkpoints/faces-32/README.md); the rest is advice.
EXPECT = (  # (limit, the advice for fewer images than that)
    (
        20,
        "With so few, the model will memorize them: expect copies, not new images. Ten minutes are enough to see it;"
        " more time gives better copies.",
    ),
    (
        100,
        "A model will mostly memorize these: expect near copies and a few mixtures. If they are alike, half an hour is"
        " worthwhile; stop when the samples no longer change.",
    ),
    (
        500,
        "Expect clean samples if the images are alike, and many near copies: with 112 faces of 32 x 32, more than half"
        " of the samples were near copies after 38 minutes on two CPU cores. More images help; more time hardly does.",
    ),
    (
        5_000,
        "Enough for new images if all show one kind of thing. Many different things need hours and a GPU: an hour on a"
        " CPU is likely to give shapes and colors, and little that can be recognized.",
    ),
    (
        math.inf,
        "Enough for new images instead of copies, given time: plan for hours on a GPU. A CPU alone is likely to stay at"
        " shapes and colors, unless the images are much alike.",
    ),
)
