"""Which rows does a step see, and in which batches is a split scored?"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from automl_ft.data.batches import (
    Padding,
    bucketed_order,
    collate,
    eval_batches,
    training_order,
)
from automl_ft.data.encoding import EncodedSplit
from automl_ft.trial.schedule import steps_per_epoch

__all__ = ["TrainingBatches", "evaluation_tensors"]


@dataclass(frozen=True, kw_only=True, slots=True)
class TrainingBatches:
    """The training split in batches; a function of the seed, the epoch and the batch only."""

    split: EncodedSplit
    """Encoded training rows."""
    batch_size: int
    """Effective batch size."""
    seed: int
    """The trial's seed."""
    is_bucketed: bool = False
    """Whether the rows of a batch are of similar length."""

    @property
    def num_examples(self) -> int:
        """Training rows."""
        return len(self.split)

    @property
    def num_batches(self) -> int:
        """Optimiser steps of one epoch."""
        return steps_per_epoch(self.num_examples, self.batch_size)

    def order(self, epoch: int) -> npt.NDArray[np.int64]:
        """Return the order of an epoch.

        Args:
            epoch: The epoch, from 0.

        Returns:
            A permutation of the rows, shape (num_examples,).
        """
        if self.is_bucketed:
            return bucketed_order(self.split.lengths, self.batch_size, epoch, self.seed)
        return training_order(self.num_examples, epoch, self.seed)

    def rows(self, order: npt.NDArray[np.int64], batch: int) -> npt.NDArray[np.int64]:
        """Return the rows of a batch.

        Args:
            order: From `order`.
            batch: The batch in its epoch, from 0.

        Returns:
            Row numbers, shape (batch_size,); fewer in the last batch.
        """
        return order[batch * self.batch_size : (batch + 1) * self.batch_size]


def evaluation_tensors(
    split: EncodedSplit, padding: Padding, batch_size: int, device: torch.device
) -> Iterator[tuple[npt.NDArray[np.int64], dict[str, Tensor]]]:
    """Yield a split in batches of similar length.

    Args:
        split: The rows.
        padding: How rows are padded.
        batch_size: Rows at once.
        device: Where the tensors go.

    Yields:
        Row numbers (batch,) and the model's inputs, each (batch, seq_len).
    """
    for rows in eval_batches(split.lengths, batch_size):
        inputs = _to_tensors(collate(split, rows, padding), device)
        del inputs["labels"]
        yield np.asarray(rows, dtype=np.int64), inputs


def _to_tensors(
    arrays: Mapping[str, npt.NDArray[np.int64]], device: torch.device
) -> dict[str, Tensor]:
    return {name: torch.from_numpy(array).to(device) for name, array in arrays.items()}
