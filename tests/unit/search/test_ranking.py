"""In which order trials are shown."""

import math

import pytest

from automl_ft.search.ranking import best_trial, furthest_value, rank_trials
from tests.fakes.records import make_trial


def numbers(trials):
    return [ranked.trial.number for ranked in rank_trials(trials)]


def test_complete_trials_come_by_value_the_best_first():
    trials = [make_trial(n, value=value) for n, value in enumerate([0.3, 0.9, -0.5, 0.6])]
    assert numbers(trials) == [1, 3, 0, 2]
    assert [ranked.rank for ranked in rank_trials(trials)] == [1, 2, 3, 4]


def test_of_equal_values_the_earlier_trial_comes_first():
    assert numbers([make_trial(n, value=0.5) for n in (2, 0, 1)]) == [0, 1, 2]


def test_states_come_in_groups():
    trials = [
        make_trial(0, "FAIL"),
        make_trial(1, "WAITING"),
        make_trial(2, "PRUNED", intermediate_values={1: 0.99}),
        make_trial(3, "WAITING", intermediate_values={1: 0.5}),
        make_trial(4, "RUNNING", intermediate_values={1: 0.7}),
        make_trial(5, "RUNNING"),
        make_trial(6, value=0.1),
    ]
    assert numbers(trials) == [6, 4, 3, 5, 2, 1, 0]


def test_only_complete_trials_have_a_rank():
    trials = [make_trial(0, "PRUNED", value=0.9), make_trial(1, value=0.1), make_trial(2, "FAIL")]
    assert [(r.trial.number, r.rank) for r in rank_trials(trials)] == [(1, 1), (0, None), (2, None)]


def test_nothing_is_ranked_when_nothing_is_there():
    assert rank_trials([]) == []
    assert best_trial([]) is None


def test_best_trial_is_the_best_complete_one():
    trials = [make_trial(0, "WAITING", intermediate_values={1: 0.99}), make_trial(1, value=0.1)]
    assert best_trial(trials).number == 1
    assert best_trial(trials[:1]) is None


@pytest.mark.parametrize(
    ("value", "curve", "expected"),
    [
        (0.5, {1: 0.9}, 0.5),
        (None, {1: 0.2, 2: 0.7, 3: 0.6}, 0.7),
        (None, {1: math.nan, 2: 0.1}, 0.1),
        (None, {1: math.nan}, None),
        (None, {}, None),
    ],
)
def test_furthest_value_is_the_value_or_the_best_of_the_curve(value, curve, expected):
    assert furthest_value(make_trial(0, value=value, intermediate_values=curve)) == expected
