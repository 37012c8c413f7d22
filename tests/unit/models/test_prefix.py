"""The lowest blocks of a model are passed over, and everything is as before afterwards."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from automl_ft.models.layer_map import map_layers
from automl_ft.models.prefix import (
    boundary_input,
    captured_output,
    captured_prefix,
    patched,
    replaced_blocks,
    replaced_prefix,
)


class Doubling(nn.Module):
    def forward(self, values: torch.Tensor) -> torch.Tensor:
        return 2 * values


def test_a_forward_is_patched_for_a_while():
    module, one = Doubling(), torch.ones(1)
    with patched(module, lambda values: values + 5):
        assert module(one).item() == 6
    assert module(one).item() == 2
    assert "forward" not in module.__dict__


def test_patches_may_be_nested():
    module, one = Doubling(), torch.ones(1)
    with patched(module, lambda values: values + 5):
        with patched(module, lambda values: values + 7):
            assert module(one).item() == 8
        assert module(one).item() == 6
    assert module(one).item() == 2


def test_the_input_of_a_block_is_found_by_position_and_by_name():
    states, mask = torch.ones(2), torch.zeros(2)
    assert boundary_input((states, mask), {}) is states
    assert boundary_input((), {"attention_mask": mask, "hidden_states": states}) is states


@pytest.fixture
def runs(fast, rows):
    """Return a model, its layer map, how to call it, and how often its blocks have run."""
    fitted = fast("bert")
    fitted.model.eval()
    inputs = rows.padded(0)
    calls = [0, 0, 0]
    handles = []
    for number, name in enumerate(fitted.loaded.layer_map.block_modules):

        def count(module, args, output, number=number) -> None:
            calls[number] += 1

        attention = fitted.model.get_submodule(name).attention
        handles.append(attention.register_forward_hook(count))
    yield fitted.model, fitted.loaded.layer_map, lambda: fitted.model(**inputs).logits, calls
    for handle in handles:
        handle.remove()


def test_nothing_above_a_boundary_is_computed_to_capture_it(runs):
    model, layer_map, run, calls = runs
    captured_prefix(model, layer_map, 2, run)
    assert calls == [1, 1, 0]


def test_nothing_below_a_boundary_is_computed_from_it(runs):
    model, layer_map, run, calls = runs
    expected = run()
    hidden = captured_prefix(model, layer_map, 2, run)
    calls[:] = [0, 0, 0]
    with replaced_prefix(model, layer_map, 2, hidden):
        found = run()
    assert calls == [0, 0, 1]
    torch.testing.assert_close(found, expected, atol=0, rtol=0)


def test_what_is_given_is_what_the_boundary_starts_from(runs):
    model, layer_map, run, _ = runs
    hidden = captured_prefix(model, layer_map, 2, run)
    with replaced_prefix(model, layer_map, 2, hidden + 1):
        moved = run()
    assert not torch.allclose(moved, run())


def test_an_output_is_that_of_the_last_block(runs):
    model, layer_map, run, calls = runs
    hidden = captured_output(model, layer_map, run)
    assert calls == [1, 1, 1]
    calls[:] = [0, 0, 0]
    with replaced_blocks(model, layer_map, hidden):
        found = run()
    assert calls == [0, 0, 0]
    assert torch.equal(found, run())


def test_the_model_is_whole_again_after_an_error(runs):
    model, layer_map, run, calls = runs
    hidden = captured_prefix(model, layer_map, 2, run)
    with (
        pytest.raises(RuntimeError, match="on purpose"),
        replaced_prefix(model, layer_map, 2, hidden),
    ):
        raise RuntimeError("on purpose")
    calls[:] = [0, 0, 0]
    run()
    assert calls == [1, 1, 1]
    block = model.get_submodule(layer_map.block_modules[2])
    assert not block._forward_pre_hooks


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
