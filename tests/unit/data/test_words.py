from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from automl_ft.data.encoding import encode
from automl_ft.data.table import TextTable
from automl_ft.data.words import word_numbers

Table = Callable[..., TextTable]


def test_word_pieces_belong_to_one_word(table: Table, word_tokenizer: Any) -> None:
    row = encode(table("the unbelievable film"), word_tokenizer, 16).row(0)
    assert row.word_ids.tolist() == [-1, 0, 1, 1, 1, 2, -1]


def test_words_of_a_second_text_count_on(table: Table, word_tokenizer: Any) -> None:
    row = encode(table(("the film", "was unbelievable")), word_tokenizer, 16).row(0)
    assert row.word_ids.tolist() == [-1, 0, 1, -1, 2, 3, 3, 3, -1]


def test_a_tokenizer_that_does_not_split_gets_words_by_white_space(
    table: Table, unsplit_tokenizer: Any
) -> None:
    row = encode(table("a cd fab"), unsplit_tokenizer, 16).row(0)
    tokens = unsplit_tokenizer.convert_ids_to_tokens(row.input_ids)
    assert tokens == ["\u2581a", "\u2581c", "d", "\u2581", "f", "a", "b"]
    assert row.word_ids.tolist() == [0, 1, 1, 2, 2, 2, 2]


def test_every_token_of_a_tokenizer_in_python_is_a_word(table: Table, slow_tokenizer: Any) -> None:
    row = encode(table("abc"), slow_tokenizer, 16).row(0)
    assert row.word_ids.tolist() == [0, 1, 2, -1]


def test_words_that_truncation_cut_off_leave_no_gap() -> None:
    found = word_numbers(
        [0, 2, 2], [0, 0, 0], [(0, 1), (4, 5), (5, 6)], np.zeros(3, dtype=bool), ["a b cc"]
    )
    assert found.tolist() == [0, 1, 1]


def test_a_row_of_special_tokens_has_no_words() -> None:
    found = word_numbers([None], [None], [(0, 0)], np.ones(1, dtype=bool), ["x"])
    assert found.tolist() == [-1]


@pytest.mark.parametrize("text", ["", "   "])
def test_tokens_of_a_text_without_words_are_one_word(text: str) -> None:
    spans = [(0, 0), (0, 0)]
    found = word_numbers([0, 0], [0, 0], spans, np.zeros(2, dtype=bool), [text])
    assert found.tolist() == [0, 0]
