import re

import pytest

from automl_ft.space.growth import growth_problems, merge
from automl_ft.space.load import load_space


def space(**entries):
    return load_space(entries)


FLOAT = {"low": 0.1, "high": 0.3, "default": 0.2}
INT = {"low": 2, "high": 4, "default": 3}


def test_ranges_widen_on_both_sides_to_the_union():
    merged = merge(
        space(dropout=FLOAT, epochs=INT),
        space(dropout={**FLOAT, "low": 0.0}, epochs={**INT, "high": 9}),
    )
    assert (merged.find("dropout").low, merged.find("dropout").high) == (0.0, 0.3)
    assert merged.find("epochs").bounds == (2, 9)


def test_a_space_that_shrinks_keeps_the_stored_range():
    merged = merge(space(dropout=FLOAT), space(dropout={**FLOAT, "low": 0.15, "high": 0.2}))
    assert (merged.find("dropout").low, merged.find("dropout").high) == (0.1, 0.3)


def test_new_choices_are_appended_and_old_ones_keep_their_order():
    old = space(batch_size={"choices": [16, 32], "default": 16})
    new = space(batch_size={"choices": [8, 32], "default": 8})
    assert merge(old, new).find("batch_size").choices == (16, 32, 8)


def test_parameters_come_and_go():
    merged = merge(space(dropout=FLOAT), space(epochs=INT))
    assert [param.name for param in merged.parameters] == ["epochs", "dropout"]


def test_fixed_parameter_may_become_a_range_and_back():
    assert merge(space(epochs=3), space(epochs=INT)).find("epochs").bounds == (2, 4)
    assert merge(space(epochs=INT), space(epochs=3)).find("epochs").bounds == (2, 4)
    assert growth_problems(space(epochs=3), space(epochs=INT)) == []
    assert growth_problems(space(epochs=INT), space(epochs=3)) == []


def test_fixed_value_may_become_another():
    assert growth_problems(space(epochs=3), space(epochs=1)) == []
    assert merge(space(epochs=3), space(epochs=1)).fixed == {"epochs": 1}


def test_range_that_was_fixed_in_between_must_still_have_a_union():
    union = merge(space(dropout=FLOAT), space(dropout=0.2))
    (problem,) = growth_problems(union, space(dropout={**FLOAT, "log": True}))
    assert "log: true" in problem.message


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ({**FLOAT}, {**FLOAT, "log": True}, "stores it as `log: false`.*makes it `log: true`"),
        ({**FLOAT}, {"choices": [0.1], "default": 0.1}, "a float range, .* makes it choices"),
        ({"choices": [0.1], "default": 0.1}, {**FLOAT}, "choices, .* makes it a float range"),
        ({**FLOAT}, {**FLOAT, "step": 0.1}, "in steps of None.*in steps of 0.1"),
        (
            {**FLOAT, "step": 0.1},
            {"low": 0.05, "high": 0.25, "default": 0.05, "step": 0.1},
            "range from 0.1 in steps of 0.1.*range from 0.05",
        ),
    ],
)
def test_what_has_no_union_is_refused_with_both_sides(old, new, message):
    (problem,) = growth_problems(space(dropout=old), space(dropout=new))
    assert problem.place.endswith("dropout")
    assert re.search(message, problem.message)


def test_unchanged_and_widened_spaces_have_no_problems():
    stepped = {"low": 2, "high": 4, "default": 2, "step": 2}
    wider = {"low": 0, "high": 8, "default": 2, "step": 2}
    assert growth_problems(space(reinit_layers=stepped), space(reinit_layers=wider)) == []
    assert growth_problems(space(dropout=FLOAT), space(dropout=FLOAT, epochs=INT)) == []


def test_every_stored_value_stays_valid_in_the_union():
    old = space(epochs=INT, batch_size={"choices": [16, 32], "default": 16})
    new = space(epochs={**INT, "low": 3, "high": 6}, batch_size={"choices": [64], "default": 64})
    union = merge(old, new)
    for params in ({"epochs": 2, "batch_size": 32}, {"epochs": 6, "batch_size": 64}):
        assert union.validate_params(params) == []
