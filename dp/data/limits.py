"""Limits on the files of a dataset. Environment variables override the defaults. The app checks them before it loads
anything else, so this module needs only the standard library.
"""

from __future__ import annotations

import os
import re
from dataclasses import dataclass, fields

from dp.system.validation import quote

MAX_PIXELS = 100_000_000
PILLOW_PIXELS = 178_956_970  # Pillow's own limit on one image


@dataclass(frozen=True)
class Limits:
    """Upper limits. A file that exceeds `file_bytes` or `pixels` is rejected, as is an archive that exceeds one of the
    `zip_` limits, which also apply to tar archives. If `files` or `total_bytes` is exceeded, there is no dataset.
    """

    files: int = 100_000  # in total, including those in archives
    file_bytes: int = 256 << 20  # of one image file
    total_bytes: int = 50 << 30  # of all image files
    pixels: int = MAX_PIXELS  # of one image
    zip_entries: int = 100_000  # of one archive
    zip_bytes: int = 20 << 30  # decompressed size of one archive
    zip_ratio: int = 200  # of the decompressed to the compressed size of one archive

    def __post_init__(self):
        for limit in fields(self):
            value = getattr(self, limit.name)
            if not isinstance(value, int) or value < 1:
                raise ValueError(f"{limit.name} must be a whole number of at least 1, got {quote(value)}")
        if self.pixels > PILLOW_PIXELS:
            raise ValueError(f"pixels must be at most {PILLOW_PIXELS:,}, got {self.pixels:,}")

    @classmethod
    def from_environment(cls) -> Limits:
        """Return the limits with overrides from the variables DP_MAX_FILES, DP_MAX_FILE_BYTES and so on. Raises
        ValueError, which names the variable.
        """
        names = {limit.name: f"DP_MAX_{limit.name.upper()}" for limit in fields(cls)}
        given = {limit: os.environ[name].strip() for limit, name in names.items() if name in os.environ}
        for limit, text in given.items():
            if not re.fullmatch("[0-9]{1,18}", text) or int(text) < 1:
                raise ValueError(f"{names[limit]} must be a whole number of at least 1, got {quote(text)}")
        try:
            return cls(**{limit: int(text) for limit, text in given.items()})
        except ValueError as error:  # only `pixels` has an upper bound
            raise ValueError(f"DP_MAX_PIXELS: {error}") from None
