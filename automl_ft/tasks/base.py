"""What must a task be able to do so that its fine-tuning can be searched?"""

from __future__ import annotations

from typing import Protocol, runtime_checkable

import numpy as np
import numpy.typing as npt
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from automl_ft.config.study import ModelConfig, StudyConfig
from automl_ft.data.encoding import EncodedSplit
from automl_ft.data.table import Splits, TextTable
from automl_ft.models.load import LoadedModel, ResolvedCheckpoint
from automl_ft.models.weights import PretrainedWeights

__all__ = ["Loss", "SoftTargetLoss", "Task"]


class Loss(Protocol):
    """A training loss whose sum over micro-batches is exact."""

    def weight(self, targets: Tensor) -> float:
        """Return what the loss of a whole batch is divided by.

        Args:
            targets: Targets of the batch, shape (batch,).

        Returns:
            A number above 0: the rows, or the sum of their class weights.
        """
        ...

    def total(self, logits: Tensor, targets: Tensor) -> Tensor:
        """Return the sum of the rows' losses.

        Args:
            logits: Model scores, shape (batch, num_labels).
            targets: Targets, shape (batch,).

        Returns:
            A scalar in nats, before division by `weight`.
        """
        ...


@runtime_checkable
class SoftTargetLoss(Loss, Protocol):
    """A loss that is linear in the log-probabilities, so that many can be computed at once."""

    def soft_targets(self, num_labels: int) -> Tensor:
        """Return what the loss weighs negative log-probabilities with.

        Args:
            num_labels: Number of classes.

        Returns:
            For a row of each class, the weight of every class, shape (num_labels, num_labels): the
            total of rows is the sum of minus their weights times log-probabilities.
        """
        ...


class Task(Protocol):
    """One family of tasks. Stateless; one instance may serve many trials."""

    name: str
    """The name that a study file gives."""
    objectives: tuple[str, ...]
    """Metrics that trials may be ranked by; all are maximised."""

    def check(self, config: StudyConfig, labels: tuple[str, ...]) -> None:
        """Refuse settings that do not fit the data.

        Args:
            config: The study.
            labels: Class names by id.

        Raises:
            UsageError: A setting names something that the data does not have.
        """
        ...

    def encode(
        self, table: TextTable, tokenizer: PreTrainedTokenizerBase, max_length: int
    ) -> EncodedSplit:
        """Turn rows into tokens.

        Args:
            table: The rows.
            tokenizer: The checkpoint's tokenizer.
            max_length: Tokens that a row is cut to, special tokens included.

        Returns:
            The encoded rows, with their targets.
        """
        ...

    def read(self, config: StudyConfig) -> Splits:
        """Read, check and split the data.

        Args:
            config: The study.

        Returns:
            The splits.

        Raises:
            DataError: The data cannot be used.
        """
        ...

    def load_model(
        self,
        checkpoint: ResolvedCheckpoint,
        config: ModelConfig,
        labels: tuple[str, ...],
        *,
        dropout: float | None,
        seed: int,
        weights: PretrainedWeights | None = None,
    ) -> LoadedModel:
        """Load a pretrained model with a head for this task.

        Args:
            checkpoint: Where it lies.
            config: The model as the user asks for it.
            labels: Class names by id.
            dropout: Dropout probability everywhere; None keeps the checkpoint's own.
            seed: Seed of the new head.
            weights: Its weights, which the model shares (see `models.load.load_model`); None reads
                them for this model alone.

        Returns:
            The model with its layer map.

        Raises:
            ModelError: It cannot be loaded or mapped.
        """
        ...

    def loss(
        self, config: StudyConfig, train: EncodedSplit, num_labels: int, label_smoothing: float
    ) -> Loss:
        """Build the training loss.

        Args:
            config: The study, which may weigh classes.
            train: The training rows.
            num_labels: Number of classes.
            label_smoothing: Smoothing factor in [0, 1).

        Returns:
            The loss.
        """
        ...

    def metrics(
        self,
        targets: npt.NDArray[np.int64],
        logits: npt.NDArray[np.float32],
        labels: tuple[str, ...],
        positive_label: str | None,
    ) -> dict[str, float]:
        """Compute every metric, the objective among them.

        Args:
            targets: True classes, shape (num_rows,).
            logits: Model scores, shape (num_rows, num_labels).
            labels: Class names by id.
            positive_label: The class of `f1_binary`.

        Returns:
            Metrics by name, without the split's prefix.
        """
        ...
