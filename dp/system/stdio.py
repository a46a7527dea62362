"""Standard output and error that cannot fail: no print, progress bar or log line may end a command or a training run.
Standard library only.
"""

from __future__ import annotations

import io
import os
import sys
from contextlib import suppress


class SafeStream(io.TextIOWrapper):
    """A text stream that drops what cannot be written: into a closed pipe, a terminal that is gone, a full disk."""

    def write(self, text: str) -> int:
        with suppress(OSError):
            super().write(text)
        return len(text)

    def flush(self) -> None:
        with suppress(OSError):
            super().flush()


def protect() -> None:
    """Make sys.stdout and sys.stderr safe, and write each line at once, also to a file or a pipe. Characters outside
    the stream's encoding are escaped. Every command calls this first.
    """
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        if stream is None or stream.closed:  # as of a service or a windowed program: descriptors 1 and 2 are closed
            setattr(sys, name, SafeStream(io.FileIO(os.devnull, "wb"), "utf-8", "backslashreplace"))
        elif stream is getattr(sys, f"__{name}__") and not isinstance(stream, SafeStream):
            safe = SafeStream(stream.buffer, stream.encoding, "backslashreplace", line_buffering=True)
            setattr(sys, name, safe)
        elif isinstance(stream, io.TextIOWrapper):  # put there by somebody else, as by a test
            stream.reconfigure(errors="backslashreplace")
