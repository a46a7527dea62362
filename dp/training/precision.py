"""The precision in which a run is trained."""

from __future__ import annotations

from contextlib import suppress

from dp.system.device import best_device, has_fast_bfloat16
from dp.system.records import read
from dp.training.run_folder import RunFolder
from dp.training.state import resumable_steps


def trains_in_bfloat16(run: RunFolder) -> bool:
    """Return whether a run whose config does not say so is trained in bfloat16: where the device is faster in it, but a
    run that has begun stays as it is. States without `precision` are from when CPUs trained in float32.
    """
    device = best_device()
    for step in reversed(resumable_steps(run)):
        with suppress(ValueError, OSError):  # a damaged one is skipped on resuming, too
            begun = read(run.checkpoint(step) / "training-state" / "state.json").get("precision")
            return has_fast_bfloat16(device) and (begun or ("bf16" if device.type == "cuda" else "no")) == "bf16"
    return has_fast_bfloat16(device)
