"""What the supervisor knows of the trials that run now, beyond what the database holds."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from automl_ft.search.events import RunningTrial
from automl_ft.specs.decision import Progress
from automl_ft.specs.trial import ParamValue

__all__ = ["LiveTrial"]


@dataclass(kw_only=True, slots=True)
class LiveTrial:
    """A trial that runs now; changed by the engine only."""

    number: int
    """Its number."""
    worker: int
    """Which worker runs it."""
    params: Mapping[str, ParamValue]
    """Its sampled hyperparameters."""
    curve: list[float] = field(default_factory=list)
    """The objective at each validation."""
    progress: Progress | None = None
    """How far it is."""
    is_stopped_by_user: bool = False
    """Whether the user ended it in the database, for instance from Optuna Dashboard."""
    first: Progress | None = None
    """The first progress of this run, to estimate the speed from."""

    def advance(self, progress: Progress) -> None:
        """Take in progress.

        Args:
            progress: How far the trial is.
        """
        self.first = self.first or progress
        self.progress = progress

    def view(self) -> RunningTrial:
        """Return what a listener sees.

        Returns:
            The trial as it is now.
        """
        now = self.progress
        if now is None:
            return RunningTrial(
                number=self.number,
                worker=self.worker,
                params=self.params,
                curve=tuple(self.curve),
                fraction=0.0,
                train_loss=None,
                seconds=0.0,
                seconds_left=None,
            )
        return RunningTrial(
            number=self.number,
            worker=self.worker,
            params=self.params,
            curve=tuple(self.curve),
            fraction=min(1.0, now.examples_seen / max(now.total_examples, 1)),
            train_loss=now.train_loss,
            seconds=now.seconds,
            seconds_left=self._seconds_left(now),
        )

    def _seconds_left(self, now: Progress) -> float | None:
        first = self.first
        if first is None or now.examples_seen <= first.examples_seen:
            return None
        pace = (now.seconds - first.seconds) / (now.examples_seen - first.examples_seen)
        return pace * (now.total_examples - now.examples_seen)
