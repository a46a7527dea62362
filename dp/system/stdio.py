"""Make standard output and error safe to write to, so that no print, progress bar or log line can end a command or a
training run. Standard library only.
"""

from __future__ import annotations

import io
import os
import sys
from contextlib import suppress


class SafeStream(io.TextIOWrapper):
    """A text stream that drops what cannot be written, such as to a closed pipe, a closed terminal or a full disk."""

    def write(self, text: str) -> int:
        with suppress(OSError):
            super().write(text)
        return len(text)

    def flush(self) -> None:
        with suppress(OSError):
            super().flush()


def protect() -> None:
    """Make sys.stdout and sys.stderr safe and line-buffered, also for files and pipes, and escape characters that the
    stream's encoding lacks. Every command calls this first.
    """
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        if stream is None or stream.closed:  # in services and windowed programs, descriptors 1 and 2 are closed
            setattr(sys, name, SafeStream(io.FileIO(os.devnull, "wb"), "utf-8", "backslashreplace"))
        elif stream is getattr(sys, f"__{name}__") and not isinstance(stream, SafeStream):
            safe = SafeStream(stream.buffer, stream.encoding, "backslashreplace", line_buffering=True)
            setattr(sys, name, safe)
        elif isinstance(stream, io.TextIOWrapper):  # replaced by other code, such as a test runner
            stream.reconfigure(errors="backslashreplace")
