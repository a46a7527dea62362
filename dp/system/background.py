"""Work in a process of its own, with a low priority: what would hold up all threads of this one for seconds."""

from __future__ import annotations

import os
import subprocess
import tempfile
import threading
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

NICE = 10  # its priority: a tenth of a core where all cores are busy, and 19 would hardly get any
POLL_S = 0.1


def run_in_background(command: Sequence[str], cwd: Path, timeout_s: float) -> tuple[int, str]:
    """Run a command, wait for it, and return its exit code and the last line that it wrote. It is killed if it takes
    longer than `timeout_s`, which raises TimeoutError, or if this process is about to end.
    """
    with tempfile.TemporaryFile("w+", encoding="utf-8", errors="replace") as said:
        process = subprocess.Popen(command, cwd=cwd, stdin=subprocess.DEVNULL, stdout=said, stderr=subprocess.STDOUT)
        if hasattr(os, "setpriority"):
            with suppress(OSError):
                os.setpriority(os.PRIO_PROCESS, process.pid, NICE)
        deadline = time.monotonic() + timeout_s
        while process.poll() is None:
            is_late = time.monotonic() > deadline
            if is_late or is_exiting():
                process.kill()
                process.wait()
            if is_late:
                raise TimeoutError(f"it took more than {timeout_s / 60:.0f} minutes")
            time.sleep(POLL_S)
        said.seek(0)
        lines = [line.strip() for line in said.read().splitlines() if line.strip()]
        return process.returncode, lines[-1] if lines else ""


def is_exiting() -> bool:
    """Return whether this process is about to end."""
    return not threading.main_thread().is_alive()
