"""Check numbers and text, and quote input in error messages. Standard library only."""

from __future__ import annotations

import json
from numbers import Integral, Real
from typing import Any

MAX_TIMESTEPS = 100_000  # more than any use needs; prevents a mistyped number from filling the memory
MAX_CLASSES, MAX_CLASS_NAME = 1000, 60  # of a model or a dataset; characters of a name
MAX_SEED = 2**31
MAX_QUOTED = 200  # length limit of input that is quoted in a message


def quote(value: Any) -> str:
    """Return `repr(value)` for an error message, truncated to MAX_QUOTED characters with "…" at the end.

    Error messages quote all input with this function, so that they stay short, printable and encodable.
    """
    if isinstance(value, (str, bytes)):
        value = value[: MAX_QUOTED + 1]  # never build the repr of a whole upload
    try:
        text = ascii(value) if not repr(value).isprintable() else repr(value)
    except ValueError:  # an integer with more digits than Python converts to text
        return f"a number of {value.bit_length():,} bits" if isinstance(value, int) else type(value).__name__
    return text if len(text) <= MAX_QUOTED else text[: MAX_QUOTED - 1] + "…"


def is_number(value: Any) -> bool:
    """Return whether `value` is a real number that fits a float: not a bool, and not an integer above 1.8e308."""
    if isinstance(value, bool) or not isinstance(value, Real):
        return False
    try:
        float(value)
    except OverflowError:
        return False
    return True


def check_encodable(what: str, text: str) -> None:
    """Raise ValueError, with name and value, for text with a lone surrogate, which cannot be written to a file."""
    if any("\ud800" <= character <= "\udfff" for character in text):
        raise ValueError(f"{what} must be text that UTF-8 can encode, got {quote(text)}: choose another name")


def message_of(error: BaseException) -> str:
    """Return the message of an error for users: the text of a ValueError, OSError or MemoryError, and otherwise the
    class name and the text. UnicodeError and JSONDecodeError, which are ValueErrors, also get the class name.
    """
    is_message = isinstance(error, (ValueError, OSError, MemoryError))
    if str(error) and is_message and not isinstance(error, (UnicodeError, json.JSONDecodeError)):
        return str(error)
    return f"{type(error).__name__}: {error}" if str(error) else type(error).__name__


def check_integer(name: str, value: Any, low: int, high: int | None = None) -> None:
    """Raise ValueError, with name and value, unless `value` is a whole number from low to high."""
    if isinstance(value, bool) or not isinstance(value, Integral) or value < low or (high is not None and value > high):
        span = f"of at least {low}" if high is None else f"from {low} to {high}"
        raise ValueError(f"{name} must be a whole number {span}, got {quote(value)}")


def check_number(name: str, value: Any, low: float, high: float, whole: bool = True) -> Any:
    """Return `value`, which a user entered, as an int, or as a float unless `whole`. Raises ValueError, with name and
    value, unless it is a number from low to high, and a whole one if `whole`.
    """
    is_number = isinstance(value, (int, float)) and not isinstance(value, bool)
    if not is_number or not low <= value <= high or (whole and value != int(value)):
        raise ValueError(f"{name} must be a {'whole ' if whole else ''}number from {low} to {high}, got {quote(value)}")
    return int(value) if whole else float(value)
