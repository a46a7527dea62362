"""Export a page from the app, in a process of its own, since tracing a network holds up all threads for seconds."""

from __future__ import annotations

import sys
from pathlib import Path

from dp.system.background import run_in_background

ROOT = Path(__file__).resolve().parents[3]
TIMEOUT_S = 900  # of an export, which takes some seconds where the cores are idle


def export_in_process(source: Path, target: Path, name: str) -> None:
    """Write the page of the checkpoint folder `source`, with the title `name`, to the folder `target`. Raises
    ValueError or TimeoutError with the reason where that fails.
    """
    command = [sys.executable, "-m", "dp", "export-web", str(source.absolute()), str(target.absolute())]
    code, reason = run_in_background([*command, "--name", name], ROOT, TIMEOUT_S)
    if code:
        raise ValueError(reason or f"its export ended with code {code}")
