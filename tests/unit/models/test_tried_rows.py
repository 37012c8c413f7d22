from __future__ import annotations

from typing import Any

import pytest
import torch
from transformers import BertConfig, BertForSequenceClassification, PreTrainedModel

from automl_ft.models.tried_rows import long_rows, short_rows


def model(**changes: Any) -> PreTrainedModel:
    """Build a model so small that only its config matters."""
    small = {
        "vocab_size": 50, "hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 1,
        "intermediate_size": 8, "max_position_embeddings": 96, "pad_token_id": 4,
    }  # fmt: skip
    config = BertConfig(**small)
    for name, value in changes.items():
        setattr(config, name, value)
    return BertForSequenceClassification(config)


def test_short_rows_hold_no_padding_and_stay_within_the_vocabulary() -> None:
    rows = short_rows(model())
    assert max(map(len, rows)) == len(rows[0])
    assert min(map(len, rows)) == 1
    tokens = torch.cat(rows)
    assert 4 not in tokens.tolist()
    assert tokens.min() >= 0
    assert tokens.max() < 50


def test_the_longest_row_holds_the_models_special_tokens_that_there_are() -> None:
    rows = short_rows(model(mask_token_id=33, cls_token_id=17, sep_token_id=50))
    assert rows[0][1:3].tolist() == [17, 33]


def test_the_last_row_is_one_token_again_and_again() -> None:
    last = short_rows(model())[-1]
    assert len(last) > 1
    assert len(set(last.tolist())) == 1


def test_rows_are_the_same_each_time() -> None:
    assert all(map(torch.equal, short_rows(model()), short_rows(model())))


@pytest.mark.parametrize(
    ("name", "value"),
    [("sliding_window", 16), ("local_attention", 16), ("attention_window", [16, 8])],
)
def test_a_row_is_longer_than_a_window(name: str, value: Any) -> None:
    rows = long_rows(model(**{name: value}), longest=64)
    assert [len(row) for row in rows] == [24, 3]


def test_no_row_is_longer_than_those_to_come() -> None:
    rows = long_rows(model(sliding_window=60), longest=62)
    assert len(rows[0]) == 62


@pytest.mark.parametrize("changes", [{}, {"sliding_window": 64}, {"sliding_window": None}])
def test_without_a_window_that_rows_exceed_there_is_nothing_to_try(changes: dict[str, Any]) -> None:
    assert long_rows(model(**changes), longest=64) == []


def test_where_nobody_says_how_long_rows_are_positions_do() -> None:
    assert len(long_rows(model(sliding_window=90), longest=None)[0]) == 96
    assert long_rows(model(sliding_window=96), longest=None) == []
