"""What of one trial is validated, saved and reported, whoever makes its steps?"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

from automl_ft.models.freezing import FreezingPlan
from automl_ft.models.vocabulary import CutEmbedding
from automl_ft.specs.trial import TrialMemory
from automl_ft.trial.batches import TrainingBatches
from automl_ft.trial.losses import LossLog
from automl_ft.trial.recipe import Recipe

__all__ = ["Room", "Scorer", "TrialParts"]


class Scorer(Protocol):
    """What scores the validation split."""

    def all_scores(self, batch_size: int) -> npt.NDArray[np.float32]:
        """Compute the scores of all rows.

        Args:
            batch_size: Rows at once.

        Returns:
            Scores in the order of the rows, shape (num_rows, num_labels).
        """
        ...


class Room(Protocol):
    """The memory that a trial has."""

    record: TrialMemory
    """How the trial fits by now."""

    def all_scores(self, scorer: Any) -> npt.NDArray[np.float32]:
        """Score a split with as many rows at once as fit.

        Args:
            scorer: Scores it; a `Scorer`.

        Returns:
            Scores, shape (num_rows, num_labels).
        """
        ...


@dataclass(frozen=True, kw_only=True, slots=True)
class TrialParts:
    """What of one trial is validated, saved and reported, whoever makes its steps."""

    recipe: Recipe
    model: nn.Module
    """Holds the parameters, in fp32, under the names that the pretrained model gives them."""
    plan: FreezingPlan
    optimizer: torch.optim.Optimizer
    schedule: torch.optim.lr_scheduler.LambdaLR
    batches: TrainingBatches
    losses: LossLog
    validation: Scorer
    """Gives scores of the validation split, with the classes of fp32."""
    memory: Room
    """Runs validations in the memory that there is."""
    score: Callable[[npt.NDArray[np.float32]], dict[str, float]]
    """Metrics of such scores, without a prefix."""
    objective: str
    """Which of them is the objective."""
    validations: Callable[[int], Mapping[int, int]]
    """From an epoch to its `schedule.validation_steps`."""
    cut: CutEmbedding | None
    """The embedding that holds the tokens in use only; None where it is whole."""
    patience: int | None
    """Early stopping: validations without a better value; None runs it out."""
    num_labels: int
    """Number of classes."""
    device: torch.device
    folder: Path
    """Where checkpoints go."""
    random_states: Callable[[], dict[str, Any]]
    """The states of all generators that the trial draws from; checkpointed."""

    @property
    def total_examples(self) -> int:
        """Training rows that a full run sees."""
        return self.recipe.epochs * self.batches.num_examples
