"""How training learns what to do next: through a callback, never from Optuna. A leaf."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Protocol

__all__ = ["Decision", "Evaluation", "Progress", "Reporter"]


class Decision(StrEnum):
    """What a running trial is told."""

    CONTINUE = "continue"
    """Go on."""
    PRUNE = "prune"
    """Give up for good."""
    PAUSE = "pause"
    """Write a checkpoint and stop; the trial goes on later."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Progress:
    """How far a running trial is; sent a few times a second at most."""

    examples_seen: int
    """Training examples seen so far."""
    total_examples: int
    """Training examples that the trial sees when it runs its full length."""
    train_loss: float
    """Mean training loss of the last optimiser step, in nats per example."""
    seconds: float
    """Seconds that the trial has trained, over all its runs."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Evaluation:
    """One validation of a trial."""

    step: int
    """Nominal training examples seen: the axis on which trials are compared. Equal for all
    trials of a study at the same fraction of an epoch, whatever their batch size."""
    epoch: float
    """The same place in epochs."""
    metrics: Mapping[str, float]
    """Metrics with their split, such as `validation_f1_macro` and `train_loss`."""
    seconds: float
    """Seconds that the trial had trained by then, over all its runs, validation included."""


class Reporter(Protocol):
    """What the training job calls; the only way in which it learns about pruning."""

    def progress(self, progress: Progress) -> Decision:
        """Tell progress after an optimiser step; cheap.

        Args:
            progress: How far the trial is.

        Returns:
            CONTINUE or PAUSE.
        """
        ...

    def report(self, evaluation: Evaluation) -> Decision:
        """Report a validation, after its checkpoint is on disk, and wait for the decision.

        Args:
            evaluation: The validation.

        Returns:
            CONTINUE, PRUNE or PAUSE.
        """
        ...
