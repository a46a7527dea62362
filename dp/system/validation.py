"""Checks of numbers, with the message when one fails, and the helper that quotes input in any message. Standard library
only.
"""

from __future__ import annotations

import json
from numbers import Integral, Real
from typing import Any

MAX_TIMESTEPS = 100_000  # far past any use; keeps a mistyped number from filling the memory with tables
MAX_SEED = 2**31
MAX_QUOTED = 200  # characters of any input that a message repeats


def quote(value: Any) -> str:
    """Return `repr(value)` for an error message, cut to MAX_QUOTED characters with "…" where something was cut.

    Everything that an error message repeats from outside goes through here: input of any length stays readable, and
    what cannot be encoded or printed is escaped.
    """
    if isinstance(value, (str, bytes)):
        value = value[: MAX_QUOTED + 1]  # never build the repr of a whole upload
    try:
        text = ascii(value) if not repr(value).isprintable() else repr(value)
    except ValueError:  # an integer of more digits than Python converts to text
        return f"a number of {value.bit_length():,} bits" if isinstance(value, int) else type(value).__name__
    return text if len(text) <= MAX_QUOTED else text[: MAX_QUOTED - 1] + "…"


def is_number(value: Any) -> bool:
    """Return whether `value` is a real number that a float can hold: not a bool, nor an integer beyond 1.8e308."""
    if isinstance(value, bool) or not isinstance(value, Real):
        return False
    try:
        float(value)
    except OverflowError:
        return False
    return True


def check_encodable(what: str, text: str) -> None:
    """Raise ValueError, with the name and the value, for text with half of a surrogate pair: no file can hold it."""
    if any("\ud800" <= character <= "\udfff" for character in text):
        raise ValueError(f"{what} must be text that UTF-8 can encode, got {quote(text)}: choose another name")


def message_of(error: BaseException) -> str:
    """Return what to tell a person of an error: the text of a ValueError, which is ours, and the system's of an
    OSError; of any other its class, too. Errors of encoding and of JSON are ValueErrors, but their text is no message.
    """
    is_message = isinstance(error, (ValueError, OSError, MemoryError))
    if str(error) and is_message and not isinstance(error, (UnicodeError, json.JSONDecodeError)):
        return str(error)
    return f"{type(error).__name__}: {error}" if str(error) else type(error).__name__


def check_integer(name: str, value: Any, low: int, high: int | None = None) -> None:
    """Raises ValueError, with the name and the value, unless `value` is a whole number from low to high."""
    if isinstance(value, bool) or not isinstance(value, Integral) or value < low or (high is not None and value > high):
        span = f"of at least {low}" if high is None else f"from {low} to {high}"
        raise ValueError(f"{name} must be a whole number {span}, got {quote(value)}")


def within(name: str, value: Any, low: float, high: float, whole: bool = True) -> Any:
    """What somebody typed, `value`, as a number from low to high, whole if it must be. Raises ValueError with its
    name.
    """
    is_number = isinstance(value, (int, float)) and not isinstance(value, bool)
    if not is_number or not low <= value <= high or (whole and value != int(value)):
        raise ValueError(f"{name} must be a {'whole ' if whole else ''}number from {low} to {high}, got {quote(value)}")
    return int(value) if whole else float(value)
