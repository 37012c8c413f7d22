"""A top block that is computed only where the head reads gives what a whole one gives there."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from automl_ft.models.last_block import read_block

KNOWN = ("bert", "distilbert", "roberta", "xlm-roberta", "electra")


def last_block(fitted) -> nn.Module:
    return fitted.model.get_submodule(fitted.loaded.layer_map.block_modules[-1])


def test_the_layouts_of_berts_family_are_known(architecture, fast):
    assert (read_block(last_block(fast(architecture))) is not None) == (architecture in KNOWN)


def test_an_unknown_block_is_not_looked_into():
    assert read_block(nn.Linear(2, 2)) is None


@pytest.mark.parametrize("name", KNOWN)
def test_it_computes_the_output_of_a_whole_block_at_any_position(name, fast, rows, pack_rows):
    fitted = fast(name)
    fitted.model.eval()
    block, packing = last_block(fitted), pack_rows().packing
    draws = torch.Generator().manual_seed(1)
    hidden = torch.randn(1, packing.num_tokens, 32, generator=draws)
    for read in (packing.starts, packing.ends, (packing.starts + packing.ends) // 2):
        found = read_block(block).forward(hidden, packing, read)
        begin = 0
        for row, ids in enumerate(rows.ids):
            alone = block(hidden[:, begin : begin + len(ids)])
            alone = alone[0] if isinstance(alone, tuple) else alone
            expected = alone[0, int(read[row]) - begin]
            torch.testing.assert_close(found[row, 0], expected, atol=2e-6, rtol=1e-5)
            begin += len(ids)


@pytest.mark.parametrize("name", ["bert", "distilbert"])
def test_no_weight_is_dropped_in_eval_mode(name, load, pack_rows):
    loaded = load(name, "classifier", dropout=0.5)
    packing = pack_rows().packing
    block = read_block(loaded.model.get_submodule(loaded.layer_map.block_modules[-1]))
    hidden = torch.randn(1, packing.num_tokens, 32)

    def run() -> torch.Tensor:
        return block.forward(hidden, packing, packing.starts)

    assert torch.equal(run(), run())
    loaded.model.train()
    assert not torch.equal(run(), run())
