"""How a training row is changed at random; never applied to validation or test rows.

What a row becomes depends on the trial's seed, the epoch and the row's index alone, so neither
batch size nor resuming makes a difference. Mixup acts on activations and lives in `trial`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from automl_ft.data.encoding import EncodedRow

__all__ = [
    "Augmentation",
    "augmenter",
    "replacement_token",
    "token_dropout",
    "word_deletion",
    "word_swap",
]


@dataclass(frozen=True, kw_only=True, slots=True)
class Augmentation:
    """Which changes a row goes through; all are off by default."""

    token_dropout: float = 0.0
    """Probability in [0, 1] that a token is replaced."""
    word_swap: float = 0.0
    """Probability in [0, 1] that a word changes places with the next."""
    word_deletion: float = 0.0
    """Probability in [0, 1] that a word is left out."""
    replacement_token_id: int | None = None
    """What `token_dropout` puts in; needed with it."""

    def __post_init__(self) -> None:
        """Check that token dropout has a token to put in."""
        if self.token_dropout > 0 and self.replacement_token_id is None:
            raise ValueError("token_dropout needs replacement_token_id.")

    @property
    def is_active(self) -> bool:
        """Whether any change is on."""
        return max(self.token_dropout, self.word_swap, self.word_deletion) > 0

    def apply(self, row: EncodedRow, generator: np.random.Generator) -> EncodedRow:
        """Change one row: deletion, then swaps, then dropout of what is left.

        Args:
            row: The row; not changed itself.
            generator: Source of chance.

        Returns:
            The changed row; special tokens stay.
        """
        if self.word_deletion > 0:
            row = word_deletion(row, self.word_deletion, generator)
        if self.word_swap > 0:
            row = word_swap(row, self.word_swap, generator)
        if self.token_dropout > 0 and self.replacement_token_id is not None:
            row = token_dropout(row, self.token_dropout, self.replacement_token_id, generator)
        return row


def augmenter(
    augmentation: Augmentation, *, seed: int, epoch: int
) -> Callable[[EncodedRow, int], EncodedRow] | None:
    """Return what `data.batches.collate` applies to the rows of one epoch.

    Args:
        augmentation: The changes.
        seed: The trial's seed, 0 or more.
        epoch: Number of the epoch, from 0.

    Returns:
        A function of a row and its index, or None if every change is off.
    """
    if not augmentation.is_active:
        return None

    def augment(row: EncodedRow, index: int) -> EncodedRow:
        # The constant keeps these streams apart from those of `training_order`.
        return augmentation.apply(row, np.random.default_rng([seed, epoch, index, 1]))

    return augment


def replacement_token(tokenizer: Any) -> int | None:
    """Return the token that stands for a dropped one.

    Args:
        tokenizer: A transformers tokenizer.

    Returns:
        The mask token where there is one, else unknown, pad or end; None if there is none.
    """
    ids = (
        tokenizer.mask_token_id,
        tokenizer.unk_token_id,
        tokenizer.pad_token_id,
        tokenizer.eos_token_id,
    )
    return next((int(token) for token in ids if token is not None), None)


def token_dropout(
    row: EncodedRow, probability: float, replacement_id: int, generator: np.random.Generator
) -> EncodedRow:
    """Replace tokens at random; special tokens stay.

    Source: Xie et al., Data Noising as Smoothing, ICLR 2017, arXiv 1703.02573 (blank noising).

    Args:
        row: The row.
        probability: Probability in [0, 1] of each token.
        replacement_id: The token that is put in.
        generator: Source of chance.

    Returns:
        A row of the same length.
    """
    dropped = (generator.random(len(row.input_ids)) < probability) & (row.word_ids >= 0)
    return EncodedRow(
        input_ids=np.where(dropped, replacement_id, row.input_ids),
        word_ids=row.word_ids,
        token_type_ids=row.token_type_ids,
    )


def word_swap(row: EncodedRow, probability: float, generator: np.random.Generator) -> EncodedRow:
    """Let neighbouring words change places at random, each word at most once.

    The tokens of a word move together, and no word crosses a special token.

    Source: random swap of Wei & Zou, EDA, 2019, arXiv 1901.11196, limited to neighbours.

    Args:
        row: The row.
        probability: Probability in [0, 1] that a word is swapped with the next.
        generator: Source of chance.

    Returns:
        A row of the same tokens in another order.
    """
    spans = _spans(row)
    draws = generator.random(len(spans))
    order, moved = 0, np.arange(len(row.input_ids))
    while order + 1 < len(spans):
        (start, middle), (follow, end) = spans[order], spans[order + 1]
        if draws[order] < probability and middle == follow:
            moved[start:end] = np.r_[middle:end, start:middle]
            order += 1
        order += 1
    return row.take(moved)


def word_deletion(
    row: EncodedRow, probability: float, generator: np.random.Generator
) -> EncodedRow:
    """Leave words out at random, but never all between two special tokens.

    Source: random deletion of Wei & Zou, EDA, 2019, arXiv 1901.11196, section 2.

    Args:
        row: The row.
        probability: Probability in [0, 1] of each word.
        generator: Source of chance.

    Returns:
        A row that is as long or shorter; special tokens stay.
    """
    spans = _spans(row)
    draws = generator.random(len(spans))
    deleted = draws < probability
    kept = np.ones(len(row.input_ids), dtype=bool)
    for run in _runs(spans):
        if deleted[run].all():
            # All were drawn: the word whose draw was the highest stays.
            deleted[run[int(np.argmax(draws[run]))]] = False
    for (start, end), is_deleted in zip(spans, deleted, strict=True):
        kept[start:end] = not is_deleted
    return row.take(kept)


def _spans(row: EncodedRow) -> list[tuple[int, int]]:
    """Return first token and end of each word, in order."""
    words = row.word_ids
    if not len(words):
        return []
    starts = np.flatnonzero(np.concatenate([[True], words[1:] != words[:-1]]))
    ends = np.concatenate([starts[1:], [len(words)]])
    return [
        (int(start), int(end)) for start, end in zip(starts, ends, strict=True) if words[start] >= 0
    ]


def _runs(spans: list[tuple[int, int]]) -> list[list[int]]:
    """Return the words that no special token separates, as indices of `spans`."""
    runs: list[list[int]] = []
    for number, (start, _) in enumerate(spans):
        if number and spans[number - 1][1] == start:
            runs[-1].append(number)
        else:
            runs.append([number])
    return runs
