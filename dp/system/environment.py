"""Read and check environment variables. This happens before the libraries that use them are imported, so this module
needs only the standard library.
"""

from __future__ import annotations

import math
import os
import re
from pathlib import Path

from dp.system.validation import quote

ROOT = Path(__file__).resolve().parents[2]  # the folder of app.py
UPLOADS = "dp-uploads"  # folder for Gradio's files, which this app deletes when they are old
DEVICE = re.compile(r"cpu|mps|cuda(:\d{1,3})?", re.ASCII)


def cores() -> int | None:
    """Return CPU_CORES, the number of cores to use, or None if it is not set. A container sees all cores of its host,
    and this is its share: a number or a Kubernetes quantity (1500m). It is rounded up, and limited to the cores of the
    machine. Raises ValueError.
    """
    text = os.environ.get("CPU_CORES", "").strip()
    if not text:
        return None
    match = re.fullmatch(r"(\d{1,9}(?:\.\d{0,9})?)(m?)", text, re.ASCII)
    amount = float(match[1]) / (1000 if match[2] else 1) if match else 0
    if amount <= 0:
        rule = "a number of cores above 0, such as 2, 1.5 or 1500m (thousandths of a core)"
        raise ValueError(f"CPU_CORES must be {rule}, got {quote(text)}")
    return min(math.ceil(amount), os.cpu_count() or 1)


def device() -> str | None:
    """Return DP_DEVICE, or None if it is not set. Raises ValueError unless it is the name of a device."""
    name = os.environ.get("DP_DEVICE", "").strip().lower()
    if name and not DEVICE.fullmatch(name):
        raise ValueError(f"DP_DEVICE must be cpu, cuda, cuda:N (such as cuda:1) or mps, got {quote(name)}")
    return name or None


def precision() -> str:
    """Return DP_PRECISION, the precision of the fast CPU backend: 'f32', also if it is not set, or 'bf16'. Raises
    ValueError.
    """
    name = os.environ.get("DP_PRECISION", "").strip().lower() or "f32"
    if name not in ("f32", "bf16"):
        raise ValueError(f"DP_PRECISION must be f32 or bf16, got {quote(name)}")
    return name


def runs_dir() -> Path:
    """Return the folder of the training runs: DP_HOME, by default `runs` beside app.py. Raises ValueError."""
    given = os.environ.get("DP_HOME") or ROOT / "runs"
    try:
        return Path(given).expanduser().absolute()
    except (RuntimeError, OSError):  # ~ has no home folder, or the working directory was deleted
        raise ValueError(f"DP_HOME must be a path to a folder, got {quote(given)}: use an absolute path") from None


def port() -> int | None:
    """Return GRADIO_SERVER_PORT, or None if it is not set. Raises ValueError."""
    given = os.environ.get("GRADIO_SERVER_PORT")
    return None if given is None else port_in("GRADIO_SERVER_PORT", given)


def port_in(name: str, text: str) -> int:
    """Return the port in the text of an option or variable. Raises ValueError with its name."""
    if not re.fullmatch(r"\s*\d{1,5}\s*", text, re.ASCII) or not 1 <= int(text) <= 65_535:
        raise ValueError(f"{name} must be a port from 1 to 65535, got {quote(text)}")
    return int(text)
