"""Schedules rise and fall as asked; validations are comparable between batch sizes."""

from __future__ import annotations

import pytest
import torch

from automl_ft.specs.hyperparameters import LR_SCHEDULES
from automl_ft.trial.schedule import build_schedule, steps_per_epoch, validation_steps


def rates(name: str, warmup_ratio: float, total_steps: int) -> list[float]:
    """Return the rate of each step, with a peak of 1."""
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0)
    schedule = build_schedule(name, optimizer, warmup_ratio, total_steps)
    found = []
    for _ in range(total_steps):
        found.append(schedule.get_last_lr()[0])
        optimizer.step()
        schedule.step()
    return found


@pytest.mark.parametrize(
    ("num_examples", "batch_size", "steps"), [(10, 5, 2), (11, 5, 3), (3, 8, 1)]
)
def test_the_last_batch_of_an_epoch_may_be_smaller(
    num_examples: int, batch_size: int, steps: int
) -> None:
    assert steps_per_epoch(num_examples, batch_size) == steps


@pytest.mark.parametrize("name", LR_SCHEDULES)
def test_every_schedule_rises_to_the_peak_over_the_warm_up(name: str) -> None:
    found = rates(name, 0.25, 12)
    assert found[:4] == pytest.approx([0, 1 / 3, 2 / 3, 1])
    assert max(found) == 1


@pytest.mark.parametrize("name", LR_SCHEDULES)
def test_without_warm_up_the_first_step_has_the_peak_rate(name: str) -> None:
    assert rates(name, 0.0, 10)[0] == 1


def test_warm_up_is_rounded_up_to_whole_steps() -> None:
    assert rates("constant_with_warmup", 0.15, 10)[:3] == pytest.approx([0, 0.5, 1])


def test_linear_falls_evenly_and_ends_above_zero_only_by_one_step() -> None:
    assert rates("linear", 0.0, 4) == pytest.approx([1, 0.75, 0.5, 0.25])


def test_cosine_falls_slowly_first() -> None:
    found = rates("cosine", 0.0, 10)
    assert found == sorted(found, reverse=True)
    assert found[1] > rates("linear", 0.0, 10)[1]


def test_constant_stays_at_the_peak() -> None:
    assert set(rates("constant_with_warmup", 0.0, 10)) == {1.0}


@pytest.mark.parametrize("parts", [1, 2, 3, 7, 50])
@pytest.mark.parametrize("num_examples", [1, 2, 40, 41, 100, 997])
def test_nominal_examples_are_the_same_for_every_batch_size(num_examples: int, parts: int) -> None:
    finest = set(validation_steps(num_examples, 1, parts).values())
    for batch_size in (1, 2, 3, 8, 16, 33, 64, 2000):
        assert set(validation_steps(num_examples, batch_size, parts).values()) <= finest


@pytest.mark.parametrize("parts", [1, 2, 3, 7, 50])
@pytest.mark.parametrize("num_examples", [1, 2, 40, 41, 100, 997])
def test_validations_are_in_order_and_end_with_the_epoch(num_examples: int, parts: int) -> None:
    for batch_size in (1, 2, 3, 8, 16, 33, 64, 2000):
        points = validation_steps(num_examples, batch_size, parts)
        batches, nominal = list(points), list(points.values())
        assert batches == sorted(set(batches))
        assert nominal == sorted(set(nominal))
        assert batches[-1] == steps_per_epoch(num_examples, batch_size) - 1
        assert nominal[-1] == num_examples
        assert nominal[0] >= 1


@pytest.mark.parametrize("batch_size", [1, 4, 7, 25])
def test_a_validation_follows_the_first_batch_that_reaches_its_share(batch_size: int) -> None:
    for batch, nominal in validation_steps(100, batch_size, 4).items():
        assert batch * batch_size < nominal <= (batch + 1) * batch_size


def test_batches_that_divide_the_parts_validate_exactly_there() -> None:
    assert validation_steps(96, 8, 4) == {2: 24, 5: 48, 8: 72, 11: 96}


def test_a_large_batch_that_crosses_several_parts_is_validated_once() -> None:
    assert validation_steps(100, 64, 4) == {0: 50, 1: 100}


def test_there_are_no_more_validations_than_rows() -> None:
    assert validation_steps(3, 1, 50) == {0: 1, 1: 2, 2: 3}


def test_only_every_mth_epoch_ends_with_a_validation() -> None:
    found = [validation_steps(100, 8, 0.5, epoch, 6) for epoch in range(6)]
    assert found == [{}, {12: 100}] * 3


def test_the_last_epoch_always_ends_with_a_validation() -> None:
    found = [validation_steps(100, 8, 0.25, epoch, 6) for epoch in range(6)]
    assert [bool(points) for points in found] == [False, False, False, True, False, True]


@pytest.mark.parametrize("epochs", [1, 2, 3, 8])
@pytest.mark.parametrize("batch_size", [1, 7, 64, 2000])
def test_trials_of_all_lengths_and_batch_sizes_meet_at_the_same_examples(
    batch_size: int, epochs: int
) -> None:
    found = [
        epoch * 100 + nominal
        for epoch in range(epochs)
        for nominal in validation_steps(100, batch_size, 0.5, epoch, epochs).values()
    ]
    assert found == [*range(200, 100 * epochs, 200), 100 * epochs]


def test_whole_numbers_validate_alike_in_every_epoch() -> None:
    assert validation_steps(96, 8, 4.0, 1, 3) == validation_steps(96, 8, 4)
