"""In which order are the trials of a study shown?"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from optuna.trial import TrialState

from automl_ft.storage.records import TrialRecord

__all__ = ["RankedTrial", "best_trial", "furthest_value", "rank_trials"]


@dataclass(frozen=True, kw_only=True, slots=True)
class RankedTrial:
    """A trial and its place."""

    rank: int | None
    """1 for the best; None for a trial that did not run its full length."""
    trial: TrialRecord
    """The trial."""


def furthest_value(trial: TrialRecord) -> float | None:
    """Return what is known of a trial's objective.

    Args:
        trial: The trial.

    Returns:
        Its value; where it has none, the best value of its curve so far; None if it was never
        validated.
    """
    if trial.value is not None:
        return trial.value
    values = [value for value in trial.intermediate_values.values() if value == value]
    return max(values) if values else None


def rank_trials(trials: Sequence[TrialRecord]) -> list[RankedTrial]:
    """Rank trials: complete ones by value, then the others by what is known of them.

    Only complete trials have a rank: a value half-way is no rival to one at the end. Among equal
    values the earlier trial comes first.

    Args:
        trials: All trials of a study.

    Returns:
        Every trial once: complete, running and paused, pruned, waiting, failed.
    """
    order = {"COMPLETE": 0, "RUNNING": 1, "WAITING": 1, "PRUNED": 2, "FAIL": 4}

    def key(trial: TrialRecord) -> tuple[int, float, int]:
        value = furthest_value(trial)
        is_new = trial.state.name == "WAITING" and value is None
        group = 3 if is_new else order[trial.state.name]
        return (group, float("inf") if value is None else -value, trial.number)

    ordered = sorted(trials, key=key)
    num_complete = sum(trial.state.name == "COMPLETE" for trial in ordered)
    return [
        RankedTrial(rank=place if place <= num_complete else None, trial=trial)
        for place, trial in enumerate(ordered, start=1)
    ]


def best_trial(trials: Sequence[TrialRecord]) -> TrialRecord | None:
    """Return the best complete trial.

    Args:
        trials: All trials of a study.

    Returns:
        The trial, or None before one is complete.
    """
    complete = [trial for trial in trials if trial.state is TrialState.COMPLETE]
    return rank_trials(complete)[0].trial if complete else None
