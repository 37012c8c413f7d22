"""Rows of similar length are laid out together, at the least cost for attention."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch

from automl_ft.models import packing
from automl_ft.models.packing import Packing, filled_up, pack, padded_length

CPU = torch.device("cpu")
MANY = [5, 60, 61, 4, 7, 200, 6, 64, 3, 59, 201, 8]
"""Lengths that fall into three heaps."""


def packed(lengths: list[int]) -> Packing:
    return pack(np.asarray(lengths), CPU)


def cost(lengths: list[int], ends: tuple[int, ...]) -> int:
    """What attention costs if the sorted rows are cut at some places."""
    ordered, total = sorted(lengths), 0
    for begin, end in itertools.pairwise((0, *ends, len(lengths))):
        longest = -(-ordered[end - 1] // 8) * 8
        total += (end - begin) * longest**2 + packing._GROUP_COSTS
    return total


def test_rows_of_similar_length_are_padded_together():
    found = [(group.num_rows, group.longest) for group in packed(MANY).groups]
    assert found == [(6, 8), (4, 64), (2, 208)]


def test_rows_of_one_length_stay_as_they_are():
    found = packed([7, 5, 8, 6])
    assert found.groups == (found.whole,)
    assert found.places_from is found.padded_from


@pytest.mark.parametrize("seed", range(5))
def test_no_other_division_costs_less(seed: int):
    lengths = np.random.default_rng(seed).integers(1, 120, 7).tolist()
    found = packed(lengths)
    cheapest = min(
        cost(lengths, ends)
        for count in range(len(lengths))
        for ends in itertools.combinations(range(1, len(lengths)), count)
    )
    price = sum(group.num_rows * group.longest**2 for group in found.groups)
    assert price + len(found.groups) * packing._GROUP_COSTS == cheapest


@pytest.mark.parametrize("lengths", [MANY, [1], [300, 1], list(range(1, 90, 3))])
def test_every_row_finds_its_tokens_in_one_group_and_back(lengths: list[int]):
    found = packed(lengths)
    tokens = torch.arange(float(found.num_tokens))[:, None]
    rows = np.split(np.arange(sum(lengths)), np.cumsum(lengths)[:-1])
    seen = []
    for group, part in zip(found.groups, found.spread(tokens), strict=True):
        assert part.shape == (group.num_rows, group.longest, 1)
        for places, valid in zip(part[:, :, 0], group.valid, strict=True):
            seen.append(places[valid].tolist())
    assert sorted(seen) == [row.tolist() for row in rows]
    back = found.gather(list(found.spread(tokens)))
    assert torch.equal(back[: sum(lengths)], tokens[: sum(lengths)])


def test_gradients_come_back_to_the_tokens_that_they_are_of():
    found = packed(MANY)
    tokens = torch.randn(found.num_tokens, 2, requires_grad=True)
    weights = torch.randn(found.num_tokens, 2)
    (found.gather(list(found.spread(tokens)))[: sum(MANY)] * weights[: sum(MANY)]).sum().backward()
    assert torch.equal(tokens.grad[: sum(MANY)], weights[: sum(MANY)])


def test_other_devices_than_a_cpu_get_one_group():
    found = pack(np.asarray(MANY), torch.device("meta"))
    assert found.groups == (found.whole,)


@pytest.mark.parametrize("real", [1, 8, 9, 500, 512, 513, 1000, 1024])
def test_filler_fills_up_to_shapes_that_come_again(real: int) -> None:
    multiple = 8 if real <= 512 else 32
    found = pack(np.asarray([real]), CPU)
    assert found.num_tokens % multiple == 0
    assert real <= found.num_tokens < real + multiple
    assert found.num_real == real


@pytest.mark.parametrize("lengths", [[5, 1, 3], [40, 2, 39, 3, 2, 41, 1, 2] * 8, [32]])
def test_gradients_are_those_of_adding_up_what_padding_gets_none_of(lengths: list[int]) -> None:
    packing = pack(np.array(lengths), CPU)
    torch.manual_seed(0)
    tokens = torch.randn(packing.num_tokens, 3, requires_grad=True)
    spread = torch.cat([part.flatten(0, 1) for part in packing.spread(tokens)])
    is_token = torch.cat([group.valid.flatten() for group in packing.groups])
    weights = torch.randn_like(spread) * is_token[:, None]
    spread.backward(weights)
    expected = torch.zeros_like(tokens).index_add_(0, packing.places_from, weights)
    torch.testing.assert_close(tokens.grad, expected, rtol=0, atol=0)

    places = torch.randn(len(packing.places_from), 3, requires_grad=True)
    sizes = [group.num_places for group in packing.groups]
    parts = [
        part.view(group.num_rows, group.longest, 3)
        for part, group in zip(places.split(sizes), packing.groups, strict=True)
    ]
    gathered = packing.gather(parts)
    weights = torch.randn_like(gathered)
    weights[packing.num_real :] = 0  # nothing reads filler
    gathered.backward(weights)
    expected = torch.zeros_like(places).index_add_(0, packing.packed_from, weights)
    torch.testing.assert_close(places.grad, expected, rtol=0, atol=0)


FEW = [[5, 1, 3], [40, 2, 39, 3, 2, 41, 1, 2] * 8, [32], [8, 8, 8]]


@pytest.mark.parametrize("lengths", FEW)
def test_few_shapes_hold_the_same_rows_with_more_filler(lengths: list[int]) -> None:
    found, usual = pack(np.array(lengths), CPU, in_few_shapes=True), pack(np.array(lengths), CPU)
    total = sum(lengths)
    assert found.is_filler.tolist() == [False] * total + [True] * (found.num_tokens - total)
    assert found.groups == (found.whole,)
    assert found.positions[:total].tolist() == usual.positions[:total].tolist()
    assert found.starts.tolist() == usual.starts.tolist()
    assert found.whole.longest >= usual.whole.longest
    torch.manual_seed(0)
    tokens = torch.randn(found.num_tokens, 3, requires_grad=True)
    (spread,) = found.spread(tokens)
    assert torch.equal(spread[found.whole.valid], tokens[:total])
    assert torch.equal(found.gather([spread])[:total], tokens[:total])
    weights = torch.randn_like(spread) * found.whole.valid[:, :, None]
    spread.backward(weights)
    expected = torch.zeros_like(tokens)
    expected[:total] = weights[found.whole.valid]
    assert torch.equal(tokens.grad, expected)


def test_most_batches_have_one_of_few_shapes() -> None:
    generator = np.random.default_rng(0)
    batches = [generator.integers(4, 48, size=16) for _ in range(300)]
    few, usual = (
        {
            (found.num_tokens, found.whole.longest)
            for found in (pack(b, torch.device("meta"), in_few_shapes=is_few) for b in batches)
        }
        for is_few in (True, False)
    )
    assert len(few) <= 10 < 20 < len(usual)


@pytest.mark.parametrize("number", [1, 8, 9, 64, 65, 500, 512, 513, 4000])
def test_few_shapes_cost_an_eighth_of_the_tokens_and_half_of_the_length_at_most(
    number: int,
) -> None:
    tokens = filled_up(number, in_few_shapes=True)
    length = padded_length(number, in_few_shapes=True)
    assert number <= tokens < max(number + 8, 1.125 * number + 1)
    assert number <= length < max(number + 8, 1.5 * number)
    assert tokens % 8 == length % 8 == 0
