"""When does a search end? Budgets of configurations and active seconds, and convergence."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from optuna.trial import TrialState

from automl_ft.config.study import BudgetConfig
from automl_ft.search.events import StopReason
from automl_ft.storage.records import TrialRecord

__all__ = [
    "ActiveClock",
    "has_converged",
    "num_configurations",
    "patience_left",
    "stop_proposing",
]


@dataclass(frozen=True, kw_only=True, slots=True)
class ActiveClock:
    """Active seconds of a study: those of earlier runs and this one's so far."""

    earlier_seconds: float
    """Active seconds of earlier runs."""
    started: float
    """`now()` when this run began, set-up included."""
    now: Callable[[], float] = time.monotonic
    """A monotonic clock in seconds."""

    def this_run(self) -> float:
        """Return this run's seconds.

        Returns:
            Seconds, 0 or more.
        """
        return self.now() - self.started

    def total(self) -> float:
        """Return the seconds of all runs together.

        Returns:
            Seconds, 0 or more.
        """
        return self.earlier_seconds + self.this_run()


def num_configurations(trials: Sequence[TrialRecord]) -> int:
    """Count configurations: trials that do not repeat another one.

    Args:
        trials: All trials of a study, in any state.

    Returns:
        The number that `budget.trials` limits.
    """
    return sum(trial.rerun_of is None and not _is_stillborn(trial) for trial in trials)


def _is_stillborn(trial: TrialRecord) -> bool:
    """Tell a trial that plain Optuna put in line and that was no configuration of the space."""
    return trial.state is TrialState.FAIL and not trial.hyperparameters


def has_converged(trials: Sequence[TrialRecord], budget: BudgetConfig) -> bool:
    """Tell whether the last finished trials brought nothing better.

    Args:
        trials: All trials of a study.
        budget: `patience` and `min_improvement`.

    Returns:
        True once `patience` finished trials in a row did not beat the best before them by more
        than `min_improvement`. Failed trials say nothing and are passed over.
    """
    left = patience_left(trials, budget)
    return left is not None and left <= 0


def patience_left(trials: Sequence[TrialRecord], budget: BudgetConfig) -> int | None:
    """Count the further trials that it takes at least until the search has converged.

    Args:
        trials: All trials of a study.
        budget: `patience` and `min_improvement`.

    Returns:
        Trials that may be begun at once without one too many; 0 or less where the search has
        converged, None where it never does.
    """
    if budget.patience is None:
        return None
    ended = sorted(
        (t for t in trials if t.ended is not None and t.state.name != "FAIL"),
        key=lambda trial: (trial.ended, trial.number),
    )
    best, without_gain = float("-inf"), 0
    for trial in ended:
        is_complete = trial.state.name == "COMPLETE" and trial.value is not None
        value = trial.value if is_complete and trial.value is not None else float("-inf")
        gain = value > best + budget.min_improvement or (best == float("-inf") and is_complete)
        # Compared with the last gain, not the last best: small steps that add up are one.
        best = value if gain else best
        without_gain = 0 if gain else without_gain + 1
    return budget.patience - without_gain


def stop_proposing(trials: Sequence[TrialRecord], budget: BudgetConfig) -> StopReason | None:
    """Say why no further configuration is proposed.

    Args:
        trials: All trials of a study.
        budget: The budget.

    Returns:
        TRIALS or CONVERGED, or None while the search goes on.
    """
    if num_configurations(trials) >= budget.trials:
        return StopReason.TRIALS
    return StopReason.CONVERGED if has_converged(trials, budget) else None
