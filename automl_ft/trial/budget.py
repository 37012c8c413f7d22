"""How much memory is there for a trial?

The bounds of a container count as well as the machine's: a process that goes over them is killed
without a word.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

import torch

from automl_ft.trial.memory import used_memory_mib

__all__ = ["MemoryBudget", "free_memory_mib", "memory_budget"]

_MIB = 1024 * 1024
_SHARES = {"cuda": 0.9}
_HOST_SHARE = 0.7
"""Of what is free: the rest is for what no tensor shows, such as kernels' own memory and gaps
between blocks. The heap of a CPU process was measured at 1.0 to 1.4 times its tensors."""


@dataclass(frozen=True, kw_only=True, slots=True)
class MemoryBudget:
    """What one trial finds, in MiB."""

    base_mib: float
    """What its process has in use already."""
    free_mib: float | None
    """What it may take besides; None where that cannot be known."""


def memory_budget(device: torch.device, num_workers: int, limit_gib: float | None) -> MemoryBudget:
    """Look how much memory there is now.

    Args:
        device: Where the trial runs.
        num_workers: Processes that share it.
        limit_gib: What all of them together may have in use; None for no limit.

    Returns:
        The part of one of them.
    """
    base = used_memory_mib(device)
    free = free_memory_mib(device)
    share = _SHARES.get(device.type, _HOST_SHARE)
    parts = [] if free is None else [share * free / num_workers]
    if limit_gib is not None:
        parts.append(1024 * limit_gib / num_workers - base)
    return MemoryBudget(base_mib=base, free_mib=max(0.0, min(parts)) if parts else None)


def free_memory_mib(device: torch.device) -> float | None:
    """Return what can be allocated now.

    Args:
        device: Where.

    Returns:
        MiB; None where the platform does not tell.
    """
    if device.type == "cuda":
        free, _ = torch.cuda.mem_get_info(device)
        # What the allocator keeps for itself is free for this process.
        kept = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return (free + kept) / _MIB
    return host_memory_mib(Path("/"))


def host_memory_mib(root: Path) -> float | None:
    """Return what the host has left, or the control groups of this process.

    Args:
        root: Where `proc` and `sys` lie.

    Returns:
        MiB; None where there is no `/proc`, as on macOS.
    """
    found = [*_available(root), *_left_in_groups(root)]
    return min(found) / _MIB if found else None


def _available(root: Path) -> Iterator[float]:
    for name, value in _pairs(root / "proc/meminfo"):
        if name == "MemAvailable:":
            yield value * 1024.0


def _left_in_groups(root: Path) -> Iterator[float]:
    """Yield what is left in each control group that this process is in, of either version."""
    # https://docs.kernel.org/admin-guide/cgroup-v2.html and .../cgroup-v1/memory.html
    for line in _lines(root / "proc/self/cgroup"):
        controllers, _, path = line.partition(":")[2].partition(":")
        if controllers == "":
            names = ("memory.max", "memory.current", "inactive_file")
            yield from _left(root / "sys/fs/cgroup", path, names)
        elif "memory" in controllers.split(","):
            names = ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file")
            yield from _left(root / "sys/fs/cgroup/memory", path, names)


def _left(mount: Path, path: str, names: tuple[str, str, str]) -> Iterator[float]:
    """Yield what is left in a group and in all that it lies in."""
    # Inside a container the path may be the host's; then only the mount itself is there.
    inside = PurePosixPath(path.lstrip("/"))
    for place in dict.fromkeys(mount / part for part in (inside, *inside.parents)):
        limit, used = (_number(place / name) for name in names[:2])
        if limit is not None and used is not None:
            cached = sum(v for name, v in _pairs(place / "memory.stat") if name == names[2])
            yield limit - used + cached


def _number(path: Path) -> float | None:
    text = "".join(_lines(path)).strip()
    return float(text) if text.isdigit() else None


def _pairs(path: Path) -> Iterator[tuple[str, int]]:
    for line in _lines(path):
        words = line.split()
        if len(words) >= 2 and words[1].isdigit():
            yield words[0], int(words[1])


def _lines(path: Path) -> list[str]:
    try:
        return path.read_text(encoding="ascii", errors="replace").splitlines()
    except OSError:
        return []
