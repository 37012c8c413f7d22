"""Are packed or bucketed batches faster for a model, on this device and with these rows?

Measured once, when a study is made, and stored with its facts: all its trials, on whatever day,
lay out their batches alike.
"""

from __future__ import annotations

from typing import Protocol

from automl_ft.trial.stopwatch import BUCKETED, PACKED

__all__ = ["BUCKETED", "PACKED", "choose_batching"]

_HARDLY_MATTERS_SECONDS = 0.02
"""Where the few batches of a stopwatch take less, what is measured is Python."""
_REPEATS, _REPEATS_IF_LONG = 3, 2
"""Looks after the first one. A single one was misled by other jobs on the cores: packed rows, 1.5
times as fast on a quiet machine, looked slower."""
_CLEARLY = 1.2
"""Bucketed batches must be faster by this factor, as they are the less random ones."""
_LONG_SECONDS = 3.0
"""Where the first look takes this long, there are fewer others."""


class TrainingClock(Protocol):
    """What times training batches."""

    def train(self, batching: str) -> float:
        """Run forward and backward of a few batches.

        Args:
            batching: `packed` or `bucketed`; the rows are the same.

        Returns:
            Seconds.
        """
        ...


def choose_batching(clock: TrainingClock) -> str:
    """Time forward and backward of a few batches both ways, as few times as will do.

    Packed batches are what is taken in doubt, so one round in which they are no slower is enough;
    in the first one they even bear what only a first run pays. Only where bucketed batches look
    faster are both warmed up and looked at up to three times more.

    Args:
        clock: Times a model that allows both.

    Returns:
        `packed`, unless bucketed batches are clearly faster.
    """
    packed = clock.train(PACKED)
    if packed < _HARDLY_MATTERS_SECONDS:
        return PACKED
    bucketed = clock.train(BUCKETED)
    if packed <= bucketed:
        return PACKED
    best_packed, best_bucketed = float("inf"), bucketed
    for _ in range(_REPEATS if packed + bucketed < _LONG_SECONDS else _REPEATS_IF_LONG):
        best_packed = min(best_packed, clock.train(PACKED))
        if best_packed <= best_bucketed or best_packed < _HARDLY_MATTERS_SECONDS:
            return PACKED
        best_bucketed = min(best_bucketed, clock.train(BUCKETED))
    return BUCKETED if best_packed > _CLEARLY * best_bucketed else PACKED
