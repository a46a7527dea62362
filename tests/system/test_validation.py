"""dp.system.validation: checks of numbers, and quoted input in messages."""

import pytest

from dp.system.validation import MAX_QUOTED, check_integer, check_number, quote


@pytest.mark.parametrize(
    "value, text",
    [
        ("sigmoid", "'sigmoid'"),
        (-3, "-3"),
        (None, "None"),
        ("naïve", "'naïve'"),
        ("a\udcff", r"'a\udcff'"),
        ("line\nbreak", r"'line\nbreak'"),
    ],
)
def test_short_input_is_quoted_unchanged(value, text):
    assert quote(value) == text


LONG = {
    "text": "x" * 10**6,
    "bytes": b"x" * 10**6,
    "a list": list(range(10**4)),
    "a number": 10**5000,
    "surrogates": "\udcff" * 999,
}


@pytest.mark.parametrize("value", LONG.values(), ids=LONG)
def test_long_input_is_truncated_and_printable(value):
    text = quote(value)
    assert len(text) <= MAX_QUOTED
    text.encode()


def test_an_integer_too_long_for_python_is_described():
    assert quote(10**5000) == f"a number of {(10**5000).bit_length():,} bits"


@pytest.mark.parametrize("check", [lambda v: check_integer("seed", v, 0, 9), lambda v: check_number("seed", v, 0, 9)])
def test_a_failed_check_names_the_value_in_a_short_message(check):
    with pytest.raises(ValueError, match="seed must be a whole number from 0 to 9, got '9999") as error:
        check("9" * 10**6)
    assert len(str(error.value)) < 300
