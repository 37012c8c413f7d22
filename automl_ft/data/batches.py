"""Which rows come in which order, and how rows of different lengths become one array."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Literal, TypeAlias

import numpy as np
from numpy.typing import NDArray

from automl_ft.data.encoding import EncodedRow, EncodedSplit
from automl_ft.data.table import IntArray

__all__ = ["Batch", "Padding", "collate", "eval_batches", "pad_batch", "training_order"]

Batch: TypeAlias = dict[str, NDArray[np.int64]]
"""`input_ids`, `attention_mask` and, where the model asks for it, `token_type_ids` of shape
(batch, seq_len); `labels` of shape (batch,)."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Padding:
    """How short rows are filled up."""

    token_id: int
    """The pad token."""
    side: Literal["right", "left"] = "right"
    """Where padding goes."""
    token_type_id: int = 0
    """The pad token's type, where the model asks for types."""


def training_order(num_rows: int, epoch: int, seed: int) -> NDArray[np.int64]:
    """Return the order in which an epoch sees the training rows.

    It depends on nothing but its arguments, so a trial that is resumed in the middle of an
    epoch needs only to know how many examples it had seen.

    Args:
        num_rows: Training rows.
        epoch: Number of the epoch, from 0.
        seed: The trial's seed, 0 or more.

    Returns:
        A permutation of the row indices, shape (num_rows,).
    """
    return np.random.default_rng([seed, epoch]).permutation(num_rows)


def eval_batches(split: EncodedSplit, batch_size: int) -> Iterator[IntArray]:
    """Yield every row once, longest first, so that rows of one batch need little padding.

    The longest batch comes first: if memory does not do, it shows at once.

    Args:
        split: The rows.
        batch_size: Rows in a batch, from 1 up.

    Yields:
        Row indices, shape (batch,); the last batch may be smaller.
    """
    order = np.argsort(-split.lengths, kind="stable")
    for start in range(0, len(order), batch_size):
        yield order[start : start + batch_size]


def pad_batch(rows: Sequence[EncodedRow], padding: Padding) -> Batch:
    """Fill rows up to the longest of them.

    Args:
        rows: At least one row.
        padding: How they are filled up.

    Returns:
        Arrays of shape (batch, seq_len); `token_type_ids` only where the rows have them.
    """
    shape = len(rows), max(len(row.input_ids) for row in rows)
    batch = {
        "input_ids": np.full(shape, padding.token_id, dtype=np.int64),
        "attention_mask": np.zeros(shape, dtype=np.int64),
    }
    if rows[0].token_type_ids is not None:
        batch["token_type_ids"] = np.full(shape, padding.token_type_id, dtype=np.int64)
    for number, row in enumerate(rows):
        length = len(row.input_ids)
        place = slice(0, length) if padding.side == "right" else slice(shape[1] - length, shape[1])
        batch["input_ids"][number, place] = row.input_ids
        batch["attention_mask"][number, place] = 1
        if row.token_type_ids is not None:
            batch["token_type_ids"][number, place] = row.token_type_ids
    return batch


def collate(
    split: EncodedSplit,
    indices: Sequence[int] | IntArray,
    padding: Padding,
    augment: Callable[[EncodedRow, int], EncodedRow] | None = None,
) -> Batch:
    """Make a padded batch of some rows of a split.

    Args:
        split: The encoded rows.
        indices: Row indices, at least one.
        padding: How rows are filled up.
        augment: What changes a row, given its index (see `data.augmentation.augmenter`).

    Returns:
        What `pad_batch` returns, and `labels` of shape (batch,).
    """
    rows = [split.row(int(index)) for index in indices]
    if augment is not None:
        rows = [augment(row, int(index)) for row, index in zip(rows, indices, strict=True)]
    labels = np.asarray(split.labels[np.asarray(indices)], dtype=np.int64)
    return {**pad_batch(rows, padding), "labels": labels}
