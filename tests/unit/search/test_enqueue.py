"""How a user puts a configuration in line, or a trial once more."""

import pytest
from optuna.trial import TrialState

from automl_ft.errors import ConfigError, UsageError
from automl_ft.search.enqueue import enqueue, rerun
from tests.fakes.lab import SPACE


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


def test_study_without_trials_has_none_to_rerun(lab):
    lab.search(trials=0)
    with pytest.raises(UsageError, match="there is none yet"):
        rerun(lab.store(), 0)


def test_trial_that_goes_on_by_itself_is_not_rerun(store):
    number = enqueue(store, {})
    with pytest.raises(UsageError, match=r"is WAITING and will go on by itself"):
        rerun(store, number)


def test_failed_trial_may_be_rerun(store):
    number = enqueue(store, {"dropout": 0.2})
    store.finish(number, TrialState.FAIL)
    assert store.trial(rerun(store, number)).params["dropout"] == 0.2


def test_trial_of_plain_optuna_s_parameters_cannot_be_rerun(lab, store):
    import optuna

    study = lab.optuna()
    other = {"layers": optuna.distributions.IntDistribution(1, 3)}
    study.add_trial(optuna.create_trial(value=0.5, params={"layers": 2}, distributions=other))
    with pytest.raises(ConfigError, match="outside the study's search space"):
        rerun(lab.store(), 1)


def test_configuration_of_a_space_that_grew_is_checked_against_the_union(lab, store):
    wide = {**SPACE, "learning_rate": {**SPACE["learning_rate"], "high": 0.5}}
    lab.search(trials=1, space=wide)
    store = lab.store()
    assert store.trial(enqueue(store, {"learning_rate": 0.3})).params["learning_rate"] == 0.3
