"""What is read of trials, how often, and that it is what Optuna reads."""

import dataclasses
import math

import pytest
from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution
from optuna.trial import TrialState
from sqlalchemy import event

from automl_ft.errors import StorageError
from automl_ft.storage import trial_rows
from automl_ft.storage.records import trial_record
from automl_ft.storage.studies import open_database

SPACE = {
    "rate": FloatDistribution(1e-5, 1.0, log=True),
    "epochs": IntDistribution(1, 4),
    "freezing": CategoricalDistribution(["none", "head_only"]),
}
PARAMS = {"rate": 0.1, "epochs": 2, "freezing": "head_only"}


def add(store, state=TrialState.RUNNING):
    return store.add_trial(PARAMS, SPACE, state=state, attrs={"seed": 3}, system_attrs={"a": [1]})


def finish(store, number, state=TrialState.COMPLETE, value=0.5):
    store.report(number, 16, value)
    store.report(number, 8, math.nan)
    assert store.finish(number, state, value, {"validation_f1": value})


@pytest.fixture
def rival(url, studies, store):
    """The same study, opened by somebody else."""
    database = open_database(url)
    yield database.load("demo")
    database.close()


@pytest.fixture
def statements(store):
    """All statements that are sent to the database from here on."""
    sent = []
    engine = store._database.engine

    def note(connection, cursor, statement, parameters, context, executemany):
        sent.append((statement, parameters))

    event.listen(engine, "before_cursor_execute", note)
    yield sent
    event.remove(engine, "before_cursor_execute", note)


def test_trials_read_as_optuna_reads_them(store):
    for value in (0.25, math.inf, -math.inf):
        finish(store, add(store), value=value)
    finish(store, add(store), TrialState.PRUNED, 0.1)
    add(store)
    add(store, TrialState.WAITING)
    # Compared as text: in a curve one NaN is not another.
    expected = [repr(trial_record(trial)) for trial in store.study.get_trials()]
    assert [repr(trial) for trial in store.trials()] == expected
    assert [repr(store.trial(number)) for number in range(6)] == expected
    assert [trial.distributions for trial in store.trials()] == [SPACE] * 6


def test_a_finished_trial_is_read_once_and_others_only_if_they_changed(store):
    finish(store, add(store))
    add(store)
    first = store.trials()
    second = store.trials()
    assert second[0] is first[0]
    assert second[1] is first[1]
    store.report(1, 8, 0.5)
    third = store.trials()
    assert third[0] is first[0]
    assert third[1].intermediate_values == {8: 0.5}


def test_rows_of_finished_trials_are_not_asked_for_again(store, statements):
    for _ in range(5):
        finish(store, add(store))
    store.trials()
    statements.clear()
    assert len(store.trials()) == 5
    assert len(statements) == 1


def test_what_somebody_else_does_is_seen(store, rival):
    numbers = [add(store), add(store)]
    assert len(rival.trials()) == 2
    finish(store, numbers[1])
    added = add(store, TrialState.WAITING)
    store.set_attrs(numbers[0], {"seed": 4})
    assert [trial.state.name for trial in rival.trials()] == ["RUNNING", "COMPLETE", "WAITING"]
    assert (rival.trial(added).number, rival.trials()[0].seed) == (2, 4)


def test_one_trial_is_read_whatever_was_read_before(store, rival):
    for _ in range(3):
        add(store)
    assert rival.trial(2).state is TrialState.RUNNING
    finish(store, 2)
    assert rival.trial(2).value == 0.5
    assert [trial.number for trial in rival.trials()] == [0, 1, 2]
    assert rival.trial(2) == rival.trials()[2]


def test_many_trials_are_read_in_parts(store, rival, monkeypatch):
    monkeypatch.setattr(trial_rows, "_CHUNK", 2)
    for number in range(5):
        add(store)
        store.report(number, 8, number / 10)
    assert [trial.intermediate_values[8] for trial in rival.trials()] == [0, 0.1, 0.2, 0.3, 0.4]


def test_trials_of_another_study_are_none_of_ours(studies, store, record):
    other = studies.create(dataclasses.replace(record, name="other"))
    for study in (other, store, other):
        add(study)
    assert (len(store.trials()), len(other.trials())) == (1, 2)
    with pytest.raises(KeyError, match="no trial 1"):
        store.trial(1)


def test_a_study_that_was_deleted_is_not_empty_but_gone(studies, store, rival):
    finish(store, add(store))
    assert len(rival.trials()) == 1
    studies.delete("demo")
    with pytest.raises(StorageError, match=r"`demo` is no longer in .* deleted"):
        rival.trials()
