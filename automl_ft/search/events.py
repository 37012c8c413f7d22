"""What does a running search tell whoever watches it?"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Protocol

from automl_ft.specs.facts import StudyFacts
from automl_ft.specs.trial import ParamValue, TrialResult

__all__ = [
    "RunningTrial",
    "SearchListener",
    "SearchSnapshot",
    "SilentListener",
    "StopReason",
    "trial_names",
]


class StopReason(StrEnum):
    """Why a search ended."""

    TRIALS = "trials"
    """All configurations of the budget are finished."""
    TIMEOUT = "timeout"
    """The active seconds are used up; running trials were paused."""
    CONVERGED = "converged"
    """`budget.patience` trials in a row brought nothing better."""
    EXHAUSTED = "exhausted"
    """The grid has no configuration left."""
    INTERRUPTED = "interrupted"
    """The user interrupted; running trials were paused."""


@dataclass(frozen=True, kw_only=True, slots=True)
class RunningTrial:
    """A trial that runs now."""

    number: int
    """Its number."""
    worker: int
    """Which worker runs it; trials of one worker are trained together."""
    params: Mapping[str, ParamValue]
    """Its sampled hyperparameters."""
    curve: tuple[float, ...]
    """The objective at each validation so far."""
    fraction: float
    """Share of its full length that it has trained, in [0, 1]."""
    train_loss: float | None
    """Training loss of the last step."""
    seconds: float
    """Seconds that it has trained, over all its runs."""
    seconds_left: float | None
    """Estimated seconds to its full length; None before there is an estimate."""


@dataclass(frozen=True, kw_only=True, slots=True)
class SearchSnapshot:
    """The state of a search at one moment; everything that a live view shows."""

    study_name: str
    """The study."""
    objective: str
    """The metric that trials are ranked by."""
    counts: Mapping[str, int]
    """Trials by `complete`, `pruned`, `failed`, `running`, `waiting`."""
    num_configurations: int
    """Configurations so far."""
    total_configurations: int
    """Configurations in the budget."""
    running: tuple[RunningTrial, ...]
    """Trials that run now."""
    best_number: int | None
    """Number of the best complete trial."""
    best_value: float | None
    """Its value."""
    best_params: Mapping[str, ParamValue]
    """Its sampled hyperparameters; empty where there is none yet."""
    default_value: float | None
    """Value of the default recipe (trial 0), once it is complete."""
    active_seconds: float
    """Active seconds of all runs of the study."""
    timeout_seconds: float | None
    """The budget of active seconds."""


class SearchListener(Protocol):
    """Watches a search. Called from the supervisor's thread; must be quick."""

    def preparing(self, text: str) -> None:
        """Say what is prepared now, before the first trial.

        Args:
            text: A short phrase such as `reading data`.
        """
        ...

    def prepared(self, facts: StudyFacts, *, is_resumed: bool) -> None:
        """Tell what was found out about data and models.

        Args:
            facts: The facts.
            is_resumed: Whether the study existed before.
        """
        ...

    def trial_started(self, snapshot: SearchSnapshot, number: int, *, is_resumed: bool) -> None:
        """Tell that a trial starts or goes on.

        Args:
            snapshot: The state after it.
            number: The trial.
            is_resumed: Whether it goes on from a checkpoint.
        """
        ...

    def changed(self, snapshot: SearchSnapshot) -> None:
        """Tell that something changed: progress, a validation. A few times a second at most.

        Args:
            snapshot: The state.
        """
        ...

    def trial_ended(self, snapshot: SearchSnapshot, result: TrialResult) -> None:
        """Tell how a run of a trial ended.

        Args:
            snapshot: The state after it.
            result: The result.
        """
        ...

    def message(self, text: str) -> None:
        """Pass on something that the user should read once.

        Args:
            text: A full sentence.
        """
        ...


class SilentListener:
    """A listener that shows nothing; the default of the Python interface."""

    def preparing(self, text: str) -> None:
        """Ignore the phrase."""

    def prepared(self, facts: StudyFacts, *, is_resumed: bool) -> None:
        """Ignore the facts."""

    def trial_started(self, snapshot: SearchSnapshot, number: int, *, is_resumed: bool) -> None:
        """Ignore the start."""

    def changed(self, snapshot: SearchSnapshot) -> None:
        """Ignore the change."""

    def trial_ended(self, snapshot: SearchSnapshot, result: TrialResult) -> None:
        """Ignore the end."""

    def message(self, text: str) -> None:
        """Ignore the message."""


def trial_names(numbers: Sequence[int]) -> str:
    """Name one or several trials.

    Args:
        numbers: Their numbers, ascending; at least one.

    Returns:
        Such as `trial 3`, `trials 3-5, 9`.
    """
    ranges: list[list[int]] = []
    for number in numbers:
        if ranges and number == ranges[-1][-1] + 1:
            ranges[-1].append(number)
        else:
            ranges.append([number])
    names = [str(r[0]) if len(r) == 1 else f"{r[0]}-{r[-1]}" for r in ranges]
    return ("trial " if len(numbers) == 1 else "trials ") + ", ".join(names)
