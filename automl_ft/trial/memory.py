"""How much memory did a trial take at its peak?"""

from __future__ import annotations

import resource
import sys
from pathlib import Path

import torch

__all__ = ["is_out_of_memory", "peak_memory_mib", "reset_peak_memory"]

_MIB = 1024 * 1024


def reset_peak_memory(device: torch.device) -> None:
    """Start a new peak, where the platform can.

    Args:
        device: Where the trial runs.
    """
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        return
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
    try:
        for line in Path("/proc/self/status").read_text(encoding="ascii").splitlines():
            if line.startswith("VmHWM:"):
                return float(line.split()[1]) / 1024
    except OSError:
        pass
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / _MIB if sys.platform == "darwin" else peak / 1024


def is_out_of_memory(error: BaseException) -> bool:
    """Tell whether an exception means that memory ran out.

    Args:
        error: The exception.

    Returns:
        True for torch's and Python's out-of-memory errors, and for the CPU allocator's, which
        is a plain RuntimeError.
    """
    if isinstance(error, (torch.OutOfMemoryError, MemoryError)):
        return True
    text = str(error)
    return isinstance(error, RuntimeError) and (
        "out of memory" in text.lower() or "DefaultCPUAllocator: can't allocate memory" in text
    )
