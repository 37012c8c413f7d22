"""What has a study learnt of memory, for the trials to come?

Profiles are this process's own. The correction is the study's: it lies in a small file that all
workers read before a trial and change under a lock, so that it outlives the search and reaches the
other processes. The file may be lost: the next trial that runs out of memory teaches the same
again. Where it cannot be written, each process goes on with its own.

A correction rises where memory ran out, and is lowered on evidence:

- A run is evidence if memory did not run out in it and its largest batch, as forecast without any
  correction, was a quarter or more of the smallest that failed. What small trials take says nothing
  of large ones.
- The factor that would have met its peak is found. If that is below 0.8 of the correction, the
  correction moves half of the way (the geometric mean of both), never below 1; near 1 it is 1.

So what another program's memory caused is forgotten after some trials, while a correction that was
due comes back at the price of one step that is begun anew.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Hashable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from automl_ft.files.atomic import write_json
from automl_ft.files.lock import short_lock
from automl_ft.trial.forecast import MemoryProfile

__all__ = ["StudyMemory"]

_VERSION = 1
"""Version of the file; another one is not read."""
_LOCK_SECONDS = 10.0
"""Reading and writing the file takes a millisecond."""
_COMPARABLE = 0.25
"""Part of the smallest batch that failed which a run's batch must have. A trial goes on with half
of what failed, and rounding takes a little more."""
_CLEARLY_BELOW = 0.8
_NEAR_ONE = 1.05


@dataclass(frozen=True, kw_only=True, slots=True)
class _Lesson:
    """What is known of one kind of device."""

    correction: float = 1.0
    failed_mib: float = math.inf
    """The smallest batch that failed, as it was forecast without a correction."""


@dataclass(kw_only=True, slots=True, eq=False)
class StudyMemory:
    """Profiles and the correction of forecasts; shared by all trials of a process."""

    path: Path | None = None
    """The file; None keeps all in this process."""
    profiles: dict[Hashable, MemoryProfile] = field(default_factory=dict)
    """Profiles by what they depend on."""
    most_free_mib: dict[str, float] = field(default_factory=dict)
    """The most that this process has seen free, by device; see `trial.budget`."""
    has_trained: bool = False
    """Whether this process has trained more than heads, so that its kernels are there."""
    is_told_of_tight_memory: bool = False
    """Whether this process has warned that even the smallest sizes may not fit."""
    _own: dict[str, _Lesson] = field(default_factory=dict, init=False)
    """Lessons by kind of device, as this process knows them."""

    def correction(self, device: str) -> float:
        """Return the factor on forecasts.

        Args:
            device: The kind of device, such as `cuda`.

        Returns:
            1 until memory ran out, then more.
        """
        return self._lesson(device).correction

    def correct(self, device: str, factor: float, *, batch_mib: float = math.inf) -> float:
        """Raise the factor; a file that cannot be written is no reason to fail.

        Args:
            device: The kind of device.
            factor: By how much, 1 or more.
            batch_mib: The batch that failed, as it was forecast without a correction.

        Returns:
            The factor from now on.
        """

        def raised(lesson: _Lesson) -> _Lesson:
            return _Lesson(
                correction=lesson.correction * factor,
                failed_mib=min(lesson.failed_mib, batch_mib),
            )

        return self._change(device, raised)

    def relax(self, device: str, found: float, batch_mib: float) -> float:
        """Lower the factor if a run shows that it is too high; the rule stands above.

        Args:
            device: The kind of device.
            found: The factor that would have met the peak of a run without a failure.
            batch_mib: The run's largest batch, as it was forecast without a correction.

        Returns:
            The factor from now on.
        """

        def lowered(lesson: _Lesson) -> _Lesson:
            failed = lesson.failed_mib if math.isfinite(lesson.failed_mib) else 0.0
            is_comparable = batch_mib >= _COMPARABLE * failed
            if not is_comparable or found >= _CLEARLY_BELOW * lesson.correction:
                return lesson
            correction = math.sqrt(lesson.correction * max(1.0, found))
            if correction < _NEAR_ONE:
                return _Lesson()
            return _Lesson(correction=correction, failed_mib=lesson.failed_mib)

        # Most runs have nothing to change, and need no lock to know it.
        before = self._lesson(device)
        return self._change(device, lowered) if lowered(before) != before else before.correction

    def _lesson(self, device: str) -> _Lesson:
        lesson = None if self.path is None else _read(self.path).get(device)
        return lesson or self._own.get(device, _Lesson())

    def _change(self, device: str, change: Callable[[_Lesson], _Lesson]) -> float:
        if self.path is not None:
            try:
                with short_lock(_lock_file(self.path), _LOCK_SECONDS):
                    lessons = _read(self.path)
                    changed = change(lessons.get(device) or self._own.get(device, _Lesson()))
                    _write(self.path, {**lessons, device: changed})
                self._own[device] = changed
                return changed.correction
            except OSError:
                self._own.update(_read(self.path))
                self.path = None
        self._own[device] = change(self._own.get(device, _Lesson()))
        return self._own[device].correction


def _lock_file(path: Path) -> Path:
    return path.with_name(f"{path.name}.lock")


def _read(path: Path) -> dict[str, _Lesson]:
    """Return what the file says, by kind of device; nothing where it is damaged."""
    try:
        plain = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    if not isinstance(plain, dict) or plain.get("version") != _VERSION:
        return {}
    factors, failed = plain.get("correction"), plain.get("failed_mib")
    if not isinstance(factors, dict):
        return {}
    sizes = failed if isinstance(failed, dict) else {}
    return {
        device: _Lesson(
            correction=max(1.0, _number(value, 1.0)),
            failed_mib=_number(sizes.get(device), math.inf),
        )
        for device, value in factors.items()
    }


def _write(path: Path, lessons: dict[str, _Lesson]) -> None:
    plain: dict[str, Any] = {
        "version": _VERSION,
        "correction": {device: lesson.correction for device, lesson in lessons.items()},
        "failed_mib": {
            device: lesson.failed_mib
            for device, lesson in lessons.items()
            if math.isfinite(lesson.failed_mib)
        },
    }
    write_json(path, plain)


def _number(value: object, default: float) -> float:
    is_number = isinstance(value, (int, float)) and math.isfinite(value)
    return float(value) if is_number else default  # type: ignore[arg-type]
