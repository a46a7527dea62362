"""The classes of a checkpoint by name."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from difflib import get_close_matches
from typing import Any

from dp.system.validation import quote

MAX_LISTED = 12  # classes in a message


def classes_of(config: Mapping[str, Any]) -> list[str]:
    """Return the names of a model's classes, in the order of their labels. A class without a name is called by its
    label.
    """
    return config.get("classes") or [str(label) for label in range(1, config["network"].get("num_classes", 0) + 1)]


def label_of(name: str, classes: Sequence[str]) -> int:
    """Return the label of the class of that name, or with that label; a name comes first. Raises ValueError, with the
    classes that there are.
    """
    if name in classes:
        return classes.index(name) + 1
    if name.isascii() and name.isdigit() and len(name) < 5 and int(name) <= len(classes):
        return int(name)
    if not classes:
        raise ValueError(f"there is no class {quote(name)}: this model has no classes")
    near = get_close_matches(name, classes, 1)
    hint = f"did you mean {quote(near[0])}? " if near else ""
    more = f", and {len(classes) - MAX_LISTED:,} more" if len(classes) > MAX_LISTED else ""
    raise ValueError(f"there is no class {quote(name)}; {hint}choose one of: {', '.join(classes[:MAX_LISTED])}{more}")
