"""Rows become tokens end to end, or padded batches, with nothing lost on the way."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from transformers import LlamaConfig, LlamaForSequenceClassification

from automl_ft.data.batches import Padding
from automl_ft.data.encoding import EncodedRow, EncodedSplit
from automl_ft.models.capabilities import find_capabilities
from automl_ft.models.layer_map import map_layers
from automl_ft.models.vocabulary import Vocabulary
from automl_ft.trial.inputs import InputMaker, token_indices

CPU = torch.device("cpu")
PAD = 9
ROWS = ([5, 6, 7], [8], [4, 3, 2, 5, 6], [2, 4])


def split(*rows: list[int], has_types: bool = False) -> EncodedSplit:
    ids = np.concatenate(rows).astype(np.int32)
    offsets = np.cumsum([0, *map(len, rows)])
    return EncodedSplit(
        input_ids=ids,
        offsets=offsets,
        labels=np.arange(len(rows)),
        word_ids=np.concatenate([np.arange(len(row)) for row in rows]).astype(np.int32),
        token_type_ids=(ids % 2).astype(np.int8) if has_types else None,
        num_truncated=0,
    )


def maker(found: EncodedSplit, *, is_packed: bool = True, vocabulary=None, side="right"):
    return InputMaker(
        split=found,
        padding=Padding(token_id=PAD, side=side),
        is_packed=is_packed,
        vocabulary=vocabulary,
        device=CPU,
    )


@pytest.mark.parametrize("rows", [[0], [1], [2, 0], [3, 1, 0, 2], [1, 1]])
def test_tokens_of_rows_are_found_one_row_after_the_other(rows: list[int]) -> None:
    found = split(*ROWS)
    places, lengths = token_indices(found.offsets, np.asarray(rows))
    assert found.input_ids[places].tolist() == [token for row in rows for token in ROWS[row]]
    assert lengths.tolist() == [len(ROWS[row]) for row in rows]


@pytest.mark.parametrize("rows", [[0], [1], [2, 0], [3, 1, 0, 2]])
def test_packed_rows_lie_end_to_end_and_are_filled_up_with_zeros(rows: list[int]) -> None:
    inputs = maker(split(*ROWS, has_types=True)).make(np.asarray(rows))
    tokens = [token for row in rows for token in ROWS[row]]
    count = len(tokens)
    assert inputs.input_ids[:count].tolist() == tokens
    assert inputs.token_type_ids[:count].tolist() == [token % 2 for token in tokens]
    assert not inputs.input_ids[count:].any()
    assert not inputs.token_type_ids[count:].any()
    assert len(inputs.input_ids) == len(inputs.token_type_ids) == inputs.packing.num_tokens
    assert inputs.packing.whole.valid.sum(1).tolist() == [len(ROWS[row]) for row in rows]


def test_there_are_no_types_where_rows_have_none() -> None:
    assert maker(split(*ROWS)).make(np.arange(2)).token_type_ids is None


@pytest.mark.parametrize("side", ["left", "right"])
def test_padded_rows_say_where_tokens_are(side: str) -> None:
    inputs = maker(split(*ROWS, has_types=True), is_packed=False, side=side).make(np.arange(4))
    valid = inputs.valid
    assert set(inputs.arguments) == {"input_ids", "attention_mask", "token_type_ids"}
    assert inputs.arguments["input_ids"][valid].tolist() == [t for row in ROWS for t in row]
    assert (inputs.arguments["input_ids"][~valid] == PAD).all()
    assert valid[:, 0 if side == "right" else -1].all()


def test_tokens_become_rows_of_a_cut_embedding() -> None:
    lookup = np.full(10, -1)
    lookup[[0, 1, 5, 6, 7, 8]] = np.arange(6)
    words = Vocabulary(tokens=np.array([0, 1, 5, 6, 7, 8]), lookup=lookup)
    inputs = maker(split(*ROWS), vocabulary=words).make(np.array([0, 1]))
    assert inputs.input_ids[:4].tolist() == [2, 3, 4, 5]
    assert inputs.input_ids.min() >= 0


@pytest.mark.parametrize("is_packed", [False, True])
def test_augmented_rows_come_with_their_own_lengths(is_packed: bool) -> None:
    def shorten(row: EncodedRow, index: int) -> EncodedRow:
        return row.take(np.arange(max(1, len(row.input_ids) - index)))

    made = maker(split(*ROWS, has_types=True), is_packed=is_packed)
    inputs = made.make(np.array([2, 0]), shorten)
    if is_packed:
        assert inputs.input_ids[:6].tolist() == [4, 3, 2, 5, 6, 7]
        assert inputs.token_type_ids[:6].tolist() == [0, 1, 0, 1, 0, 1]
        assert inputs.packing.whole.valid.sum(1).tolist() == [3, 3]
    else:
        assert inputs.arguments["input_ids"].tolist() == [[4, 3, 2], [5, 6, 7]]


def test_labels_are_those_of_the_rows() -> None:
    labels = maker(split(*ROWS)).labels(np.array([3, 1]))
    assert (labels.tolist(), labels.dtype) == ([3, 1], torch.int64)


def test_a_row_ends_before_tokens_that_serve_as_padding() -> None:
    # Decoders read the last token that is no padding by its id, wherever it stands in the row.
    rows = ([5, PAD], [PAD, 5, PAD, PAD], [5, 6], [PAD, PAD], [PAD, 7, PAD, 8])
    packing = maker(split(*rows)).make(np.arange(5)).packing
    assert (packing.ends - packing.starts).tolist() == [0, 1, 1, 0, 3]


@pytest.mark.parametrize("is_packed", [False, True])
def test_a_decoder_reads_rows_that_end_in_padding_as_transformers_does(is_packed: bool) -> None:
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=10, hidden_size=8, num_attention_heads=2, num_hidden_layers=2,
        num_key_value_heads=2, intermediate_size=8, pad_token_id=PAD, num_labels=3,
        use_cache=False,
    )  # fmt: skip
    model = LlamaForSequenceClassification(config).eval()
    layer_map = map_layers(model, frozenset({"score.weight"}))
    found = split([5, 4, PAD], [3, PAD, 5, PAD, PAD], [5, 6], [PAD, PAD])
    inputs = maker(found, is_packed=False).make(np.arange(4))
    with torch.no_grad():
        expected = model(**inputs.arguments).logits
    capabilities = find_capabilities(model, layer_map)
    view = (capabilities.packed_model if is_packed else capabilities.padded_model)(model, layer_map)
    inputs = maker(found, is_packed=is_packed).make(np.arange(4))
    with view.scores(inputs) as scores:
        torch.testing.assert_close(scores, expected, atol=1e-6, rtol=1e-5)
    with view.scores(inputs, view.prefix(inputs, 2), 2) as scores:
        torch.testing.assert_close(scores, expected, atol=1e-6, rtol=1e-5)
