"""Many cases in one test, where each takes less time than pytest takes for a test."""

from contextlib import contextmanager


@contextmanager
def case(*what):
    """Name the case in the failure of the block."""
    try:
        yield
    except Exception as error:
        raise AssertionError(f"in the case {', '.join(map(str, what))}: {error}") from error
