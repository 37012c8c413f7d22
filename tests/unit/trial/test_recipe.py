"""A recipe holds every hyperparameter, typed."""

from __future__ import annotations

import dataclasses

import pytest

from automl_ft.specs.hyperparameters import HYPERPARAMETERS
from automl_ft.trial.recipe import Recipe


def test_a_recipe_has_a_field_for_every_hyperparameter() -> None:
    assert [field.name for field in dataclasses.fields(Recipe)] == list(HYPERPARAMETERS)


def test_what_is_not_given_takes_its_neutral_default() -> None:
    recipe = Recipe.of({"epochs": 7})
    assert recipe.epochs == 7
    assert recipe.learning_rate == HYPERPARAMETERS["learning_rate"].default
    assert recipe.dropout is None


def test_whole_numbers_become_floats_where_a_float_is_meant() -> None:
    recipe = Recipe.of({"learning_rate": 1, "dropout": 0})
    assert (type(recipe.learning_rate), type(recipe.dropout)) == (float, float)


def test_an_unknown_name_is_refused() -> None:
    with pytest.raises(KeyError, match="`learning_rat` is no hyperparameter"):
        Recipe.of({"learning_rat": 0.1})
