"""How a user puts a configuration in line, or a trial once more."""

import dataclasses

import optuna
import pytest
from optuna.trial import TrialState

from automl_ft.errors import ConfigError, UsageError
from automl_ft.search.enqueue import enqueue, rerun
from automl_ft.storage.studies import open_database
from tests.fakes.lab import SPACE

FIXED = {**SPACE, "dropout": 0.4, "epochs": 1}
WIDE = {**SPACE, "dropout": {"low": 0.0, "high": 0.8, "default": 0.6}}


@pytest.fixture
def store(lab):
    lab.search(trials=1)
    return lab.store()


def test_configuration_waits_completed_by_the_defaults(store):
    number = enqueue(store, {"learning_rate": 0.01})
    trial = store.trial(number)
    assert (number, trial.state, trial.origin) == (1, TrialState.WAITING, "user")
    assert trial.params == {"learning_rate": 0.01, "dropout": 0.1}
    assert trial.hyperparameters["epochs"] == 2
    assert trial.seed not in (None, store.trial(0).seed)


def test_fixed_value_may_be_named_with_its_own_value(store):
    assert "epochs" not in store.trial(enqueue(store, {"epochs": 2})).params


def test_all_problems_are_reported_together_with_the_study(store):
    with pytest.raises(ConfigError) as error:
        enqueue(store, {"learning_rate": 7, "dropuot": 0.1, "epochs": 3})
    places = [problem.place for problem in error.value.problems]
    assert places == ["demo: learning_rate", "demo: dropuot", "demo: epochs"]
    assert "Did you mean `dropout`" in str(error.value)
    assert len(store.trials()) == 1


def test_rerun_repeats_the_configuration_with_another_seed(store):
    number = rerun(store, 0)
    trial, first = store.trial(number), store.trial(0)
    assert (trial.params, trial.rerun_of, trial.origin) == (first.params, 0, "user")
    assert trial.seed != first.seed


def test_rerun_of_a_rerun_names_the_first(lab, store):
    rerun(store, 0)
    lab.search(trials=1)
    store = lab.store()
    assert store.trial(rerun(store, 1)).rerun_of == 0


@pytest.mark.parametrize("number", [-1, 1, 99])
def test_trial_that_is_not_there_cannot_be_rerun(store, number):
    with pytest.raises(UsageError, match=rf"has no trial {number}; there is 0 to 0"):
        rerun(store, number)


def test_trial_that_goes_on_by_itself_is_not_rerun(store):
    number = enqueue(store, {})
    with pytest.raises(UsageError, match=r"is WAITING and will go on by itself"):
        rerun(store, number)


def test_failed_trial_may_be_rerun(store):
    number = enqueue(store, {"dropout": 0.2})
    store.finish(number, TrialState.FAIL)
    assert store.trial(rerun(store, number)).params["dropout"] == 0.2


@pytest.fixture
def changed(lab):
    """A study of two trials that went on with `dropout` fixed and fewer `epochs`."""
    lab.search(trials=2, pruner="none")
    lab.search(trials=2, pruner="none", space=FIXED)
    return lab


def test_the_others_are_fixed_as_in_the_space_of_today(changed):
    trial = changed.store().trial(enqueue(changed.store(), {"learning_rate": 0.01}))
    assert trial.params == {"learning_rate": 0.01}
    assert (trial.hyperparameters["dropout"], trial.hyperparameters["epochs"]) == (0.4, 1)
    assert (trial.origin, trial.state) == ("user", TrialState.WAITING)


def test_the_others_take_the_defaults_of_today(lab):
    lab.search(trials=1, pruner="none")
    lab.search(trials=1, pruner="none", space=WIDE)
    trial = lab.store().trial(enqueue(lab.store(), {"learning_rate": 0.01}))
    assert trial.params == {"learning_rate": 0.01, "dropout": 0.6}


def test_what_is_fixed_today_is_refused_with_its_value_and_the_study(changed):
    with pytest.raises(ConfigError, match=r"demo: dropout.*`0.1` is given.*sets it to `0.4`"):
        enqueue(changed.store(), {"dropout": 0.1})
    assert len(changed.trials()) == 2


def test_stored_distribution_is_the_union_of_all_spaces(lab):
    narrow = {**SPACE, "learning_rate": {**SPACE["learning_rate"], "low": 1e-4}}
    lab.search(trials=1, pruner="none")
    lab.search(trials=1, pruner="none", space=narrow)
    number = enqueue(lab.store(), {"learning_rate": 0.01})
    first, new = lab.trials()[0], lab.trials()[number]
    assert new.distributions == first.distributions
    with pytest.raises(ConfigError, match=r"from 0\.0001"):
        enqueue(lab.store(), {"learning_rate": 5e-5})


def test_trial_of_plain_optuna_is_completed_in_the_space_of_today(changed):
    changed.optuna().enqueue_trial({"learning_rate": 0.02})
    changed.search(trials=2, pruner="none", space=FIXED)
    trial = changed.trials()[2]
    assert trial.state is TrialState.COMPLETE
    assert (trial.hyperparameters["dropout"], trial.hyperparameters["epochs"]) == (0.4, 1)


def test_rerun_repeats_the_trial_not_the_space_of_today(changed):
    first, again = changed.trials()[1], changed.store().trial(rerun(changed.store(), 1))
    assert again.hyperparameters == first.hyperparameters
    assert (again.params, again.distributions) == (first.params, first.distributions)
    assert again.hyperparameters["epochs"] == 2
    assert (again.rerun_of, again.origin) == (1, "user")
    assert again.seed != first.seed


def test_trial_that_plain_optuna_put_there_is_not_rerun(lab):
    lab.search(trials=1)
    lab.optuna().add_trial(optuna.create_trial(value=0.5))
    with pytest.raises(UsageError, match="automl-ft enqueue demo NAME=VALUE"):
        rerun(lab.store(), 1)


def test_configuration_of_a_space_that_grew_may_lie_in_what_is_new(lab, store):
    wide = {**SPACE, "learning_rate": {**SPACE["learning_rate"], "high": 0.5}}
    lab.search(trials=1, space=wide)
    store = lab.store()
    assert store.trial(enqueue(store, {"learning_rate": 0.3})).params["learning_rate"] == 0.3


def test_study_without_trials_has_none_to_rerun(lab, store):
    database = open_database(lab.url)
    bare = database.create(dataclasses.replace(store.record, name="bare"))
    with pytest.raises(UsageError, match="there is none yet"):
        rerun(bare, 0)
    database.close()
