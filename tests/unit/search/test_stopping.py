"""When a search ends."""

import pytest

from automl_ft.config.study import BudgetConfig
from automl_ft.search.events import StopReason
from automl_ft.search.stopping import (
    ActiveClock,
    has_converged,
    num_configurations,
    patience_left,
    stop_proposing,
)
from automl_ft.specs.failure import FailureKind, TrialFailure
from tests.fakes.records import make_trial


def complete(*values):
    return [make_trial(number, value=value) for number, value in enumerate(values)]


def test_clock_adds_this_run_to_the_earlier_ones():
    clock = ActiveClock(earlier_seconds=100.0, started=5.0, now=lambda: 12.0)
    assert (clock.this_run(), clock.total()) == (7.0, 107.0)


def test_configurations_are_counted_in_every_state_but_reruns_are_not():
    states = ["COMPLETE", "PRUNED", "FAIL", "RUNNING", "WAITING"]
    trials = [make_trial(number, state) for number, state in enumerate(states)]
    assert num_configurations([*trials, make_trial(5, rerun_of=0)]) == 5


@pytest.mark.parametrize(("trials", "reason"), [(2, StopReason.TRIALS), (3, None)])
def test_budget_of_configurations(trials, reason):
    assert stop_proposing(complete(0.1, 0.2), BudgetConfig(trials=trials)) is reason


def test_converged_study_proposes_nothing():
    budget = BudgetConfig(trials=9, patience=1)
    assert stop_proposing(complete(0.2, 0.1), budget) is StopReason.CONVERGED


def test_study_without_patience_never_converges():
    assert not has_converged(complete(*[0.5] * 20), BudgetConfig())


@pytest.mark.parametrize(
    ("values", "is_converged"),
    [
        ((), False),
        ((0.5,), False),
        ((0.5, 0.4), False),
        ((0.5, 0.4, 0.5), True),
        ((0.5, 0.4, 0.6), False),
        ((0.5, 0.4, 0.6, 0.6, 0.3), True),
        ((-0.5, -0.6), False),
    ],
)
def test_converged_after_two_trials_without_a_gain(values, is_converged):
    assert has_converged(complete(*values), BudgetConfig(patience=2)) is is_converged


@pytest.mark.parametrize(("values", "left"), [((), 3), ((0.5,), 3), ((0.5, 0.4, 0.3), 1)])
def test_patience_is_left_for_so_many_trials_without_a_gain(values, left):
    assert patience_left(complete(*values), BudgetConfig(patience=3)) == left


def test_study_without_patience_never_loses_it():
    assert patience_left(complete(0.5, 0.4), BudgetConfig()) is None


def test_small_gain_is_none():
    budget = BudgetConfig(patience=2, min_improvement=0.05)
    assert has_converged(complete(0.5, 0.54, 0.55), budget)
    assert not has_converged(complete(0.5, 0.54, 0.56), budget), "two small ones add up"


def test_pruned_trials_bring_no_gain():
    trials = [make_trial(0, value=0.5), *(make_trial(n, "PRUNED", value=0.9) for n in (1, 2))]
    assert has_converged(trials, BudgetConfig(patience=2))


@pytest.mark.parametrize("failure", [None, TrialFailure(kind=FailureKind.ERROR, message="x")])
def test_failed_trials_say_nothing(failure):
    trials = [make_trial(0, value=0.5)]
    trials += [make_trial(n, "FAIL", failure=failure) for n in (1, 2, 3)]
    assert not has_converged(trials, BudgetConfig(patience=2))


def test_running_and_waiting_trials_say_nothing():
    trials = [make_trial(0, value=0.5), make_trial(1, "RUNNING"), make_trial(2, "WAITING")]
    assert not has_converged(trials, BudgetConfig(patience=1))


def test_trials_count_in_the_order_in_which_they_ended():
    late = make_trial(9).ended
    trials = [make_trial(0, value=0.1, ended=late), make_trial(1, value=0.9)]
    assert has_converged(trials, BudgetConfig(patience=1))


def test_a_foreign_trial_that_was_no_configuration_does_not_count():
    stillborn = make_trial(1, "FAIL", hyperparameters={})
    assert num_configurations([make_trial(0), stillborn]) == 1
