"""Masks of the fast generator are as random as those of torch, and a function of seed and step."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import nn

from automl_ft.models.dropout import DropoutStream, use_stream

SIZE = torch.Size([400, 500])
COUNT = SIZE.numel()
SIGMAS = 4.5
"""How far a count may lie from its mean, in standard deviations: 7e-6 of all fair draws lie further
away, and seeds are fixed."""


def mask(
    seed: int = 0, step: int = 0, *, p: float = 0.5, size: torch.Size = SIZE, skip: int = 0
) -> torch.Tensor:
    stream = DropoutStream(seed)
    stream.begin(step)
    for _ in range(skip):
        stream.mask(size, p, torch.float32)
    return stream.mask(size, p, torch.float32)


@pytest.mark.parametrize("p", [0.01, 0.1, 1 / 3, 0.5, 0.9])
def test_the_share_of_zeros_is_the_probability(p: float):
    zeros = int((mask(p=p) == 0).sum())
    assert abs(zeros - p * COUNT) <= SIGMAS * math.sqrt(p * (1 - p) * COUNT)


@pytest.mark.parametrize("p", [0.1, 0.5, 0.9])
def test_zeros_are_spread_evenly_over_rows_columns_and_lanes(p: float):
    zeros = (mask(p=p) == 0).double()
    for axis in (0, 1):
        shares, count = zeros.mean(axis), zeros.shape[axis]
        spread = math.sqrt(p * (1 - p) / count)
        assert (shares - p).abs().max() <= 5.5 * spread  # the largest of 500
    # Each 64-bit word of the generator makes four elements.
    lanes = zeros.view(-1, 4).mean(0)
    assert (lanes - p).abs().max() <= SIGMAS * math.sqrt(p * (1 - p) / (COUNT / 4))


@pytest.mark.parametrize("p", [0.0, 0.1, 0.25, 0.7])
def test_what_is_kept_is_scaled_so_that_the_mean_is_one(p: float):
    found = mask(p=p).double()
    kept = found[found > 0]
    scale = float(kept[0])
    assert (kept == scale).all()
    # The probability is rounded to 1/65536, the scale belongs to the rounded one: exactly mean 1.
    rounded = round(p * 65536) / 65536
    assert scale * (1 - rounded) == pytest.approx(1, abs=1e-7)
    assert rounded == pytest.approx(p, abs=1 / 131072)
    spread = math.sqrt(p / (1 - p) / COUNT)
    assert float(found.mean()) == pytest.approx(1, abs=SIGMAS * spread + 1e-6)


def test_the_scale_in_bf16_is_rounded_as_torch_rounds_it():
    found = DropoutStream(0).mask(SIZE, 0.1, torch.bfloat16)
    assert found.dtype == torch.bfloat16
    assert float(found.max()) == float(torch.tensor(1 / 0.9).bfloat16())


def test_a_probability_that_rounds_to_nothing_drops_nothing():
    assert (mask(p=1e-6) == 1).all()


def test_a_probability_that_rounds_to_one_keeps_some_and_stays_finite():
    found = mask(p=1 - 1e-9)
    assert torch.isfinite(found).all()


def correlation(first: torch.Tensor, second: torch.Tensor) -> float:
    both = torch.stack([first.flatten(), second.flatten()]).double()
    return float(torch.corrcoef(both)[0, 1])


def pairs() -> dict[str, tuple[torch.Tensor, torch.Tensor]]:
    plain = mask(3, 5)
    flat = plain.flatten()
    return {
        "seeds": (plain, mask(4, 5)),
        "steps": (plain, mask(3, 6)),
        "draws": (plain, mask(3, 5, skip=1)),
        "seed and step": (plain, mask(5, 3)),
        "neighbours": (flat[:-1], flat[1:]),
        "words": (flat[:-4], flat[4:]),
        "rows": (plain[:-1], plain[1:]),
        "probabilities": (mask(3, 5, p=0.1), mask(3, 6, p=0.1)),
    }


@pytest.mark.parametrize("kind", pairs())
def test_masks_do_not_depend_on_each_other(kind: str):
    assert abs(correlation(*pairs()[kind])) <= SIGMAS / math.sqrt(COUNT - 500)


def test_masks_are_a_function_of_seed_step_and_order():
    stream = DropoutStream(3)
    stream.begin(5)
    first, second = (stream.mask(SIZE, 0.5, torch.float32) for _ in range(2))
    stream.begin(9)
    stream.mask(SIZE, 0.5, torch.float32)
    stream.begin(5)
    assert torch.equal(stream.mask(SIZE, 0.5, torch.float32), first)
    assert torch.equal(mask(3, 5, skip=1), second)


def test_masks_do_not_touch_the_generators_of_others():
    before, numpys = torch.random.get_rng_state(), np.random.get_state()[1].copy()
    mask()
    assert torch.equal(torch.random.get_rng_state(), before)
    assert np.array_equal(np.random.get_state()[1], numpys)


@pytest.mark.parametrize("size", [(), (1,), (3,), (2, 3, 5), (0, 4)])
def test_masks_have_any_shape(size: tuple[int, ...]):
    found = mask(size=torch.Size(size))
    assert found.shape == size
    assert set(found.flatten().tolist()) <= {0.0, 2.0}


def test_dropped_values_are_the_mask_times_the_values_and_so_is_the_gradient():
    values = torch.randn(SIZE, requires_grad=True)
    dropped = DropoutStream(3).drop(values, 0.5)
    expected = mask(3)
    assert torch.equal(dropped, values * expected)
    dropped.sum().backward()
    assert torch.equal(values.grad, expected)


class Nested(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        shared = nn.Dropout(0.5)
        self.layers = nn.ModuleList([nn.Sequential(nn.Linear(4, 4), shared), nn.Dropout(0.25)])
        self.again = shared
        self.other = nn.AlphaDropout(0.5)
        self.all = nn.Dropout(1.0)


def test_dropout_layers_draw_from_the_stream_and_keep_names_and_modes():
    model = Nested()
    model.again.eval()
    names = [name for name, _ in model.named_modules()]
    modes = {name: module.training for name, module in model.named_modules()}
    use_stream(model, DropoutStream(3))
    assert [name for name, _ in model.named_modules()] == names
    assert {name: module.training for name, module in model.named_modules()} == modes
    assert model.layers[0][1] is model.again
    assert [model.again.p, model.layers[1].p] == [0.5, 0.25]
    assert (type(model.other), type(model.all)) == (nn.AlphaDropout, nn.Dropout)


def test_dropout_layers_drop_in_training_mode_only():
    model, values = nn.Sequential(nn.Dropout(0.5)), torch.ones(SIZE)
    use_stream(model, DropoutStream(3))
    assert torch.equal(model(values), mask(3))
    assert model.eval()(values) is values


def test_a_layer_without_dropout_draws_nothing():
    stream, values = DropoutStream(3), torch.ones(SIZE)
    model = nn.Sequential(nn.Dropout(0.0))
    use_stream(model, stream)
    assert model(values) is values
    assert torch.equal(stream.mask(SIZE, 0.5, torch.float32), mask(3))
