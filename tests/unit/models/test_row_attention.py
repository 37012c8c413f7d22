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
FUNCTION = ALL_ATTENTION_FUNCTIONS[IMPLEMENTATION]
LENGTHS = ([3, 1, 6], [1], [7], [5, 5], [33, 2, 31], [3, 70, 2, 1, 71, 4, 250])


def packing_of(lengths: list[int], **options) -> Packing:
    return pack(np.asarray(lengths), CPU, **options)


def tensors(packing: Packing, dtype: torch.dtype = torch.float32) -> list[torch.Tensor]:
    """Queries, keys, values and a gradient, as models lay them out: (1, heads, T, head_dim)."""
    draws = torch.Generator().manual_seed(0)
    shape = (1, packing.num_tokens, HEADS, WIDTH)
    return [torch.randn(shape, generator=draws).to(dtype).transpose(1, 2) for _ in range(4)]


def run(
    packing: Packing,
    states: list[torch.Tensor],
    *,
    p: float = 0.0,
    by_rows: bool = True,
    has_stream: bool = True,
    **options,
):
    """Output and gradients of one call; dropout masks are the first of their generator."""
    given = [tensor.detach().requires_grad_() for tensor in states[:3]]
    torch.manual_seed(7)
    with attention_over(packing, DropoutStream(7) if has_stream else None, by_rows=by_rows):
        output, _ = FUNCTION(torch.nn.Module(), *given, None, dropout=p, **options)
        gradients = torch.autograd.grad(output, given, states[3].transpose(1, 2))
    return output, gradients


@pytest.fixture
def both(monkeypatch: pytest.MonkeyPatch):
    """Run by rows, and by operators that autograd differentiates."""

    def run_both(packing: Packing, states: list[torch.Tensor], **options):
        went = []
        attend = packed.attend_rows
        monkeypatch.setattr(
            packed, "attend_rows", lambda *args, **more: went.append(1) or attend(*args, **more)
        )
        found = run(packing, states, **options)
        expected = run(packing, states, by_rows=False, **options)
        assert went == [1]
        return found, expected

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


@pytest.mark.parametrize("p", [0.0, 0.1])
@pytest.mark.parametrize("options", [{}, {"is_causal": True}, {"sliding_window": 3}])
def test_bf16_rounds_as_attend_does(both, p, options):
    packing = packing_of([33, 2, 31])
    states = tensors(packing, torch.bfloat16)
    (output, ours), (expected, theirs) = both(packing, states, p=p, **options)
    assert output.dtype == torch.bfloat16
    torch.testing.assert_close(output[:, :66], expected[:, :66], atol=2e-2, rtol=2e-2)
    for mine, right in zip(ours, theirs, strict=True):
        assert mine.dtype == torch.bfloat16
        torch.testing.assert_close(mine, right, atol=3e-2, rtol=3e-2)


def test_masks_of_torch_are_those_that_attend_draws(both):
    packing = packing_of([3, 5])
    (output, ours), (expected, theirs) = both(packing, tensors(packing), p=0.4, has_stream=False)
    torch.testing.assert_close(output, expected, atol=1e-6, rtol=1e-6)
    assert all(torch.allclose(a, b, atol=2e-6) for a, b in zip(ours, theirs, strict=True))


@pytest.mark.parametrize(
    "wanted", [(True, False, False), (False, True, True), (False, False, True)]
)
def test_gradients_that_nobody_wants_are_not_computed(wanted):
    packing = packing_of([3, 5])
    states = tensors(packing)
    _, expected = run(packing, states)
    given = [
        tensor.detach().requires_grad_(asked)
        for tensor, asked in zip(states[:3], wanted, strict=True)
    ]
    with attention_over(packing, None):
        output, _ = FUNCTION(torch.nn.Module(), *given, None)
    output.backward(states[3].transpose(1, 2))
    for tensor, asked, right in zip(given, wanted, expected, strict=True):
        assert (tensor.grad is not None) == asked
        assert not asked or torch.equal(tensor.grad, right)


def test_a_gradient_may_lie_in_any_order():
    packing = packing_of([3, 5])
    states = tensors(packing)
    _, expected = run(packing, states)
    strange = states[3].transpose(1, 2).transpose(0, 3).contiguous().transpose(0, 3)
    assert not strange.is_contiguous()
    _, found = run(packing, [*states[:3], strange.transpose(1, 2)])
    assert all(torch.equal(mine, right) for mine, right in zip(found, expected, strict=True))


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_without_gradients_nothing_is_kept(monkeypatch, mode):
    packing = packing_of([3, 5])
    states = tensors(packing)
    expected, _ = run(packing, states)
    kept = []
    save = torch.autograd.function.FunctionCtx.save_for_backward
    monkeypatch.setattr(
        torch.autograd.function.FunctionCtx,
        "save_for_backward",
        lambda ctx, *saved: kept.append(len(saved)) or save(ctx, *saved),
    )
    with mode(), attention_over(packing, None):
        output, _ = FUNCTION(torch.nn.Module(), *states[:3], None)
    assert kept == [0]
    assert torch.equal(output, expected)


def test_what_a_checkpointed_call_saved_is_made_again():
    packing = packing_of([3, 5])
    states = tensors(packing)
    _, expected = run(packing, states, p=0.4)
    given = [tensor.detach().requires_grad_() for tensor in states[:3]]
    stream = DropoutStream(7)

    def call(*inputs: torch.Tensor) -> torch.Tensor:
        stream.begin(0)
        return FUNCTION(torch.nn.Module(), *inputs, None, dropout=0.4)[0]

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


def test_biases_are_those_of_every_head_and_made_once():
    (group,) = packing_of([3, 5]).groups
    kind = {"is_causal": True, "window": None, "dtype": torch.float32}
    found = group.bias_of_heads(HEADS, **kind)
    assert found.shape == (2 * HEADS, 8, 8)
    assert torch.equal(found.view(2, HEADS, 8, 8), group.bias(**kind).expand(2, HEADS, 8, 8))
    assert group.bias_of_heads(HEADS, **kind) is found


def test_places_are_found_once_for_all_blocks():
    packing = packing_of([3, 5])
    assert head_places(packing, 2) is head_places(packing, 2)
    assert head_places(packing, 2) is not head_places(packing, 4)


@pytest.mark.parametrize("why", ["shared keys", "few shapes", "long rows"])
def test_what_it_does_not_compute_goes_another_way(monkeypatch, why):
    monkeypatch.setattr(packed, "attend_rows", lambda *args, **_: pytest.fail("by rows"))
    packing = packing_of([257 if why == "long rows" else 5, 3], in_few_shapes=why == "few shapes")
    query, key, value, _ = tensors(packing)
    if why == "shared keys":
        key, value = key[:, :1], value[:, :1]
    with attention_over(packing, None):
        output, _ = FUNCTION(torch.nn.Module(), query, key, value, None)
    assert output.shape == (1, packing.num_tokens, HEADS, WIDTH)
