"""Padded rows give the plain model's gradients from stored activations too."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

from automl_ft.models.padded_model import PaddedInputs

NUM_BLOCKS = {"albert": 1}
ALL = (
    "bert", "distilbert", "roberta", "xlm-roberta", "albert", "electra", "deberta-v2", "xlnet",
    "gpt2", "llama", "opt", "modernbert", "mpnet",
)  # fmt: skip
PREFIXES = [(name, k) for name in ALL for k in range(1, NUM_BLOCKS.get(name, 3) + 1)]
WITH_TYPES = ("bert", "albert", "electra", "roberta", "xlnet")


@pytest.fixture
def pad_rows(rows) -> Callable[..., PaddedInputs]:
    def make(model: Any, *, has_types: bool = False, side: str | None = None) -> PaddedInputs:
        side = side or ("left" if model.config.model_type == "xlnet" else "right")
        padding = model.config.pad_token_id
        return PaddedInputs(arguments=rows.padded(padding, side=side, has_types=has_types))

    return make


def test_every_architecture_is_here(architecture):
    assert architecture in ALL


def test_without_stored_activations_it_is_the_plain_model(architecture, fast, pad_rows, check_step):
    view = fast(architecture).padded()
    check_step(view, pad_rows(view.model), architecture)


@pytest.mark.parametrize("name", WITH_TYPES)
def test_token_types_are_those_of_each_token(name, fast, plain, pad_rows, check_step, freeze):
    assert plain(name, has_types=True).loss != plain(name).loss
    view = fast(name).padded()
    inputs = pad_rows(view.model, has_types=True)
    num_blocks = NUM_BLOCKS.get(name, 3) - 1
    freeze(view, num_blocks)
    hidden = view.prefix(inputs, num_blocks) if num_blocks else None
    check_step(view, inputs, name, hidden, num_blocks, has_types=True)


@pytest.mark.parametrize(("name", "num_blocks"), PREFIXES)
def test_stored_activations_stand_in_for_frozen_blocks(
    name, num_blocks, fast, pad_rows, check_step, freeze
):
    view = fast(name).padded()
    freeze(view, num_blocks)
    inputs = pad_rows(view.model)
    check_step(view, inputs, name, view.prefix(inputs, num_blocks), num_blocks)


@pytest.mark.parametrize("num_blocks", [1, 2, 3])
def test_activations_stored_from_other_batches_do_as_well(
    num_blocks, rows, fast, pad_rows, check_step, freeze
):
    # Rows are stored alone, and padded to the longest of whatever batch they come in.
    view = fast("deberta-v2").padded()
    freeze(view, num_blocks)
    alone = [PaddedInputs(arguments={
        "input_ids": ids[None], "attention_mask": torch.ones(1, len(ids), dtype=torch.int64),
    }) for ids in rows.ids]  # fmt: skip
    hidden = torch.cat([view.prefix(inputs, num_blocks) for inputs in alone])
    check_step(view, pad_rows(view.model), "deberta-v2", hidden, num_blocks)


@pytest.mark.parametrize("side", ["left", "right"])
def test_the_position_that_is_read_is_found_on_either_side(side, rows, fast, pad_rows):
    # XLNet with padding on the right is what nobody should train: it reads padding there.
    view = fast("bert").padded()
    inputs = pad_rows(view.model, side=side)
    found = view.prefix(inputs, 3)
    begins = [0 if side == "right" else 20 - len(ids) for ids in rows.ids]
    view.model.eval()
    hidden = view.model.base_model(**inputs.arguments).last_hidden_state
    expected = torch.stack([hidden[row, begin] for row, begin in enumerate(begins)])
    torch.testing.assert_close(found, expected, atol=1e-6, rtol=1e-6)


def test_a_prefix_has_one_row_for_each_token_and_no_gradient(architecture, rows, fast, pad_rows):
    if architecture == "albert":
        pytest.skip("has one block only")
    view = fast(architecture).padded()
    hidden = view.prefix(pad_rows(view.model), 1)
    assert hidden.shape == (sum(map(len, rows.ids)), 32)
    assert not hidden.requires_grad
