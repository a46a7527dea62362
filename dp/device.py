"""Which device computes, and what its errors mean for a person."""

from __future__ import annotations

import os

import torch


def is_out_of_memory(error: Exception) -> bool:
    """CUDA has a class for it; Apple's MPS and the CPU's allocator have only their words."""
    words = ("out of memory", "can't allocate memory", "not enough memory")
    return isinstance(error, (torch.OutOfMemoryError, MemoryError)) or any(word in str(error) for word in words)


def describe(error: Exception) -> str:
    """What went wrong, for a person: a message of ours as it is, anything else with its kind."""
    if is_out_of_memory(error):
        return "there is not enough memory for this run: ask for fewer images"
    return str(error) if isinstance(error, ValueError) else f"{type(error).__name__}: {error}"


def use_own_cores() -> None:
    """Compute on CPU_CORES threads, where the environment says so: a Space's container sees all of its host's cores,
    and this is its share.
    """
    if cores := os.environ.get("CPU_CORES"):
        torch.set_num_threads(max(1, int(float(cores))))


def best_device() -> torch.device:
    """CUDA, Apple's MPS or the CPU, whichever is there first; but the environment's DP_DEVICE, where it is set."""
    if named := os.environ.get("DP_DEVICE"):
        return torch.device(named)
    if torch.cuda.is_available():
        return torch.device("cuda")
    return torch.device("mps" if torch.backends.mps.is_available() else "cpu")
