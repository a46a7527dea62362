"""What is known of a prepared dataset: the facts kept beside it, sentences for the person who brought the pictures, and
a look at what is trained on.
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
    """The report of a prepared dataset. `used` names the pictures in the array's order."""

    duplicates: list[tuple[str, str]] = field(default_factory=list)  # name, and that of the same pixels kept
    left_aside: int = 0  # hidden files and those that systems leave about
    kinds: dict[str, int] = field(default_factory=dict)  # colour, grey, with transparency -> how many
    sizes: dict[str, list[int]] = field(default_factory=dict)  # smallest, median, largest -> [width, height], as found
    smaller: int = 0  # pictures that had to be enlarged

    def save(self, folder: Path) -> None:
        (folder / REPORT).write_text(json.dumps(asdict(self), indent=1, ensure_ascii=False), encoding="utf-8")

    @classmethod
    def load(cls, folder: str | Path) -> Findings:
        """Load the report of a prepared dataset. Raises ValueError where it is damaged, and OSError."""
        facts = read(Path(folder) / REPORT, MAX_REPORT)
        kinds = FIELDS.items()
        if wrong := [key for key, fits in kinds if key in facts and not fits(facts[key])] or facts.keys() - FIELDS:
            raise ValueError(f"the report of these images is damaged: {min(wrong)!r} is {quote(facts[min(wrong)])}")
        return cls(**facts | {key: list(map(tuple, facts.get(key, []))) for key in ("refused", "duplicates")})

    def describe(self, pictures: list[tuple[int, int, str]], image_size: int) -> None:
        """Put in what is known of the pictures used, each a width, a height and a kind."""
        sizes = sorted(([width, height] for width, height, _ in pictures), key=lambda size: (min(size), max(size)))
        self.sizes = {"smallest": sizes[0], "median": sizes[len(sizes) // 2], "largest": sizes[-1]}
        self.smaller = sum(min(size) < image_size for size in sizes)
        self.kinds = dict(Counter(kind for *_, kind in pictures).most_common())

    def sentences(self) -> list[str]:
        """All that there is to say but the names, for the person who brought the pictures."""
        count = len(self.used)
        kinds = ", ".join(f"{number:,} {kind}" for kind, number in self.kinds.items())
        sizes = ", ".join(f"{which} {width} x {height}" for which, (width, height) in self.sizes.items())
        said = [f"{count:,} pictures are fine ({kinds}; {sizes})." if count > 1 else f"One picture is fine ({sizes})."]
        if self.refused:
            said.append(f"{len(self.refused):,} not used, each for its reason.")
        if self.duplicates:
            said.append(f"{len(self.duplicates):,} show exactly what another shows, and are counted once.")
        if self.left_aside:
            said.append(f"{self.left_aside:,} hidden or system files left aside.")
        if self.smaller:
            said.append(f"{self.smaller:,} are smaller than what is trained on, and will look blurred.")
        return [*said, next(words for fewer_than, words in EXPECT if count < fewer_than)]

    def nothing(self) -> str:
        """Why there is no usable picture."""
        reasons = [f"{name}: {reason}" for name, reason in self.refused[:5]] or ["nothing was there"]
        reasons += [f"and {len(self.refused) - 5:,} more"] if len(self.refused) > 5 else []
        reasons += [f"{self.left_aside:,} hidden or system files left aside"] if self.left_aside else []
        return f"no usable picture ({'; '.join(reasons)})"


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


FIELDS: dict[str, Callable[[Any], bool]] = {  # of report.json
    "used": _are_texts,
    "refused": _are_pairs,
    "duplicates": _are_pairs,
    "left_aside": _is_whole,
    "kinds": _are_counts,
    "sizes": _are_sizes,
    "smaller": _is_whole,
}


# What is told of the 112 faces was measured (checkpoints/faces-32/README.md); the rest is advice.
EXPECT = (  # fewer pictures than that, and what to expect from them
    (
        20,
        "So few are learnt by heart: expect the same pictures again, and hardly anything new. Ten minutes show that;"
        " more time makes better copies, not other pictures.",
    ),
    (
        100,
        "These will mostly be learnt by heart: expect near copies and a few mixtures. Half an hour is worthwhile if"
        " they are alike; stop when the samples no longer change.",
    ),
    (
        500,
        "Expect clean samples if the pictures are alike, and many near copies: with 112 faces of 32 x 32, more than"
        " half of the samples redrew one, after 38 minutes on two processor cores. Longer hardly changes that; more"
        " pictures would.",
    ),
    (
        5_000,
        "Enough for new pictures if all show one kind of thing. Many different things need hours and a GPU: an hour"
        " on a processor is likely to give shapes and colours, and little that can be recognised.",
    ),
    (
        math.inf,
        "Enough for new pictures instead of copies, given time: plan for hours on a GPU. A processor alone is likely"
        " to stay at shapes and colours, unless the pictures are much alike.",
    ),
)


def contact_sheet(folder: str | Path, count: int = 24) -> np.ndarray:
    """Up to `count` pictures of a prepared dataset, evenly chosen, as trained on: one picture, uint8 [H,W,C]."""
    images = prepared_images(Path(folder))
    if images.shape[-1] not in MODES or not images.size:
        raise ValueError(f"{IMAGES} does not hold images")
    return grid(images[np.linspace(0, len(images) - 1, min(count, len(images))).round().astype(int)])
