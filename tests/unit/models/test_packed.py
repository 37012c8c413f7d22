"""Attention over packed rows is attention within each row, by the definition."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
import torch
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from automl_ft.models.dropout import DropoutStream
from automl_ft.models.packed import (
    IMPLEMENTATION,
    attend,
    attention_over,
    use_packed_attention,
)
from automl_ft.models.packing import Packing, pack, to_device

CPU = torch.device("cpu")
HEADS, WIDTH = 2, 4
LENGTHS = ([3, 1, 6], [1], [1, 1, 1], [7], [5, 5], [33, 2, 31], [3, 70, 2, 1, 71, 4])
CLOSE = {"atol": 2e-6, "rtol": 2e-6}
"""fp32 sums of at most a few hundred numbers of about one, in another order."""


def packed(lengths: list[int]) -> Packing:
    return pack(np.asarray(lengths), CPU)


def one_by_one(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    lengths: list[int],
    *,
    is_causal: bool = False,
    window: int | None = None,
) -> torch.Tensor:
    """Attend token by token, all of it written out; (heads, tokens, width) -> the same."""
    outputs = torch.zeros(query.shape[0], sum(lengths), value.shape[2])
    begin = 0
    for length in lengths:
        for head in range(query.shape[0]):
            source = head * key.shape[0] // query.shape[0]
            for here in range(length):
                seen = [
                    there
                    for there in range(length)
                    if (not is_causal or there <= here)
                    and (window is None or abs(here - there) < window)
                ]
                places = [begin + there for there in seen]
                scores = key[source, places] @ query[head, begin + here] / math.sqrt(query.shape[2])
                weights = (scores - scores.max()).exp()
                weights = weights / weights.sum()
                outputs[head, begin + here] = weights @ value[source, places]
        begin += length
    return outputs


def states(packing: Packing, heads: int = HEADS, seed: int = 0) -> torch.Tensor:
    draws = torch.Generator().manual_seed(seed)
    return torch.randn(1, heads, packing.num_tokens, WIDTH, generator=draws)


class Module(torch.nn.Module):
    """Stands for a layer of attention."""

    def __init__(self, *, is_causal: bool = False) -> None:
        super().__init__()
        self.is_causal = is_causal


def run(packing: Packing, *given: torch.Tensor, is_causal: bool = False, **options):
    function = ALL_ATTENTION_FUNCTIONS[IMPLEMENTATION]
    with attention_over(packing, options.pop("stream", None)):
        output, weights = function(Module(is_causal=is_causal), *given, None, **options)
    assert weights is None
    return output


@pytest.mark.parametrize("lengths", LENGTHS)
def test_the_layout_says_where_tokens_lie(lengths: list[int]):
    found = packed(lengths)
    positions = [place for length in lengths for place in range(length)]
    begins = [sum(lengths[:row]) for row in range(len(lengths))]
    assert found.num_tokens >= sum(lengths)
    assert found.num_tokens % 8 == 0
    assert found.whole.longest >= max(lengths)
    assert found.positions[: sum(lengths)].tolist() == positions
    assert not found.positions[sum(lengths) :].any()
    assert found.starts.tolist() == begins
    assert found.ends.tolist() == [b + n - 1 for b, n in zip(begins, lengths, strict=True)]
    assert found.whole.valid.sum(1).tolist() == lengths


@pytest.mark.parametrize(
    ("lengths", "num_tokens"),
    [
        ([1], 8),
        ([8], 8),
        ([5, 5], 16),
        ([300, 205], 512),
        ([300, 212], 512),
        ([300, 213], 544),
        ([512, 33], 576),
    ],
)
def test_few_tokens_are_filled_up_to_8_and_many_to_32(lengths: list[int], num_tokens: int):
    assert packed(lengths).num_tokens == num_tokens


@pytest.mark.parametrize("lengths", LENGTHS)
def test_padding_and_back_leaves_tokens_as_they_were(lengths: list[int]):
    packing = packed(lengths)
    tokens = torch.randn(packing.num_tokens, 3)
    padded = packing.pad(tokens)
    assert padded.shape == (len(lengths), packing.whole.longest, 3)
    begin = 0
    for row, length in enumerate(lengths):
        assert torch.equal(padded[row, :length], tokens[begin : begin + length])
        begin += length
    assert torch.equal(packing.gather(list(packing.spread(tokens)))[:begin], tokens[:begin])


@pytest.mark.parametrize("lengths", LENGTHS)
@pytest.mark.parametrize("is_causal", [False, True])
@pytest.mark.parametrize("window", [None, 1, 2, 4])
def test_each_row_attends_to_itself_only(lengths: list[int], is_causal: bool, window: int | None):
    packing = packed(lengths)
    query, key, value = (states(packing, seed=seed) for seed in range(3))
    expected = one_by_one(query[0], key[0], value[0], lengths, is_causal=is_causal, window=window)
    options = {} if window is None else {"sliding_window": window}
    found = run(packing, query, key, value, is_causal=is_causal, **options)
    assert found.shape == (1, packing.num_tokens, HEADS, WIDTH)
    assert torch.isfinite(found).all()
    torch.testing.assert_close(found[0, : sum(lengths)], expected.transpose(0, 1), **CLOSE)


def test_heads_may_share_keys_and_values():
    packing = packed([3, 5])
    query, key, value = states(packing, 4), states(packing, 2, 1), states(packing, 2, 2)
    expected = one_by_one(query[0], key[0], value[0], [3, 5])
    found = run(packing, query, key, value)
    torch.testing.assert_close(found[0, :8], expected.transpose(0, 1), **CLOSE)


def test_scores_are_scaled_as_the_model_says():
    packing = packed([3, 5])
    query, key, value = (states(packing, seed=seed) for seed in range(3))
    doubled = run(packing, query * 2, key, value)
    torch.testing.assert_close(run(packing, query, key, value, scaling=1.0), doubled, **CLOSE)


@pytest.mark.parametrize("lengths", [[300], [256, 3], [257, 3], [290, 1, 300, 40]])
@pytest.mark.parametrize("is_causal", [False, True])
@pytest.mark.parametrize("window", [None, 65])
def test_rows_on_either_side_of_the_eager_limit_are_as_torch_computes_them(
    lengths: list[int], is_causal: bool, window: int | None
):
    packing = packed(lengths)
    given = [states(packing, seed=seed).requires_grad_() for seed in range(3)]
    options = {} if window is None else {"sliding_window": window}
    found = run(packing, *given, is_causal=is_causal, **options)[0, : sum(lengths)]
    begins = np.cumsum([0, *lengths])
    parts = []
    for begin, end in itertools.pairwise(begins.tolist()):
        distance = torch.arange(end - begin)[:, None] - torch.arange(end - begin)[None, :]
        allowed = distance >= 0 if is_causal else torch.ones_like(distance, dtype=torch.bool)
        if window is not None:
            allowed = allowed & (distance.abs() < window)
        row = [tensor[:, :, begin:end] for tensor in given]
        parts.append(torch.nn.functional.scaled_dot_product_attention(*row, attn_mask=allowed))
    expected = torch.cat(parts, 2)[0].transpose(0, 1)
    torch.testing.assert_close(found, expected, **CLOSE)
    weights = torch.randn(found.shape, generator=torch.Generator().manual_seed(3))
    ours = torch.autograd.grad((found * weights).sum(), given, retain_graph=True)
    theirs = torch.autograd.grad((expected * weights).sum(), given)
    for mine, right in zip(ours, theirs, strict=True):
        torch.testing.assert_close(mine, right, atol=1e-5, rtol=1e-5)


def test_filler_gets_no_gradient_and_gives_none():
    packing = packed([3, 5])
    given = [states(packing, seed=seed).requires_grad_() for seed in range(3)]
    found = run(packing, *given)
    gradients = torch.autograd.grad(found[0, :8].square().sum(), given)
    assert all(not gradient[:, :, 8:].any() for gradient in gradients)
    assert all(gradient[:, :, :8].any() for gradient in gradients)


@pytest.mark.parametrize("lengths", [[3, 5], [300, 2]])
def test_bf16_stays_near_fp32(lengths: list[int]):
    packing = packed(lengths)
    given = [states(packing, seed=seed) for seed in range(3)]
    exact = run(packing, *given)
    rough = run(packing, *(tensor.bfloat16() for tensor in given))
    assert rough.dtype == torch.bfloat16
    # 8 bits of mantissa: 4e-3 a rounding, a few of them in a row on values of up to three.
    torch.testing.assert_close(rough.float(), exact, atol=5e-2, rtol=0)


@pytest.mark.parametrize("has_stream", [False, True])
@pytest.mark.parametrize("p", [0.1, 0.5])
def test_dropout_drops_weights_at_its_rate_and_scales_the_others(has_stream: bool, p: float):
    torch.manual_seed(0)
    # Equal scores, and values that tell keys apart: the output is the dropped weights themselves.
    rows, length = 40, 32
    query, value = torch.zeros(rows, 1, length, length), torch.eye(length).expand(rows, 1, -1, -1)
    with attention_over(packed([1]), DropoutStream(5) if has_stream else None):
        found = (
            attend(query, query, value, torch.zeros(1, 1, 1, 1), scaling=1.0, dropout=p) * length
        )
    kept = found[found != 0]
    torch.testing.assert_close(kept, torch.full_like(kept, 1 / (1 - p)), atol=1e-4, rtol=1e-4)
    count = found.numel()
    spread = math.sqrt(p * (1 - p) / count)
    assert float((found == 0).float().mean()) == pytest.approx(p, abs=4.5 * spread)


def test_values_may_have_a_width_of_their_own():
    draws = torch.Generator().manual_seed(0)
    query, key = (torch.randn(2, 3, 4, 8, generator=draws) for _ in range(2))
    value = torch.randn(2, 3, 4, 6, generator=draws)
    found = attend(query, key, value, torch.zeros(2, 1, 1, 4), scaling=0.5, dropout=0.0)
    expected = torch.nn.functional.scaled_dot_product_attention(query, key, value, scale=0.5)
    torch.testing.assert_close(found, expected, **CLOSE)


def test_dropout_in_the_model_follows_its_attention_layers(fast, pack_rows):
    found = fast("bert")
    stream = DropoutStream(1)
    drawn = []
    stream.mask = lambda shape, p, dtype: drawn.append((tuple(shape), p)) or torch.ones(shape)
    for module in found.model.modules():
        if hasattr(module, "query"):
            module.dropout.p = 0.25
    inputs = pack_rows()
    try:
        with found.packed(stream=stream).scores(inputs):
            pass
        found.model.eval()
        with found.packed(stream=stream).scores(inputs):
            pass
    finally:
        for module in found.model.modules():
            if hasattr(module, "query"):
                module.dropout.p = 0.0
    packing = inputs.packing
    heads = packing.num_rows * 4
    whole = (heads, packing.whole.longest, packing.whole.longest)
    read = (heads, 1, packing.whole.longest)
    assert drawn == [(whole, 0.25), (whole, 0.25), (read, 0.25)]


def test_without_a_packing_it_is_sdpa():
    query, key, value = (torch.randn(2, HEADS, 5, WIDTH) for _ in range(3))
    function = ALL_ATTENTION_FUNCTIONS[IMPLEMENTATION]
    found, _ = function(Module(), query, key, value, None)
    expected = torch.nn.functional.scaled_dot_product_attention(query, key, value).transpose(1, 2)
    torch.testing.assert_close(found, expected, **CLOSE)


def test_a_packing_ends_with_its_block_even_after_an_error():
    function = ALL_ATTENTION_FUNCTIONS[IMPLEMENTATION]
    query = torch.randn(2, HEADS, 5, WIDTH)
    expected, _ = function(Module(), query, query, query, None)
    with pytest.raises(RuntimeError, match="on purpose"), attention_over(packed([2]), None):
        raise RuntimeError("on purpose")
    assert torch.equal(function(Module(), query, query, query, None)[0], expected)


def test_packings_may_be_nested():
    outer, inner = packed([3, 5]), packed([8])
    query = states(outer)
    expected = run(outer, query, query, query)
    with attention_over(outer, None):
        run(inner, query, query, query)
        found, _ = ALL_ATTENTION_FUNCTIONS[IMPLEMENTATION](Module(), query, query, query, None)
    assert torch.equal(found, expected)


def test_biases_are_made_once_for_each_kind():
    packing = packed([3, 5])
    first = packing.whole.bias(is_causal=True, window=None, dtype=torch.float32)
    assert packing.whole.bias(is_causal=True, window=None, dtype=torch.float32) is first
    other = packing.whole.bias(is_causal=True, window=None, dtype=torch.bfloat16)
    assert other.dtype == torch.bfloat16


def test_a_tensor_on_the_cpu_goes_there_as_it_is():
    tensor = torch.ones(2)
    assert to_device(tensor, CPU) is tensor


def test_a_model_that_takes_packed_attention_says_so(load):
    model = load("bert", "classifier").model
    use_packed_attention(model)
    assert model.config._attn_implementation == IMPLEMENTATION
