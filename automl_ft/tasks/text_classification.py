"""Text classification: one label for a text or a pair of texts."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.nn import functional
from transformers import PreTrainedTokenizerBase

from automl_ft.config.study import OBJECTIVES, ModelConfig, StudyConfig
from automl_ft.data.class_weights import balanced_class_weights
from automl_ft.data.encoding import EncodedSplit, encode
from automl_ft.data.prepare import load_splits
from automl_ft.data.table import Splits, TextTable
from automl_ft.errors import UsageError
from automl_ft.metrics.classification import classification_metrics
from automl_ft.models.load import LoadedModel, ResolvedCheckpoint, load_model
from automl_ft.models.weights import PretrainedWeights
from automl_ft.tasks.base import Loss

__all__ = ["ClassificationLoss", "TextClassification"]


@dataclass(frozen=True, kw_only=True, slots=True)
class ClassificationLoss:
    """Cross-entropy with label smoothing and class weights, as `torch.nn.CrossEntropyLoss`."""

    class_weights: Tensor | None
    """Weight by class, shape (num_labels,); None weighs rows equally."""
    label_smoothing: float
    """Smoothing factor in [0, 1)."""
    placed: dict[torch.device, Tensor] = field(default_factory=dict, compare=False)
    """The class weights on each device that asked for them, so that no step copies them."""

    def weight(self, targets: Tensor) -> float:
        """Return the sum of the rows' class weights.

        Args:
            targets: Class ids, shape (batch,).

        Returns:
            A number above 0.
        """
        if self.class_weights is None:
            return float(len(targets))
        return float(self._weights(targets).index_select(0, targets).sum())

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
            weight=None if self.class_weights is None else self._weights(logits),
            reduction="sum",
            label_smoothing=self.label_smoothing,
        )

    def soft_targets(self, num_labels: int) -> Tensor:
        """Return what the loss weighs negative log-probabilities with.

        Args:
            num_labels: Number of classes.

        Returns:
            For a row of each class, the weight of every class, shape (num_labels, num_labels).
        """
        ones = torch.ones(num_labels)
        weights = ones if self.class_weights is None else self.class_weights
        share = self.label_smoothing / num_labels
        return (1 - self.label_smoothing) * torch.diag(weights) + share * weights

    def _weights(self, like: Tensor) -> Tensor:
        """Return the class weights on the device of another tensor."""
        assert self.class_weights is not None
        if like.device not in self.placed:
            self.placed[like.device] = self.class_weights.to(like.device)
        return self.placed[like.device]


class TextClassification:
    """The task `text-classification`."""

    name: str = "text-classification"
    objectives: tuple[str, ...] = OBJECTIVES

    def check(self, config: StudyConfig, labels: tuple[str, ...]) -> None:
        """Refuse a positive label that the data does not have.

        Args:
            config: The study.
            labels: Class names by id.

        Raises:
            UsageError: There is no such label.
        """
        if config.positive_label is not None and config.positive_label not in labels:
            raise UsageError(
                f"positive_label: `{config.positive_label}` is no label of the data; accepted:"
                f" {', '.join(labels[:20])}. Set it to one of these."
            )

    def encode(
        self, table: TextTable, tokenizer: PreTrainedTokenizerBase, max_length: int
    ) -> EncodedSplit:
        """Turn texts, or pairs of texts, into tokens.

        Args:
            table: The rows.
            tokenizer: The checkpoint's tokenizer.
            max_length: Tokens that a row is cut to, special tokens included.

        Returns:
            The encoded rows with their class ids.
        """
        return encode(table, tokenizer, max_length)

    def read(self, config: StudyConfig) -> Splits:
        """Read, check and split the data.

        Args:
            config: The study.

        Returns:
            The splits.

        Raises:
            DataError: The data cannot be used.
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
        weights: PretrainedWeights | None = None,
    ) -> LoadedModel:
        """Load a pretrained model with a sequence-classification head.

        Args:
            checkpoint: Where it lies.
            config: The model as the user asks for it.
            labels: Class names by id.
            dropout: Dropout probability everywhere; None keeps the checkpoint's own.
            seed: Seed of the new head.
            weights: Its weights, which the model shares; None reads them for this model alone.

        Returns:
            The model with its layer map.

        Raises:
            ModelError: It cannot be loaded or mapped.
        """
        return load_model(
            checkpoint, config, labels=labels, dropout=dropout, seed=seed, weights=weights
        )

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
        weights = None
        if config.data.class_weights == "balanced":
            array = balanced_class_weights(train.labels, num_labels)
            weights = torch.as_tensor(array, dtype=torch.float32)
        return ClassificationLoss(class_weights=weights, label_smoothing=label_smoothing)

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
