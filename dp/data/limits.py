"""Limits on the files that a dataset is made from. Environment variables override the defaults."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass, fields

from dp.data.decode import MAX_PIXELS
from dp.system.validation import quote

PILLOW_PIXELS = 178_956_970  # of one image, at which Pillow stops by itself


@dataclass(frozen=True)
class Limits:
    """How much is taken, at most; larger files are refused one by one, all else as a whole."""

    files: int = 100_000  # looked at in all, those inside archives included
    file_bytes: int = 256 << 20  # of one picture file
    total_bytes: int = 50 << 30  # of all of them
    pixels: int = MAX_PIXELS  # of one picture
    zip_entries: int = 100_000  # of one archive, a zip or a tar
    zip_bytes: int = 20 << 30  # that one archive unpacks to
    zip_ratio: int = 200  # of these bytes to the archive's own

    def __post_init__(self):
        for limit in fields(self):
            value = getattr(self, limit.name)
            if not isinstance(value, int) or value < 1:
                raise ValueError(f"{limit.name} must be a whole number of at least 1, got {quote(value)}")
        if self.pixels > PILLOW_PIXELS:
            raise ValueError(f"pixels must be at most {PILLOW_PIXELS:,}, got {self.pixels:,}")

    @classmethod
    def of_environment(cls) -> Limits:
        """Return the limits in DP_MAX_FILES and so on, a variable for each. Raises ValueError, which names it."""
        names = {limit.name: f"DP_MAX_{limit.name.upper()}" for limit in fields(cls)}
        given = {limit: os.environ[name].strip() for limit, name in names.items() if name in os.environ}
        for limit, text in given.items():
            if not re.fullmatch("[0-9]{1,18}", text) or int(text) < 1:
                words = f"{limit} must be a whole number of at least 1, got {quote(text)}"
                raise ValueError(f"the environment's {names[limit]}: {words}")
        try:
            return cls(**{limit: int(text) for limit, text in given.items()})
        except ValueError as error:
            raise ValueError(f"the environment's DP_MAX_PIXELS: {error}") from None
