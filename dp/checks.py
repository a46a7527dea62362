"""What a number may be, and the sentence where it is none of those. Standard library only."""

from __future__ import annotations

from numbers import Integral
from typing import Any

MAX_TIMESTEPS = 100_000  # far past any use; keeps a mistyped number from filling the memory with tables
MAX_SEED = 2**31


def check_integer(name: str, value: Any, low: int, high: int | None = None) -> None:
    """Raises ValueError, with the name and the value, unless `value` is a whole number from low to high."""
    if isinstance(value, bool) or not isinstance(value, Integral) or value < low or (high is not None and value > high):
        span = f"of at least {low}" if high is None else f"from {low} to {high}"
        raise ValueError(f"{name} must be a whole number {span}, got {value!r}")


def within(name: str, value: Any, low: float, high: float, whole: bool = True) -> Any:
    """What somebody typed, `value`, as a number from low to high, whole if it must be. Raises ValueError with its
    name.
    """
    is_number = isinstance(value, (int, float)) and not isinstance(value, bool)
    if not is_number or not low <= value <= high or (whole and value != int(value)):
        raise ValueError(f"{name} must be a {'whole ' if whole else ''}number from {low} to {high}, got {value!r:.80}")
    return int(value) if whole else float(value)
