"""The report of a prepared dataset: its facts on disk, a summary for the person who uploaded the images, and a contact
sheet.
"""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from dp.data.codec import MODES, grid
from dp.data.dataset import IMAGES, MAX_REPORT, REPORT, Report, prepared_images
from dp.system.records import WHOLE, fits, read
from dp.system.validation import quote


@dataclass
class Findings(Report):
    """The report of a prepared dataset. `used` names the images in the array's order."""

    duplicates: list[tuple[str, str]] = field(
        default_factory=list
    )  # the name, and that of the image with the same pixels
    left_aside: int = 0  # hidden and system files
    kinds: dict[str, int] = field(default_factory=dict)  # color, grayscale, with transparency -> number of images
    sizes: dict[str, list[int]] = field(default_factory=dict)  # smallest, median, largest -> [width, height], as found
    smaller: int = 0  # images that had to be enlarged

    def save(self, folder: Path) -> None:
        (folder / REPORT).write_text(json.dumps(asdict(self), indent=1, ensure_ascii=False), encoding="utf-8")

    @classmethod
    def load(cls, folder: str | Path) -> Findings:
        """Load the report of a prepared dataset. Raises ValueError where it is damaged, and OSError."""
        facts = read(Path(folder) / REPORT, MAX_REPORT)
        checks = FIELDS.items()
        if wrong := [key for key, fits in checks if key in facts and not fits(facts[key])] or facts.keys() - FIELDS:
            raise ValueError(f"the report of these images is damaged: {min(wrong)!r} is {quote(facts[min(wrong)])}")
        kinds = {SPELLINGS.get(kind, kind): count for kind, count in facts.get("kinds", {}).items()}
        pairs = {key: list(map(tuple, facts.get(key, []))) for key in ("refused", "duplicates")}
        return cls(**facts | pairs | {"kinds": kinds})

    def describe(self, pictures: list[tuple[int, int, str]], image_size: int) -> None:
        """Add the sizes and kinds of the accepted images, each a width, a height and a kind."""
        sizes = sorted(([width, height] for width, height, _ in pictures), key=lambda size: (min(size), max(size)))
        self.sizes = {"smallest": sizes[0], "median": sizes[len(sizes) // 2], "largest": sizes[-1]}
        self.smaller = sum(min(size) < image_size for size in sizes)
        self.kinds = dict(Counter(kind for *_, kind in pictures).most_common())

    def sentences(self) -> list[str]:
        """Return the summary for the person who uploaded the images, without their names."""
        count = len(self.used)
        kinds = ", ".join(f"{number:,} {kind}" for kind, number in self.kinds.items())
        sizes = ", ".join(f"{which} {width} x {height}" for which, (width, height) in self.sizes.items())
        said = [f"{count:,} images accepted ({kinds}; {sizes})." if count > 1 else f"One image accepted ({sizes})."]
        if self.refused:
            said.append(f"{len(self.refused):,} rejected, with the reasons below.")
        if self.duplicates:
            said.append(f"{len(self.duplicates):,} duplicates (the same pixels) skipped.")
        if self.left_aside:
            said.append(f"{self.left_aside:,} hidden or system files ignored.")
        if self.smaller:
            said.append(f"{self.smaller:,} are smaller than the training size and will look blurred.")
        return [*said, next(words for fewer_than, words in EXPECT if count < fewer_than)]

    def nothing(self) -> str:
        """Return why there is no usable image."""
        reasons = [f"{name}: {reason}" for name, reason in self.refused[:5]] or ["no files found"]
        reasons += [f"and {len(self.refused) - 5:,} more"] if len(self.refused) > 5 else []
        reasons += [f"{self.left_aside:,} hidden or system files ignored"] if self.left_aside else []
        return f"no usable image ({'; '.join(reasons)})"


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


SPELLINGS = {"colour": "color", "grey": "grayscale"}  # of kinds in reports of the first version
FIELDS: dict[str, Callable[[Any], bool]] = {  # of report.json
    "used": _are_texts,
    "refused": _are_pairs,
    "duplicates": _are_pairs,
    "left_aside": _is_whole,
    "kinds": _are_counts,
    "sizes": _are_sizes,
    "smaller": _is_whole,
}


# The statement about the 112 faces was measured (checkpoints/faces-32/README.md); the rest is advice.
EXPECT = (  # for fewer images than this number, the advice
    (
        20,
        "A model memorizes so few images: expect copies and hardly anything new. Ten minutes are enough to see it; more"
        " time gives better copies, not new images.",
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


def contact_sheet(folder: str | Path, count: int = 24) -> np.ndarray:
    """Return up to `count` evenly chosen images of a prepared dataset in one grid, uint8 [H,W,C]."""
    images = prepared_images(Path(folder))
    if images.shape[-1] not in MODES or not images.size:
        raise ValueError(f"{IMAGES} does not hold images")
    return grid(images[np.linspace(0, len(images) - 1, min(count, len(images))).round().astype(int)])
