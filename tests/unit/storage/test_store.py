"""What a store refuses before it writes; what it writes is in the contract tests."""

import math

import pytest
from optuna.distributions import FloatDistribution
from optuna.trial import TrialState

from automl_ft.storage import schema


@pytest.fixture
def number(store):
    return store.add_trial({}, {}, state=TrialState.RUNNING)


@pytest.mark.parametrize(
    ("state", "value"),
    [
        (TrialState.COMPLETE, None),
        (TrialState.COMPLETE, math.nan),
        (TrialState.RUNNING, 0.5),
        (TrialState.WAITING, None),
    ],
)
def test_trial_ends_in_a_finished_state_with_its_value(store, number, state, value):
    with pytest.raises(ValueError, match=f"cannot end as {state.name} with value {value}"):
        store.finish(number, state, value)
    assert store.trial(number).state is TrialState.RUNNING


def test_parameters_need_their_distributions(store):
    with pytest.raises(ValueError, match="Inconsistent parameters"):
        store.add_trial({"x": 1.0}, {})
    with pytest.raises(ValueError, match="x"):
        store.add_trial({"x": 2.0}, {"x": FloatDistribution(0, 1)})
    assert store.trials() == []


def test_update_with_nothing_new_writes_nothing(store, studies, monkeypatch):
    monkeypatch.setattr(schema, "SCHEMA_VERSION", 99)
    assert store.update_record() == {}
    monkeypatch.undo()
    assert studies.load("demo").record == store.record


def test_numbers_that_are_not_finite_are_words_in_attributes(store):
    number = store.add_trial({}, {}, attrs={"a": math.nan}, system_attrs={"b": [math.inf]})
    store.set_attrs(number, {"c": -math.inf})
    trial = store.trial(number)
    assert trial.user_attrs == {"a": "nan", "c": "-inf"}
    assert trial.system_attrs == {"b": ["inf"]}


def test_run_must_be_started_before_it_is_told_of(store):
    with pytest.raises(AssertionError, match="start_run comes first"):
        store.touch_run(1.0)
    store.start_run()
    store.end_run("done")
    with pytest.raises(AssertionError, match="start_run comes first"):
        store.end_run("again")


def test_long_reason_is_cut_to_its_column(store):
    store.start_run()
    store.end_run("x" * 1000)
    assert store.runs()[0].ended_reason == "x" * 255


def test_name_and_location_are_told(store, url):
    assert (store.name, store.location) == ("demo", url)
    assert repr(store) == f"StudyStore('demo', Database('{url}'))"
