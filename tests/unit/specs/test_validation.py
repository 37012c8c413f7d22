"""Validation takes a small share of a trial, the same on every resume."""

from __future__ import annotations

import dataclasses

import pytest

from automl_ft.specs.codec import from_plain, to_plain
from automl_ft.specs.facts import DataFacts, StudyFacts
from automl_ft.specs.validation import (
    assumed_cost,
    choose_validations_per_epoch,
    epochs_between_validations,
    first_validation_step,
    resolved_validations,
    stored_setting,
    written_validations,
)

NUMBERS = [50.0, 7.0, 2.0, 1.0, 0.5, 0.25, 1 / 64]


def share(per_epoch: float, train: int, validation: int, cost: float) -> float:
    """Return the share of a long trial in which a token of training costs 1."""
    return per_epoch * validation * cost / (per_epoch * validation * cost + train)


def facts(**changes: float) -> StudyFacts:
    data = DataFacts(
        labels=(), num_examples={}, class_counts={}, fingerprint="", split_fingerprints={}
    )
    return StudyFacts(data=data, checkpoints=(), device="cpu", versions={}, **changes)  # type: ignore[arg-type]


@pytest.mark.parametrize("cost", [0.2, 1 / 3, 0.5, 3.1])
@pytest.mark.parametrize("validation", [0, 1, 50, 100, 200, 333, 500, 1000, 5000, 123_456])
def test_auto_is_the_most_that_stays_within_the_share(validation: int, cost: float) -> None:
    chosen = choose_validations_per_epoch(1000, validation, cost=cost)
    assert share(chosen, 1000, validation, cost) <= 0.15
    assert chosen == 2 or share(2 * chosen, 1000, validation, cost) > 0.15


@pytest.mark.parametrize(
    ("train", "validation", "chosen"),
    [(8000, 2000, 2), (6000, 2000, 1), (1, 1, 0.5), (1, 4, 0.125)],
)
def test_auto_halves_from_two_down(train: int, validation: int, chosen: float) -> None:
    assert (
        choose_validations_per_epoch(train, validation, cost=assumed_cost("cpu", "fp32", 1000))
        == chosen
    )


def test_training_in_bf16_leaves_less_time_for_rows_in_fp32() -> None:
    assert (
        assumed_cost("cpu", "fp32", 1000)
        < assumed_cost("cpu", "bf16", 1000)
        < assumed_cost("cuda:0", "bf16", 1000)
    )
    assert choose_validations_per_epoch(4500, 1000, cost=assumed_cost("cpu", "fp32", 1000)) == 2
    assert choose_validations_per_epoch(4500, 1000, cost=assumed_cost("cpu", "bf16", 1000)) == 1


def test_of_few_rows_a_larger_share_is_scored_again() -> None:
    costs = [assumed_cost("cuda:0", "bf16", rows) for rows in (1, 16, 80, 160, 1000)]
    assert costs == pytest.approx([17 / 3, 17 / 3, 4.2 / 3, 2.6 / 3, 2.6 / 3])


def test_after_tf32_all_rows_are_scored_in_fp32() -> None:
    assert assumed_cost("cuda:0", "tf32", 1000) > 2 * assumed_cost("cuda:0", "bf16", 1000)


def test_training_in_fp32_costs_alike_on_every_device() -> None:
    assert assumed_cost("cuda:0", "fp32", 1000) == assumed_cost("cpu", "fp32", 1000) == 1 / 3


def test_a_number_is_taken_as_it_is() -> None:
    assert resolved_validations(7, facts(validations_per_epoch=1.0)) == 7


def test_auto_is_what_the_study_found_out() -> None:
    assert resolved_validations("auto", facts(validations_per_epoch=0.25)) == 0.25


def test_facts_from_before_there_was_auto_mean_two() -> None:
    plain = to_plain(facts())
    del plain["validations_per_epoch"]
    assert resolved_validations("auto", from_plain(StudyFacts, plain)) == 2


@pytest.mark.parametrize("per_epoch", NUMBERS)
def test_a_study_goes_on_with_its_stored_setting(per_epoch: float) -> None:
    kept = facts(validations_per_epoch=per_epoch)
    stored = from_plain(StudyFacts, to_plain(kept))
    assert stored == dataclasses.replace(kept)
    assert resolved_validations(stored_setting(per_epoch), stored) == per_epoch


@pytest.mark.parametrize(
    ("per_epoch", "epochs"), [(50.0, 1), (1.0, 1), (0.5, 2), (0.25, 4), (1 / 64, 64)]
)
def test_a_fraction_is_one_validation_in_several_epochs(per_epoch: float, epochs: int) -> None:
    assert epochs_between_validations(per_epoch) == epochs


@pytest.mark.parametrize(
    ("per_epoch", "step"), [(4.0, 25), (3.0, 33), (1.0, 100), (0.5, 200), (50.0, 2)]
)
def test_the_first_validation_has_its_step(per_epoch: float, step: int) -> None:
    assert first_validation_step(100, per_epoch) == step


def test_the_first_step_is_never_zero() -> None:
    assert first_validation_step(3, 50.0) == 1


@pytest.mark.parametrize(
    ("per_epoch", "words"),
    [
        (1.0, "once an epoch"),
        (2.0, "twice an epoch"),
        (7.0, "7 times an epoch"),
        (0.25, "every 4 epochs"),
    ],
)
def test_numbers_become_words(per_epoch: float, words: str) -> None:
    assert written_validations(per_epoch) == words
