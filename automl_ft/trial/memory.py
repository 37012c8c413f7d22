"""How much memory is in use, and how much did a trial take at its peak?"""

from __future__ import annotations

import ctypes
import resource
import sys
from contextlib import suppress
from pathlib import Path

import torch

__all__ = [
    "is_out_of_memory",
    "peak_memory_mib",
    "reset_peak_memory",
    "taken_memory_mib",
    "used_memory_mib",
]

_MIB = 1024 * 1024


def reset_peak_memory(device: torch.device) -> None:
    """Start a new peak, where the platform can, from what is really in use.

    What earlier trials freed goes back to the system first: it would count as in use, here and for
    other workers.

    Args:
        device: Where the trial runs.
    """
    if device.type == "cuda":
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats(device)
        return
    _trim()
    try:
        # Linux: writing 5 resets VmHWM (man 5 proc, /proc/pid/clear_refs).
        Path("/proc/self/clear_refs").write_text("5", encoding="ascii")
    except OSError:
        return


def peak_memory_mib(device: torch.device) -> float:
    """Return the peak since the last reset.

    Args:
        device: Where the trial runs.

    Returns:
        MiB: the allocator's peak on a GPU, the process's resident peak elsewhere.
    """
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / _MIB
    status = _status("VmHWM:")
    return _lifetime_peak_mib() if status is None else status


def taken_memory_mib(device: torch.device) -> float:
    """Return the peak since the last reset with the gaps that nothing else could use.

    Args:
        device: Where the trial runs.

    Returns:
        MiB: what the allocator held on a GPU, the process's resident peak elsewhere.
    """
    if device.type == "cuda":
        return torch.cuda.max_memory_reserved(device) / _MIB
    return peak_memory_mib(device)


def used_memory_mib(device: torch.device, mapped_mib: float = 0.0) -> float:
    """Return what is in use now, in the sense of `peak_memory_mib`.

    Args:
        device: Where the trial runs.
        mapped_mib: Weights that the process has mapped, which do not count on a CPU: pages of a
            file are as good as free, and a model that shares them counts them itself.

    Returns:
        MiB; where the platform tells only the process's peak, that.
    """
    if device.type == "cuda":
        return torch.cuda.memory_allocated(device) / _MIB
    status = _status("VmRSS:")
    if status is None:
        return _lifetime_peak_mib()
    return status - min(mapped_mib, _status("RssFile:") or 0.0)


def _trim() -> None:
    """Have glibc return freed memory (man 3 malloc_trim); other libraries do so by themselves."""
    with suppress(OSError, AttributeError):
        ctypes.CDLL(None).malloc_trim(0)


def _status(name: str) -> float | None:
    """Return a line of Linux's /proc/self/status in MiB."""
    try:
        for line in Path("/proc/self/status").read_text(encoding="ascii").splitlines():
            if line.startswith(name):
                return float(line.split()[1]) / 1024
    except OSError:
        pass
    return None


def _lifetime_peak_mib() -> float:
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / _MIB if sys.platform == "darwin" else peak / 1024


def is_out_of_memory(error: BaseException) -> bool:
    """Tell whether an exception means that memory ran out.

    Args:
        error: The exception.

    Returns:
        True for torch's and Python's out-of-memory errors, and for those of the CPU allocator and
        of cuBLAS, which are plain RuntimeErrors.
    """
    if isinstance(error, (torch.OutOfMemoryError, MemoryError)):
        return True
    text = str(error)
    return isinstance(error, RuntimeError) and (
        "out of memory" in text.lower()
        or "DefaultCPUAllocator: can't allocate memory" in text
        or "CUBLAS_STATUS_ALLOC_FAILED" in text
    )
