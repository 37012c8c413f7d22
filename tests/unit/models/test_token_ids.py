"""Tokens without an embedding are refused by name, before anything is computed."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest
from torch import nn

from automl_ft.errors import ModelError
from automl_ft.models.token_ids import check_token_ids

from .conftest import VOCAB, tiny_tokenizer

LAST = VOCAB - 1


def held(*ids: int) -> list[np.ndarray]:
    return [np.array([0, 7], np.int32), np.array([*ids], np.int32)]


def tokenizer(padding: int = 0):
    tokenizer = tiny_tokenizer("bert")
    tokenizer.pad_token = tokenizer.convert_ids_to_tokens(padding)
    return tokenizer


def test_tokens_up_to_the_last_embedding_are_taken(load, architecture):
    check_token_ids(load(architecture).model, tokenizer(), held(LAST), "tiny")


def test_a_token_beyond_the_embedding_is_named(load, architecture):
    model = load(architecture, vocab_size=VOCAB - 1).model
    word = tokenizer().convert_ids_to_tokens(LAST)
    with pytest.raises(ModelError) as raised:
        check_token_ids(model, tokenizer(), held(LAST, 5, LAST), "tiny")
    message = str(raised.value)
    assert f"`tiny` gives token `{word}` the id {LAST}, but" in message
    assert f"embeddings for ids 0 to {LAST - 1} only" in message
    assert "resize_token_embeddings" in message


def test_the_first_of_several_is_named_and_the_others_are_counted(load):
    model = load("bert", vocab_size=50).model
    with pytest.raises(ModelError, match=r"`w46` the id 50, and 2 others like it, but"):
        check_token_ids(model, tokenizer(), [*held(99, 50), *held(60, 50)], "tiny")


def test_a_padding_token_beyond_the_embedding_is_refused_though_no_row_holds_it(load):
    model = load("bert", vocab_size=50).model
    with pytest.raises(ModelError, match=r"`w86` \(its padding token\) the id 90, but"):
        check_token_ids(model, tokenizer(padding=90), held(49), "tiny")


def test_a_model_that_looks_nothing_up_takes_any_token():
    model = SimpleNamespace(get_input_embeddings=lambda: nn.Linear(2, 2))
    check_token_ids(model, tokenizer(), held(10**6), "tiny")
