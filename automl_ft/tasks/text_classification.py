"""Text classification: one label for a text or a pair of texts."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from torch import Tensor
from torch.nn import functional

from automl_ft.config.study import ModelConfig, StudyConfig
from automl_ft.data.prepare import load_splits
from automl_ft.data.table import Splits
from automl_ft.metrics.classification import classification_metrics
from automl_ft.models.load import LoadedModel, ResolvedCheckpoint, load_model
from automl_ft.tasks.base import Loss

__all__ = ["ClassificationLoss", "TextClassification"]


@dataclass(frozen=True, kw_only=True, slots=True)
class ClassificationLoss:
    """Cross-entropy with label smoothing and class weights, as `torch.nn.CrossEntropyLoss`."""

    class_weights: Tensor | None
    """Weight by class, shape (num_labels,); None weighs rows equally."""
    label_smoothing: float
    """Smoothing factor in [0, 1)."""

    def weight(self, targets: Tensor) -> float:
        """Return the sum of the rows' class weights.

        Args:
            targets: Class ids, shape (batch,).

        Returns:
            A number above 0.
        """
        if self.class_weights is None:
            return float(len(targets))
        return float(self.class_weights[targets].sum())

    def total(self, logits: Tensor, targets: Tensor) -> Tensor:
        """Return the summed cross-entropy, computed in fp32.

        Args:
            logits: Scores before softmax, shape (batch, num_labels).
            targets: Class ids, shape (batch,).

        Returns:
            A scalar in nats.
        """
        return functional.cross_entropy(
            logits.float(),
            targets,
            weight=self.class_weights,
            reduction="sum",
            label_smoothing=self.label_smoothing,
        )


class TextClassification:
    """The task `text-classification`."""

    name = "text-classification"

    def read(self, config: StudyConfig) -> Splits:
        """Read, check and split the data.

        Args:
            config: The study.

        Returns:
            The splits.
        """
        return load_splits(config.data, config.seed)

    def load_model(
        self,
        checkpoint: ResolvedCheckpoint,
        config: ModelConfig,
        labels: tuple[str, ...],
        *,
        dropout: float | None,
        seed: int,
    ) -> LoadedModel:
        """Load a pretrained model with a sequence-classification head.

        Args:
            checkpoint: Where it lies.
            config: The model as the user asks for it.
            labels: Class names by id.
            dropout: Dropout probability everywhere; None keeps the checkpoint's own.
            seed: Seed of the new head.

        Returns:
            The model with its layer map.
        """
        return load_model(checkpoint, config, labels=labels, dropout=dropout, seed=seed)

    def loss(self, class_weights: Tensor | None, label_smoothing: float) -> Loss:
        """Build the training loss.

        Args:
            class_weights: Weight by class, shape (num_labels,); None weighs rows equally.
            label_smoothing: Smoothing factor in [0, 1).

        Returns:
            The loss.
        """
        return ClassificationLoss(class_weights=class_weights, label_smoothing=label_smoothing)

    def metrics(
        self,
        targets: npt.NDArray[np.int64],
        logits: npt.NDArray[np.float32],
        labels: tuple[str, ...],
        positive_label: str | None,
    ) -> dict[str, float]:
        """Compute every metric of a classification.

        Args:
            targets: Class ids, shape (num_rows,).
            logits: Scores before softmax, shape (num_rows, num_labels).
            labels: Class names by id.
            positive_label: The class of `f1_binary`.

        Returns:
            Metrics by name (see `metrics.classification`).
        """
        return classification_metrics(targets, logits, labels, positive_label)
