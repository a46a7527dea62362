"""Helpers shared by the benchmarks. The candidates take turns within one process, so that noise on the machine affects
them alike, and the medians over the rounds are compared.
"""

from __future__ import annotations

import shutil
import statistics
import time
from collections.abc import Callable, Mapping, Sequence

import torch


def time_alternating(candidates: Mapping[str, Callable[[], object]], rounds: int) -> dict[str, float]:
    """Return the median seconds per call of each candidate over `rounds`. In each round, every candidate is called
    once. An additional warm-up round is not counted.
    """
    seconds: dict[str, list[float]] = {name: [] for name in candidates}
    for _ in range(rounds + 1):
        for name, call in candidates.items():
            start = time.perf_counter()
            call()
            if torch.cuda.is_available():
                torch.cuda.synchronize()
            seconds[name].append(time.perf_counter() - start)
    return {name: statistics.median(values[1:]) for name, values in seconds.items()}


def matmul_rate(device: str, dtype: torch.dtype, side: int = 1024) -> float:
    """Return the FLOP/s of the device in products of square matrices, as an estimate of its peak."""
    a, b = (torch.randn(side, side, device=device).to(dtype) for _ in range(2))
    return 2 * side**3 / time_alternating({"matmul": lambda: a @ b}, rounds=15)["matmul"]


def find_chromium() -> str:
    """Return the path of the system's Chromium. Raises SystemExit if there is none."""
    chromium = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    if chromium is None:
        raise SystemExit("Chromium was not found; install it from the system's packages")
    return chromium


def print_table(header: Sequence[str], rows: Sequence[Sequence[object]]) -> None:
    """Print a Markdown table, with floats to three significant digits."""
    cells = [[f"{cell:,.3g}" if isinstance(cell, float) else str(cell) for cell in row] for row in (header, *rows)]
    widths = [max(len(row[i]) for row in cells) for i in range(len(header))]
    cells.insert(1, ["-" * width for width in widths])
    for row in cells:
        print("| " + " | ".join(cell.rjust(width) for cell, width in zip(row, widths)) + " |")
