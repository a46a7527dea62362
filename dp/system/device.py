"""Choose the device, and describe its errors to users."""

from __future__ import annotations

import torch

from dp.system import environment
from dp.system.validation import message_of


def is_out_of_memory(error: Exception) -> bool:
    """Return whether the error means too little memory. CUDA has a class for it; Apple's MPS and the CPU allocator have
    only messages.
    """
    words = ("out of memory", "can't allocate memory", "not enough memory")
    return isinstance(error, (torch.OutOfMemoryError, MemoryError)) or any(word in str(error) for word in words)


def describe(error: Exception) -> str:
    """Return the error message for a user: the project's own messages unchanged, others with their class."""
    if is_out_of_memory(error):
        return "there is not enough memory for this run: ask for fewer images"
    return message_of(error)


def use_own_cores() -> None:
    """Compute on CPU_CORES threads, where that is set. Raises ValueError."""
    if cores := environment.cores():
        torch.set_num_threads(cores)


def best_device() -> torch.device:
    """Return DP_DEVICE where it is set, or else CUDA, Apple's MPS or the CPU, whichever is there first. Raises
    ValueError where DP_DEVICE is not there.
    """
    if named := environment.device():
        return _checked(torch.device(named))
    if torch.cuda.is_available():
        return torch.device("cuda")
    return torch.device("mps" if torch.backends.mps.is_available() else "cpu")


def _checked(device: torch.device) -> torch.device:
    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    why = None
    if device.type == "cuda" and not count:
        why = "PyTorch finds no CUDA device on this machine"
    elif device.type == "cuda" and (device.index or 0) >= count:
        why = f"this machine has cuda:0 to cuda:{count - 1}"
    elif device.type == "mps" and not torch.backends.mps.is_available():
        why = "PyTorch finds no Apple GPU on this machine"
    if why:
        raise ValueError(f"DP_DEVICE is {str(device)!r}, but {why}: choose another device, or unset DP_DEVICE")
    return device
