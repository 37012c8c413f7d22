"""Why a trial failed. A leaf: a failed trial is data, not an exception."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

__all__ = ["FailureKind", "TrialFailure"]


class FailureKind(StrEnum):
    """The kinds of failure that a trial can end with."""

    OUT_OF_MEMORY = "out_of_memory"
    """The device or the host had no memory left."""
    DIVERGED = "diverged"
    """The loss or the weights became NaN or infinite, or the loss exploded."""
    WORKER_DIED = "worker_died"
    """The worker process ended without a result (killed, crashed)."""
    ERROR = "error"
    """Any other exception while the trial ran."""


@dataclass(frozen=True, kw_only=True, slots=True)
class TrialFailure:
    """One failed trial: kind, message and traceback."""

    kind: FailureKind
    """The failure kind, also the trial attribute `failure_kind`."""
    message: str
    """One line that says what happened."""
    traceback: str = ""
    """The traceback, or the worker's last output; may be empty."""
