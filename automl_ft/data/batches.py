"""Which rows come in which order, and how rows of different lengths become one array."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Literal, TypeAlias

import numpy as np
from numpy.typing import NDArray

from automl_ft.data.encoding import EncodedRow, EncodedSplit
from automl_ft.data.table import IntArray

__all__ = [
    "Batch",
    "Padding",
    "bucketed_order",
    "collate",
    "eval_batches",
    "pad_batch",
    "padding_of",
    "training_order",
]

_BATCHES_SORTED = 16
"""Batches whose rows are sorted by length together: enough that little is padded, few enough that
an epoch stays random."""

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


def bucketed_order(
    lengths: NDArray[np.int64], batch_size: int, epoch: int, seed: int
) -> NDArray[np.int64]:
    """Return an order of the training rows in which the rows of a batch are of similar length.

    The rows are shuffled as `training_order` does it; within each 16 batches they are sorted by
    length and cut into batches, and the batches are shuffled. Rows that fill no batch come last, as
    they fell. (The idea is transformers' `LengthGroupedSampler`, with a mega-batch of 16 batches.)

    Args:
        lengths: Tokens of each row, shape (num_rows,).
        batch_size: Rows in a batch, 1 or more.
        epoch: Number of the epoch, from 0.
        seed: The trial's seed, 0 or more.

    Returns:
        A permutation of the row indices, shape (num_rows,).
    """
    order = training_order(len(lengths), epoch, seed)
    num_full = len(order) // batch_size * batch_size
    span = _BATCHES_SORTED * batch_size
    batches = []
    for start in range(0, num_full, span):
        rows = order[start : min(start + span, num_full)]
        batches.append(rows[np.argsort(lengths[rows], kind="stable")].reshape(-1, batch_size))
    if not batches:
        return order
    # The constant keeps this stream apart from that of the rows.
    shuffled = np.random.default_rng([seed, epoch, 4]).permutation(np.concatenate(batches))
    return np.concatenate([shuffled.reshape(-1), order[num_full:]])


def eval_batches(lengths: IntArray, batch_size: int) -> Iterator[IntArray]:
    """Yield every row once, longest first, so that rows of one batch need little padding.

    The longest batch comes first: if memory does not do, it shows at once.

    Args:
        lengths: Tokens of each row, shape (num_rows,).
        batch_size: Rows in a batch, from 1 up.

    Yields:
        Row indices, shape (batch,); the last batch may be smaller.
    """
    order = np.argsort(-lengths, kind="stable")
    for start in range(0, len(order), batch_size):
        yield order[start : start + batch_size]


def padding_of(tokenizer: object) -> Padding:
    """Return how a tokenizer pads.

    Args:
        tokenizer: A transformers tokenizer with a pad token.

    Returns:
        Its padding.
    """
    return Padding(
        token_id=int(getattr(tokenizer, "pad_token_id")),  # noqa: B009 - tokenizers are untyped
        side=getattr(tokenizer, "padding_side"),  # noqa: B009
        token_type_id=int(getattr(tokenizer, "pad_token_type_id", 0)),
    )


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
