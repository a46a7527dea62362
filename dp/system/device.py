"""Choose the device, and describe errors to users."""

from __future__ import annotations

import torch

from dp.system import environment
from dp.system.validation import message_of


def is_out_of_memory(error: Exception) -> bool:
    """Return whether an error means that memory ran out. CUDA has an error class for it, MPS and the CPU allocator have
    only messages.
    """
    words = ("out of memory", "can't allocate memory", "not enough memory")
    return isinstance(error, (torch.OutOfMemoryError, MemoryError)) or any(word in str(error) for word in words)


def describe(error: Exception) -> str:
    """Return the message of an error for users: messages of this project unchanged, others with the class name."""
    if is_out_of_memory(error):
        return "not enough memory for this run; choose fewer images"
    return message_of(error)


def set_thread_count() -> None:
    """Let torch use CPU_CORES threads, if that variable is set. Raises ValueError if it is invalid."""
    if cores := environment.cores():
        torch.set_num_threads(cores)


def best_device() -> torch.device:
    """Return the device in DP_DEVICE, or else the first available one of CUDA, MPS and the CPU. Raises ValueError if
    DP_DEVICE is invalid or not available.
    """
    if named := environment.device():
        return _checked(torch.device(named))
    if torch.cuda.is_available():
        return torch.device("cuda")
    return torch.device("mps" if torch.backends.mps.is_available() else "cpu")


def has_fast_bfloat16(device: torch.device) -> bool:
    """Return whether a device computes in bfloat16 faster than in float32: GPUs of NVIDIA that support it, and x86 CPUs
    with instructions for it.
    """
    if device.type == "cpu":
        found = torch.cpu.get_capabilities() if hasattr(torch.cpu, "get_capabilities") else {}
        return bool(found.get("avx512_bf16") or found.get("amx_bf16"))
    return device.type == "cuda" and torch.cuda.is_bf16_supported()


def _checked(device: torch.device) -> torch.device:
    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    problem = None
    if device.type == "cuda" and not count:
        problem = "PyTorch finds no CUDA device on this machine"
    elif device.type == "cuda" and (device.index or 0) >= count:
        problem = f"this machine has cuda:0 to cuda:{count - 1}"
    elif device.type == "mps" and not torch.backends.mps.is_available():
        problem = "PyTorch finds no Apple GPU on this machine"
    if problem:
        raise ValueError(f"DP_DEVICE is {str(device)!r}, but {problem}: choose another device, or unset DP_DEVICE")
    return device
