"""How much memory is there for a trial?

The bounds of a container count as well as the machine's: a process that goes over them is killed
without a word.

Workers of a study on one device share what would be free if all of them were idle, in equal parts,
so that a worker's part does not shrink when the others fill theirs:

- On a CPU what the trials of the other workers hold by now is added to what is free. It is read
  from the system: what they have in use beyond this worker, which is idle when it asks. A worker
  that was replaced in the middle of a search so finds the same part as the one before it.
- On a GPU no process can tell what another one holds. There the most that this process has seen
  free, when it began its first trial or a later one, stands for it. Workers begin together; one
  that begins while others train takes less until it has seen the device while they rested.

In either case a part is never more than what is free now: what other programs hold is not given
away, nor what a sibling took beyond its part.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

import torch

from automl_ft.trial.memory import used_memory_mib

__all__ = ["MemoryBudget", "free_memory_mib", "memory_budget", "taken_by_siblings_mib"]

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


def memory_budget(
    device: torch.device,
    num_workers: int,
    limit_gib: float | None,
    most_free_mib: dict[str, float],
    *,
    mapped_mib: float = 0.0,
) -> MemoryBudget:
    """Look how much memory there is now, before a trial is built.

    Args:
        device: Where the trial runs.
        num_workers: Processes that share it.
        limit_gib: What all of them together may have in use; None for no limit.
        most_free_mib: The most that this process has seen free, and had in use itself, by device;
            updated.
        mapped_mib: Weights that this process has mapped.

    Returns:
        The part of one of them.
    """
    base = used_memory_mib(device, mapped_mib)
    free = free_memory_mib(device)
    parts = []
    if free is not None:
        pool = free
        if num_workers > 1 and device.type == "cuda":
            most = max(most_free_mib.get(str(device), 0.0), free + base)
            most_free_mib[str(device)] = most
            pool = most - base
        elif num_workers > 1:
            pool = free + taken_by_siblings_mib(Path("/"), os.getpid())
        parts.append(_SHARES.get(device.type, _HOST_SHARE) * min(free, pool / num_workers))
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


def taken_by_siblings_mib(root: Path, pid: int) -> float:
    """Return what processes like this one have in use beyond it.

    Args:
        root: Where `proc` lies.
        pid: This process, idle.

    Returns:
        MiB, summed over those of the same parent that run the same command; negative where they
        have not loaded yet what this one has. Mapped files do not count: they are as good as free.
    """
    own = _process(root, pid)
    if own is None:
        return 0.0
    parent, used = own
    total = 0.0
    for folder in (root / "proc").iterdir():
        if folder.name.isdigit() and int(folder.name) != pid:
            other = _process(root, int(folder.name))
            if other is not None and other[0] == parent and _is_alike(root, pid, folder):
                total += other[1] - used
    return total / _MIB


def _is_alike(root: Path, pid: int, folder: Path) -> bool:
    return _lines(folder / "cmdline") == _lines(root / "proc" / str(pid) / "cmdline")


def _process(root: Path, pid: int) -> tuple[int, int] | None:
    """Return a process's parent and the bytes that are its own; None where /proc has none such."""
    values = dict(_pairs(root / "proc" / str(pid) / "status"))
    if "PPid:" not in values:
        return None
    # Linux before 4.5, and what only imitates it, tells the sum alone.
    own = values.get("RssAnon:", values.get("VmRSS:", 0)) + values.get("RssShmem:", 0)
    return values["PPid:"], 1024 * own


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
