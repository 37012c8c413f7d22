"""What is written into Optuna's tables is what Optuna itself writes."""

import math

import pytest
from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution
from optuna.trial import TrialState, create_trial
from sqlalchemy import select

from automl_ft.storage.database import open_storage
from automl_ft.storage.tables import OPTUNA_TABLES

SPACE = {
    "rate": FloatDistribution(1e-5, 1.0, log=True),
    "epochs": IntDistribution(1, 4),
    "freezing": CategoricalDistribution(["none", "head_only"]),
}
PARAMS = {"rate": 0.1, "epochs": 2, "freezing": "head_only"}


@pytest.fixture
def database(url, studies):
    database = open_storage(url, create=False)
    yield database
    database.close()


@pytest.fixture
def by_optuna(database, store):
    """Writes to a trial of the same study by Optuna's own methods; returns its number."""
    storage = database.rdb
    study_id = storage.get_study_id_from_name("demo")

    def write(method, *arguments):
        trial_id = storage.create_new_trial(study_id)
        getattr(storage, method)(trial_id, *arguments)
        return trial_id

    return write


def rows(database, table, trial_id):
    """All of a trial's rows but their ids."""
    columns = [
        column
        for column in OPTUNA_TABLES[table].c
        if not column.primary_key and column.name != "trial_id"
    ]
    query = select(*columns).where(OPTUNA_TABLES[table].c.trial_id == trial_id)
    return database.read(lambda connection: connection.execute(query).all())


def trial_id(database, number):
    study_id = database.rdb.get_study_id_from_name("demo")
    return database.rdb.get_trial_id_from_study_id_trial_number(study_id, number)


def same_rows(database, table, theirs, ours):
    expected = rows(database, table, theirs)
    assert expected
    return rows(database, table, trial_id(database, ours)) == expected


@pytest.mark.parametrize("value", [0.5, 0, math.inf, -math.inf, math.nan])
def test_report_is_stored_as_optuna_stores_it(database, store, by_optuna, value):
    theirs = by_optuna("set_trial_intermediate_value", 8, value)
    ours = store.add_trial({}, {}, state=TrialState.RUNNING)
    store.report(ours, 8, value)
    assert same_rows(database, "trial_intermediate_values", theirs, ours)


@pytest.mark.parametrize("value", [0.5, 1, math.inf, -math.inf])
def test_value_is_stored_as_optuna_stores_it(database, store, by_optuna, value):
    theirs = by_optuna("set_trial_state_values", TrialState.COMPLETE, [value])
    ours = store.add_trial({}, {}, state=TrialState.RUNNING)
    store.finish(ours, TrialState.COMPLETE, value)
    assert same_rows(database, "trial_values", theirs, ours)


@pytest.mark.parametrize("value", [1.5, "x", None, {"a": [1, True]}])
def test_attributes_are_stored_as_optuna_stores_them(database, store, by_optuna, value):
    ours = store.add_trial({}, {}, state=TrialState.RUNNING)
    store.set_attrs(ours, {"key": value})
    store.set_system_attrs(ours, {"key": value})
    for kind in ("user", "system"):
        theirs = by_optuna(f"set_trial_{kind}_attr", "key", value)
        assert same_rows(database, f"trial_{kind}_attributes", theirs, ours)


@pytest.mark.parametrize("name", sorted(PARAMS))
def test_parameters_are_stored_as_optuna_stores_them(database, store, by_optuna, name):
    kind = SPACE[name]
    theirs = by_optuna("set_trial_param", name, kind.to_internal_repr(PARAMS[name]), kind)
    ours = store.add_trial({}, {})
    store.set_params(ours, {name: PARAMS[name]}, SPACE)
    assert same_rows(database, "trial_params", theirs, ours)


def test_parameters_of_others_need_not_be_named(store):
    store.add_trial(PARAMS, SPACE)
    number = store.add_trial({}, {})
    store.set_params(number, {"epochs": 3}, SPACE)
    assert store.trial(number).params == {"epochs": 3}


def test_times_are_stored_as_optuna_stores_them(database, store, by_optuna):
    theirs = by_optuna("set_trial_state_values", TrialState.FAIL)
    ours = store.add_trial({}, {})
    store.claim(ours)
    store.finish(ours, TrialState.FAIL)
    plain, written = (
        database.rdb.get_trial(number) for number in (theirs, trial_id(database, ours))
    )
    assert abs((plain.datetime_complete - written.datetime_complete).total_seconds()) < 60
    assert abs((plain.datetime_start - written.datetime_start).total_seconds()) < 60


def test_a_new_trial_is_stored_as_optuna_stores_it(database, store, by_optuna):
    template = create_trial(
        state=TrialState.WAITING,
        params=PARAMS,
        distributions=SPACE,
        user_attrs={"seed": 3},
        system_attrs={"a": [1]},
    )
    study_id = database.rdb.get_study_id_from_name("demo")
    theirs = database.rdb.create_new_trial(study_id, template)
    ours = store.add_trial(PARAMS, SPACE, attrs={"seed": 3}, system_attrs={"a": [1]})
    for table in ("trial_params", "trial_user_attributes", "trial_system_attributes"):
        assert same_rows(database, table, theirs, ours)
    (first, second) = database.rdb.get_all_trials(study_id)
    assert (first.number, second.number) == (0, ours)
    assert essence(first) == essence(second)


def essence(trial):
    return (trial.state, trial.datetime_start, trial.datetime_complete, trial.params, trial.values)


def test_a_name_that_the_newest_trial_lacks_is_compared_too(store):
    store.add_trial(PARAMS, SPACE)
    store.add_trial({}, {})
    other = {**SPACE, "freezing": CategoricalDistribution(["head_only"])}
    with pytest.raises(ValueError, match="CategoricalDistribution does not support dynamic"):
        store.add_trial(PARAMS, other)
    assert len(store.trials()) == 2
