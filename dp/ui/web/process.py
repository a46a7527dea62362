"""Export a page from the app, in a process of its own, since tracing a network holds up all threads for seconds."""

from __future__ import annotations

import os
import subprocess
import sys
from contextlib import suppress
from pathlib import Path

ROOT = Path(__file__).resolve().parents[3]
NICE = 10  # its priority: a tenth of a core where all cores are busy
TIMEOUT_S = 900  # of an export, which takes some seconds where they are not


def export_in_process(source: Path, target: Path, name: str) -> None:
    """Write the page of the checkpoint folder `source`, with the title `name`, to the folder `target`. Raises
    ValueError with the reason where that fails.
    """
    command = [sys.executable, "-m", "dp", "export-web", str(source.absolute()), str(target.absolute())]
    pipes = {"stdin": subprocess.DEVNULL, "stdout": subprocess.DEVNULL, "stderr": subprocess.PIPE}
    with subprocess.Popen([*command, "--name", name], cwd=ROOT, **pipes, encoding="utf-8", errors="replace") as process:
        if hasattr(os, "setpriority"):
            with suppress(OSError):
                os.setpriority(os.PRIO_PROCESS, process.pid, NICE)
        try:
            _, said = process.communicate(timeout=TIMEOUT_S)
        except subprocess.TimeoutExpired:
            process.kill()
            raise ValueError(f"its export took more than {TIMEOUT_S // 60} minutes; try again later") from None
    if process.returncode:
        lines = [line.strip() for line in said.splitlines() if line.strip()]
        raise ValueError(lines[-1] if lines else f"its export ended with code {process.returncode}")
