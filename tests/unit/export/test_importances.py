from __future__ import annotations

import logging

import optuna
import pytest
from optuna.distributions import CategoricalDistribution, FloatDistribution
from optuna.trial import TrialState

from automl_ft.export.importances import hyperparameter_importances

FLOAT = FloatDistribution(0.0, 1.0)
DISTRIBUTIONS = {
    "dropout": FLOAT,
    "freezing": CategoricalDistribution(["none", "head_only"]),
}


@pytest.fixture
def trials(make_trial):
    return [
        make_trial(
            n,
            params={"dropout": (n * 7 % 20) / 20, "freezing": ("none", "head_only")[n % 2]},
            distributions=DISTRIBUTIONS,
            value=0.9 if n % 2 == 0 else 0.1 + n / 100,
        )
        for n in range(20)
    ]


def test_shares_add_up_to_one_with_the_largest_first(trials):
    shares, note = hyperparameter_importances(trials)
    assert sum(shares.values()) == pytest.approx(1.0)
    assert list(shares.values()) == sorted(shares.values(), reverse=True)
    assert "20 complete trials" in note


def test_what_decides_the_value_matters_most(trials):
    assert next(iter(hyperparameter_importances(trials)[0])) == "freezing"


def test_fewer_than_fifty_trials_are_called_a_rough_hint(trials, make_trial):
    assert "rough hint" in hyperparameter_importances(trials)[1]
    many = [
        make_trial(n, value=n / 60, params={"dropout": n / 60}, distributions={"dropout": FLOAT})
        for n in range(60)
    ]
    assert "rough hint" not in hyperparameter_importances(many)[1]


def test_too_few_complete_trials_are_said_so(trials, make_trial):
    few = [*trials[:9], make_trial(99, state=TrialState.PRUNED)]
    shares, note = hyperparameter_importances(few)
    assert shares == {}
    assert "Too few trials ran to the end (9; at least 10" in note


def test_equal_values_say_that_nothing_mattered(make_trial):
    shares, note = hyperparameter_importances([make_trial(n) for n in range(12)])
    assert shares == {}
    assert "same value" in note


def test_a_parameter_that_few_trials_have_is_counted_without_a_warning(trials, make_trial):
    params = {"dropout": 0.5, "freezing": "none", "mixup": 0.2}
    odd = make_trial(
        50,
        params=params,
        distributions={**DISTRIBUTIONS, "mixup": FLOAT},
        value=0.95,
    )
    assert set(hyperparameter_importances([*trials, odd])[0]) == {"dropout", "freezing", "mixup"}


def test_the_study_that_optuna_needs_for_it_is_not_told_of(trials):
    lines = []
    handler = logging.Handler()
    handler.emit = lambda entry: lines.append(entry.getMessage())
    logger = logging.getLogger("optuna")
    logger.addHandler(handler)
    try:
        hyperparameter_importances(trials)
        optuna.create_study()
    finally:
        logger.removeHandler(handler)
    assert len([line for line in lines if "in memory" in line]) == 1  # the one made here
