"""How the benchmarks measure: contenders take turns within one process, so that a noisy machine treats them alike, and
what is compared is the median of the rounds.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping, Sequence

import torch


def alternate(contenders: Mapping[str, Callable[[], object]], rounds: int) -> dict[str, float]:
    """Seconds that one call of each contender takes: the median over `rounds`, in each of which all take their turn.
    One more round before them is not counted.
    """
    seconds: dict[str, list[float]] = {name: [] for name in contenders}
    for _ in range(rounds + 1):
        for name, call in contenders.items():
            start = time.perf_counter()
            call()
            if torch.cuda.is_available():
                torch.cuda.synchronize()
            seconds[name].append(time.perf_counter() - start)
    return {name: statistics.median(values[1:]) for name, values in seconds.items()}


def matmul_rate(device: str, dtype: torch.dtype, side: int = 1024) -> float:
    """Floating-point operations a second in a product of two square matrices: what the device can do."""
    a, b = (torch.randn(side, side, device=device).to(dtype) for _ in range(2))
    return 2 * side**3 / alternate({"product": lambda: a @ b}, rounds=15)["product"]


def print_table(head: Sequence[str], rows: Sequence[Sequence[object]]) -> None:
    """A Markdown table; floats with three significant digits."""
    cells = [[f"{cell:,.3g}" if isinstance(cell, float) else str(cell) for cell in row] for row in (head, *rows)]
    widths = [max(len(row[i]) for row in cells) for i in range(len(head))]
    cells.insert(1, ["-" * width for width in widths])
    for row in cells:
        print("| " + " | ".join(cell.rjust(width) for cell, width in zip(row, widths)) + " |")
