"""Each hyperparameter says what it accepts; a trial holds every one of them."""

from __future__ import annotations

import math
from typing import Any

import pytest

from automl_ft.specs.hyperparameters import (
    FREEZING_STRATEGIES,
    HYPERPARAMETERS,
    LR_SCHEDULES,
    Hyperparameter,
    complete,
)


@pytest.mark.parametrize("name", HYPERPARAMETERS)
def test_every_default_is_accepted(name: str) -> None:
    known = HYPERPARAMETERS[name]
    assert known.problem_with(known.default) is None


@pytest.mark.parametrize("name", HYPERPARAMETERS)
def test_every_hyperparameter_is_described(name: str) -> None:
    description = HYPERPARAMETERS[name].description
    assert description
    assert not description.endswith(".")


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("learning_rate", 1e-9), ("learning_rate", 1), ("batch_size", 1), ("epochs", 1000),
        ("dropout", None), ("dropout", 0), ("dropout", 0.9), ("freezing", "head_only"),
        ("model", "any/name"), ("model", None), ("frozen_layers", 0), ("mixup", 4.0),
        ("unfreezing_pace", 1.0), ("max_grad_norm", 1e6), ("batch_size", 10**6),
    ],
)  # fmt: skip
def test_values_in_range_are_accepted(name: str, value: Any) -> None:
    assert HYPERPARAMETERS[name].problem_with(value) is None


@pytest.mark.parametrize(
    ("name", "value", "accepted"),
    [
        ("learning_rate", 0.0, "accepted is a float above 0 to 1"),
        ("learning_rate", 1.1, "accepted is a float above 0 to 1"),
        ("learning_rate", math.nan, "accepted is a float above 0 to 1"),
        ("learning_rate", "1e-3", "accepted is a float above 0 to 1"),
        ("learning_rate", None, "accepted is a float"),
        ("batch_size", 0, "accepted is a int from 1 up"),
        ("batch_size", 8.0, "accepted is a int from 1 up"),
        ("batch_size", True, "accepted is a int from 1 up"),
        ("epochs", 1001, "accepted is a int from 1 to 1000"),
        ("dropout", -0.1, "accepted is a float from 0 to 0.9"),
        ("dropout", 0.95, "accepted is a float from 0 to 0.9"),
        ("max_grad_norm", 0, "accepted is a float above 0 up"),
        ("freezing", "top_layers", "accepted: none, embeddings, bottom_layers, head_only, "),
        ("freezing", None, "accepted is a str"),
        ("lr_schedule", "polynomial", "accepted: linear, cosine, constant_with_warmup"),
        ("model", 3, "accepted: text"),
    ],
)  # fmt: skip
def test_other_values_are_refused_with_what_is_accepted(
    name: str, value: Any, accepted: str
) -> None:
    problem = HYPERPARAMETERS[name].problem_with(value)
    assert problem is not None
    assert problem.startswith(accepted)


def test_choices_are_those_that_training_knows() -> None:
    assert HYPERPARAMETERS["freezing"].choices == FREEZING_STRATEGIES
    assert HYPERPARAMETERS["lr_schedule"].choices == LR_SCHEDULES


def test_a_complete_recipe_holds_every_hyperparameter_in_order() -> None:
    found = complete({"epochs": 7, "dropout": None})
    assert list(found) == list(HYPERPARAMETERS)
    assert (found["epochs"], found["dropout"]) == (7, None)
    assert found["learning_rate"] == HYPERPARAMETERS["learning_rate"].default


def test_the_neutral_defaults_switch_regularisation_off() -> None:
    found = complete({})
    off = ("l1", "weight_decay", "label_smoothing", "token_dropout", "word_swap", "word_deletion",
           "mixup", "warmup_ratio", "reinit_layers", "frozen_layers")  # fmt: skip
    assert {found[name] for name in off} == {0}
    assert (found["freezing"], found["layerwise_lr_decay"]) == ("none", 1.0)


def test_an_unknown_name_is_an_error() -> None:
    with pytest.raises(KeyError, match="`speed` is no hyperparameter"):
        complete({"speed": 1, "epochs": 3})


def test_a_hyperparameter_may_have_no_bounds() -> None:
    free = Hyperparameter(kind=float, default=0.0, description="free")
    assert free.problem_with(-1e9) is None
    assert free.problem_with("x") == "accepted is a float"
