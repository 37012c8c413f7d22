"""What has a study learnt of memory, for the trials to come?

Profiles are this process's own. The correction is the study's: it lies in a small file that all
workers read before a trial, so that it outlives the search and reaches the other processes. The
file may be lost or lag behind: the next trial that runs out of memory teaches the same again.
"""

from __future__ import annotations

import json
import math
from collections.abc import Hashable
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from automl_ft.files.atomic import write_json
from automl_ft.trial.forecast import MemoryProfile

__all__ = ["StudyMemory"]

_VERSION = 1
"""Version of the file; another one is not read."""


@dataclass(kw_only=True, slots=True, eq=False)
class StudyMemory:
    """Profiles and the correction of forecasts; shared by all trials of a process."""

    path: Path | None = None
    """The file; None keeps all in this process."""
    profiles: dict[Hashable, MemoryProfile] = field(default_factory=dict)
    """Profiles by what they depend on."""
    corrections: dict[str, float] = field(default_factory=dict)
    """Factors by kind of device, as this process knows them."""

    def correction(self, device: str) -> float:
        """Return the factor on forecasts.

        Args:
            device: The kind of device, such as `cuda`.

        Returns:
            1 until memory ran out, then more.
        """
        stored = _factor(_read(self.path).get(device))
        return max(1.0, stored, self.corrections.get(device, 1.0))

    def correct(self, device: str, factor: float) -> float:
        """Raise the factor; a file that cannot be written is no reason to fail.

        Args:
            device: The kind of device.
            factor: By how much, 1 or more.

        Returns:
            The factor from now on.
        """
        corrected = self.correction(device) * factor
        self.corrections[device] = corrected
        if self.path is not None:
            factors = {**_read(self.path), device: corrected}
            with suppress(OSError):
                self.path.parent.mkdir(parents=True, exist_ok=True)
                write_json(self.path, {"version": _VERSION, "correction": factors})
        return corrected


def _read(path: Path | None) -> dict[str, Any]:
    if path is None:
        return {}
    try:
        plain = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    if not isinstance(plain, dict) or plain.get("version") != _VERSION:
        return {}
    factors = plain.get("correction")
    return factors if isinstance(factors, dict) else {}


def _factor(value: object) -> float:
    is_number = isinstance(value, (int, float)) and math.isfinite(value)
    return float(value) if is_number else 1.0  # type: ignore[arg-type]
