"""Which tokens make up a word: what augmentation moves or deletes as a whole. A leaf."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

__all__ = ["word_numbers"]


def word_numbers(
    word_ids: Sequence[int | None],
    sequence_ids: Sequence[int | None],
    char_spans: Sequence[tuple[int, int]],
    special: NDArray[np.bool_],
    texts: Sequence[str],
) -> NDArray[np.int32]:
    """Number the words of one row through all its texts.

    The tokenizer's own words are used, because they know scripts without spaces. A tokenizer
    that does not split into words first (Llama's) calls the whole text one word; then words are
    what white space separates.

    Args:
        word_ids: The tokenizer's word of each token, counted anew in each text.
        sequence_ids: Text of each token.
        char_spans: First character and end of each token in its text.
        special: Whether each token is a special one, shape (num_tokens,).
        texts: The text fields of the row.

    Returns:
        Words rising from 0, -1 for special tokens, shape (num_tokens,), int32.
    """
    numbers = np.full(len(special), -1, dtype=np.int32)
    texts_of = np.asarray([-1 if text is None else text for text in sequence_ids], dtype=np.int32)
    words_of = np.asarray([-1 if word is None else word for word in word_ids], dtype=np.int32)
    start = 0
    for text_id, text in enumerate(texts):
        mine = np.flatnonzero((texts_of == text_id) & ~special)
        if not len(mine):
            continue
        words = words_of[mine]
        if len(mine) > 1 and words[0] == words[-1]:
            words = _spaced_words(text, np.asarray(char_spans, dtype=np.int64)[mine])
        _, ranks = np.unique(words, return_inverse=True)
        numbers[mine] = ranks + start
        start += int(ranks.max()) + 1
    return numbers


def _spaced_words(text: str, spans: NDArray[np.int64]) -> NDArray[Any]:
    """Return the white-space separated word that each token ends in."""
    if not text:
        return np.zeros(len(spans), dtype=np.int64)
    is_space = np.asarray([character.isspace() for character in text], dtype=bool)
    begins = ~is_space & np.concatenate([[True], is_space[:-1]])
    words = np.cumsum(begins)
    # A token of white space alone belongs to the word that follows, as a leading space does.
    last = np.clip(spans[:, 1] - 1, 0, len(text) - 1)
    alone = is_space[last]
    return np.maximum.accumulate(words[last] + alone)
