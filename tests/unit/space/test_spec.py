import json
import re

import pytest

from automl_ft.errors import ConfigError
from automl_ft.space.load import load_space
from automl_ft.space.resolve import resolve
from automl_ft.space.spec import SearchSpace
from automl_ft.specs.hyperparameters import HYPERPARAMETERS


@pytest.fixture
def space(conditional):
    return resolve(load_space(conditional), {"num_layers": 6})


def test_default_recipe_holds_only_what_applies(space):
    assert space.default_params() == {
        "freezing": "none",
        "batch_size": 16,
        "epochs": 3,
        "dropout": 0.1,
        "learning_rate": 5e-5,
    }


def test_default_rate_is_the_centre_of_the_strategy(space):
    assert space.complete({"freezing": "head_only"})["learning_rate"] == 3e-3


def test_complete_adds_conditional_parameters_with_their_defaults(space):
    assert space.complete({"freezing": "bottom_layers"})["frozen_layers"] == 3


def test_complete_keeps_given_values_in_the_stored_type(space):
    params = space.complete({"dropout": 0, "epochs": 2})
    assert (params["dropout"], type(params["dropout"]), params["epochs"]) == (0.0, float, 2)


def test_complete_accepts_a_fixed_value_and_leaves_it_out(space):
    assert "weight_decay" not in space.complete({"weight_decay": 0.01})


@pytest.mark.parametrize(
    ("params", "place", "message"),
    [
        ({"learning_rat": 1e-4}, "learning_rat", "Did you mean `learning_rate`"),
        ({"batch_size": 17}, "batch_size", "`17` is not accepted; accepted: 8, 16, 32"),
        ({"batch_size": True}, "batch_size", "`True` is not accepted"),
        ({"epochs": 5}, "epochs", "whole number from 1 to 4"),
        ({"epochs": 2.0}, "epochs", "whole number from 1 to 4"),
        ({"dropout": 0.15}, "dropout", "from 0 to 0.4 in steps of 0.1"),
        ({"dropout": "much"}, "dropout", "`much` is not accepted"),
        ({"learning_rate": 0.5}, "learning_rate", "from 1e-05 to 0.01"),
        ({"weight_decay": 0.1}, "weight_decay", "sets it to `0.01`"),
        ({"frozen_layers": 2}, "frozen_layers", "only with freezing = bottom_layers"),
        ({"freezing": "nothing"}, "freezing", "accepted: none, bottom_layers, head_only"),
    ],
)
def test_given_values_are_checked(space, params, place, message):
    with pytest.raises(ConfigError, match=re.escape(message)) as caught:
        space.complete(params)
    assert [problem.place for problem in caught.value.problems] == [place]


def test_all_problems_of_given_values_are_reported_together(space):
    problems = space.validate_params({"epochs": 0, "batch_size": 0, "nothing": 1})
    assert [problem.place for problem in problems] == ["epochs", "batch_size", "nothing"]


def test_active_names_only_parameters_whose_conditions_hold(space):
    assert "frozen_layers" in space.active({"freezing": "bottom_layers"})
    assert "frozen_layers" not in space.active({"freezing": "none"})
    assert "frozen_layers" not in space.active({})


def test_a_condition_on_an_inactive_parameter_does_not_hold():
    space = load_space(
        {
            "freezing": {"choices": ["none", "bottom_layers"], "default": "none"},
            "frozen_layers": {
                "low": 1, "high": 2, "default": 1, "when": {"freezing": "bottom_layers"},
            },
            "dropout": {"low": 0.0, "high": 0.1, "default": 0.1, "when": {"frozen_layers": [1, 2]}},
        }
    )  # fmt: skip
    stale = {"freezing": "none", "frozen_layers": 1}
    assert space.active(stale) == ["freezing"]
    assert "dropout" in space.complete({"freezing": "bottom_layers"})


def test_several_conditions_must_all_hold():
    space = load_space(
        {
            "freezing": {"choices": ["none", "head_only"], "default": "none"},
            "batch_size": {"choices": [8, 16], "default": 16},
            "l1": {
                "low": 0.0, "high": 0.1, "default": 0.0,
                "when": {"freezing": "none", "batch_size": [16]},
            },
        }
    )  # fmt: skip
    assert "l1" in space.complete({})
    assert "l1" not in space.complete({"batch_size": 8})


def test_hyperparameters_hold_every_one_there_is(space):
    found = space.hyperparameters(space.default_params())
    assert found.keys() == HYPERPARAMETERS.keys()
    assert (found["weight_decay"], found["frozen_layers"]) == (0.01, 0)


def test_space_survives_json(space):
    assert SearchSpace.from_plain(json.loads(json.dumps(space.to_plain()))) == space


def test_unresolved_space_survives_json_too(conditional):
    space = load_space(conditional)
    assert SearchSpace.from_plain(json.loads(json.dumps(space.to_plain()))) == space


def test_unresolved_bounds_are_refused_where_numbers_are_needed(conditional):
    space = load_space(conditional)
    with pytest.raises(ValueError, match="`frozen_layers` has a default that names facts"):
        space.complete({"freezing": "bottom_layers"})
    with pytest.raises(ValueError, match="`frozen_layers` has bounds that name facts"):
        space.find("frozen_layers").problem_with(3)
