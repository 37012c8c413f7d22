"""Tiny batches tell what any other takes."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import pytest
import torch
from torch import nn

from automl_ft.trial.allocations import recorded_allocations
from automl_ft.trial.forecast import BatchShape, MemoryForecast, profile_of

MIB = 1024 * 1024


def shape(*lengths: int, is_packed: bool = True) -> BatchShape:
    return BatchShape(lengths=lengths, is_packed=is_packed)


def test_features_of_packed_rows_round_their_tokens_up() -> None:
    assert shape(20, 15).features == (1.0, 2, 40, 48, 1152)


def test_features_of_padded_rows_fill_up_to_the_longest() -> None:
    assert shape(20, 15, is_packed=False).features == (1.0, 2, 40, 40, 800)


@pytest.mark.parametrize("is_packed", [True, False])
@pytest.mark.parametrize("max_length", [32, 512])
def test_any_polynomial_is_found_again(is_packed: bool, max_length: int) -> None:
    def live(batch: BatchShape) -> Sequence[int]:
        one, rows, tokens, padded, squares = batch.features
        return [int(7 * one + 3 * rows), int(5 * tokens + 2 * padded), int(11 * squares)]

    profile = profile_of(live, max_length, is_packed=is_packed)
    for lengths in [(3,), (512,) * 64, (128, 100, 9), (9,) * 64]:
        batch = shape(*lengths, is_packed=is_packed)
        assert profile.peak_mib(batch) * MIB == pytest.approx(max(live(batch)), rel=1e-6)


@pytest.mark.parametrize("max_length", [1, 4, 12, 32, 100])
def test_no_row_is_longer_than_the_model_takes(max_length: int) -> None:
    tried: list[BatchShape] = []

    def live(batch: BatchShape) -> Sequence[int]:
        tried.append(batch)
        return [sum(batch.lengths)]

    profile_of(live, max_length, is_packed=True)
    assert len(tried) == 5
    assert max(max(batch.lengths) for batch in tried) <= max(4, max_length)


def test_the_number_of_operations_may_depend_on_the_size() -> None:
    def live(batch: BatchShape) -> Sequence[int]:
        return [100 * sum(batch.lengths)] * max(batch.lengths)

    profile = profile_of(live, 512, is_packed=True)
    assert profile.peak_mib(shape(*[128] * 16)) * MIB == pytest.approx(204_800)


def test_less_than_nothing_is_nothing() -> None:
    profile = profile_of(lambda batch: [1000 - int(batch.features[3])], 512, is_packed=False)
    assert profile.peak_mib(shape(*[512] * 8, is_packed=False)) == 0


def test_a_real_step_is_forecast_to_the_byte() -> None:
    model = nn.TransformerEncoderLayer(32, 4, 64, dropout=0.1, batch_first=True)

    def live(batch: BatchShape) -> Sequence[int]:
        rows = torch.ones(len(batch.lengths), max(batch.lengths), 32)
        with recorded_allocations([rows, *model.parameters()]) as found:
            model(rows).sum().backward()
        model.zero_grad()
        return found

    profile = profile_of(live, 512, is_packed=False)
    for lengths in [(64,) * 4, (7,) * 3]:
        batch = shape(*lengths, is_packed=False)
        assert profile.peak_mib(batch) * MIB == pytest.approx(max(live(batch)), rel=1e-3)


@pytest.fixture
def forecast() -> Callable[..., MemoryForecast]:
    def make(training_mib: float, validation_mib: float) -> MemoryForecast:
        return MemoryForecast(
            base_mib=100, weights_mib=20, optimizer_mib=10,
            training_mib=training_mib, validation_mib=validation_mib,
        )  # fmt: skip

    return make


@pytest.mark.parametrize(("training", "validation"), [(50, 5), (5, 50)])
def test_the_peak_is_in_training_or_in_validation(
    forecast: Callable[..., MemoryForecast], training: float, validation: float
) -> None:
    found = forecast(training, validation)
    assert (found.needed_mib, found.total_mib) == (80, 180)
