"""What lies below a boundary is taken out once and put back once, also where blocks run often."""

from __future__ import annotations

import pytest
import torch

from automl_ft.models.layer_map import map_layers
from automl_ft.models.prefix import captured_prefix, replaced_prefix


@pytest.fixture
def inputs() -> dict[str, torch.Tensor]:
    ids = torch.arange(10, 24).view(2, 7)
    return {"input_ids": ids, "attention_mask": torch.ones_like(ids)}


@pytest.mark.parametrize("num_groups", [2, 4])
def test_blocks_that_share_weights_go_on_from_their_own_output(load, inputs, num_groups: int):
    model = load("albert", num_hidden_layers=4, num_hidden_groups=num_groups).model.eval()
    layer_map = map_layers(model)
    assert layer_map.num_layers == num_groups
    with torch.no_grad():
        expected = model(**inputs).logits
        for depth in range(1, num_groups):
            hidden = captured_prefix(model, layer_map, depth, lambda: model(**inputs))
            with replaced_prefix(model, layer_map, depth, hidden):
                found = model(**inputs).logits
            torch.testing.assert_close(found, expected, atol=1e-6, rtol=1e-6)


def test_nothing_stays_behind(load, inputs):
    model = load("bert").model.eval()
    layer_map = map_layers(model)
    with torch.no_grad():
        expected = model(**inputs).logits
        hidden = captured_prefix(model, layer_map, 1, lambda: model(**inputs))
        with replaced_prefix(model, layer_map, 1, torch.zeros_like(hidden)):
            assert not torch.equal(model(**inputs).logits, expected)
        assert torch.equal(model(**inputs).logits, expected)
