"""Attention by rows gives the outputs and gradients that autograd gives of `packed.attend`."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch.utils.checkpoint import checkpoint
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from automl_ft.models import packed
from automl_ft.models.dropout import DropoutStream
from automl_ft.models.packed import IMPLEMENTATION, attention_over
from automl_ft.models.packing import Packing, pack
from automl_ft.models.row_attention import head_places

CPU = torch.device("cpu")
HEADS, WIDTH = 3, 4
LENGTHS = ([3, 1, 6], [1], [7], [5, 5], [33, 2, 31], [3, 70, 2, 1, 71, 4, 250])


def packing_of(lengths: list[int], **options) -> Packing:
    return pack(np.asarray(lengths), CPU, **options)


def tensors(packing: Packing, dtype: torch.dtype = torch.float32) -> list[torch.Tensor]:
    """Queries, keys, values and a gradient, as models lay them out: (1, heads, T, head_dim)."""
    draws = torch.Generator().manual_seed(0)
    shape = (1, packing.num_tokens, HEADS, WIDTH)
    return [torch.randn(shape, generator=draws).to(dtype).transpose(1, 2) for _ in range(4)]


def run(packing: Packing, states: list[torch.Tensor], *, p: float = 0.0, **options):
    """Output and gradients of one call; dropout masks are those of a stream's first step."""
    given = [tensor.detach().requires_grad_() for tensor in states[:3]]
    function = ALL_ATTENTION_FUNCTIONS[IMPLEMENTATION]
    with attention_over(packing, DropoutStream(7)):
        output, _ = function(torch.nn.Module(), *given, None, dropout=p, **options)
        gradients = torch.autograd.grad(output, given, states[3].transpose(1, 2))
    return output, gradients


@pytest.fixture
def both(monkeypatch: pytest.MonkeyPatch):
    """Run by rows, and by operators that autograd differentiates."""

    def run_both(packing: Packing, states: list[torch.Tensor], **options):
        went = []
        by_rows = packed._by_rows
        monkeypatch.setattr(packed, "_by_rows", lambda *args: went.append(1) or by_rows(*args))
        found = run(packing, states, **options)
        assert went == [1]
        monkeypatch.setattr(packed, "_goes_by_rows", lambda *args: False)
        return found, run(packing, states, **options)

    return run_both


@pytest.mark.parametrize("lengths", LENGTHS)
@pytest.mark.parametrize("p", [0.0, 0.3])
@pytest.mark.parametrize("options", [{}, {"is_causal": True}, {"sliding_window": 3}])
def test_outputs_and_gradients_are_those_of_attend(both, lengths, p, options):
    packing = packing_of(lengths)
    (output, ours), (expected, theirs) = both(packing, tensors(packing), p=p, **options)
    real = sum(lengths)
    torch.testing.assert_close(output[:, :real], expected[:, :real], atol=1e-6, rtol=1e-6)
    for mine, right in zip(ours, theirs, strict=True):
        # All tokens: filler has no gradient on either side, whatever is handed to it.
        torch.testing.assert_close(mine, right, atol=2e-6, rtol=2e-6)
        assert not mine[:, :, real:].any()


def test_bf16_rounds_as_attend_does(both):
    packing = packing_of([33, 2, 31])
    (output, ours), (expected, theirs) = both(packing, tensors(packing, torch.bfloat16), p=0.1)
    assert output.dtype == torch.bfloat16
    torch.testing.assert_close(output[:, :66], expected[:, :66], atol=2e-2, rtol=2e-2)
    for mine, right in zip(ours, theirs, strict=True):
        assert mine.dtype == torch.bfloat16
        torch.testing.assert_close(mine, right, atol=3e-2, rtol=3e-2)


def test_a_checkpointed_call_draws_its_masks_again(both):
    packing = packing_of([3, 5])
    states = tensors(packing)
    _, expected = run(packing, states, p=0.4)
    given = [tensor.detach().requires_grad_() for tensor in states[:3]]
    function = ALL_ATTENTION_FUNCTIONS[IMPLEMENTATION]
    stream = DropoutStream(7)

    def call(*inputs: torch.Tensor) -> torch.Tensor:
        stream.begin(0)
        return function(torch.nn.Module(), *inputs, None, dropout=0.4)[0]

    with attention_over(packing, stream):
        output = checkpoint(call, *given, use_reentrant=False)
        found = torch.autograd.grad(output, given, states[3].transpose(1, 2))
    for mine, right in zip(found, expected, strict=True):
        assert torch.equal(mine, right)


def test_each_head_of_a_token_has_one_place_and_padding_is_the_rest():
    lengths = [3, 70, 2, 1, 71, 4]
    packing = packing_of(lengths)
    places = head_places(packing, HEADS)
    assert len(packing.groups) > 1
    num_heads = sum(lengths) * HEADS
    real = places.of_tokens[:num_heads]
    assert torch.equal(places.of_places[real], torch.arange(num_heads))
    everything = torch.cat([real, places.padding]).sort().values
    assert torch.equal(everything, torch.arange(len(places.of_places)))


def test_places_are_found_once_for_all_blocks():
    packing = packing_of([3, 5])
    assert head_places(packing, 2) is head_places(packing, 2)
    assert head_places(packing, 2) is not head_places(packing, 4)


@pytest.mark.parametrize("why", ["shared keys", "torch's masks", "few shapes", "long rows"])
def test_what_it_does_not_compute_goes_another_way(monkeypatch, why):
    monkeypatch.setattr(packed, "_by_rows", lambda *args: pytest.fail("went by rows"))
    packing = packing_of([257 if why == "long rows" else 5, 3], in_few_shapes=why == "few shapes")
    query, key, value, _ = tensors(packing)
    if why == "shared keys":
        key, value = key[:, :1], value[:, :1]
    function = ALL_ATTENTION_FUNCTIONS[IMPLEMENTATION]
    with attention_over(packing, None):
        p = 0.5 if why == "torch's masks" else 0.0
        output, _ = function(torch.nn.Module(), query, key, value, None, dropout=p)
    assert output.shape == (1, packing.num_tokens, HEADS, WIDTH)
