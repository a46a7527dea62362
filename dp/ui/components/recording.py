"""Recordings: what a component shows before the visitor has made anything. docs/recordings.py makes them."""

from __future__ import annotations

import json
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any


def recording_reader(path: Path | None) -> Callable[[Any], Any]:
    """Return a component's server function `recording`: the content of a JSON file, or None if there is none."""

    def recording(data: Any) -> Any:
        with suppress(OSError, ValueError):  # a model may be removed while the app runs
            return json.loads(path.read_text(encoding="utf-8")) if path else None
        return None

    return recording
