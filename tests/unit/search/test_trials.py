"""Between stored trials and the engine."""

import dataclasses

import pytest
from optuna.trial import TrialState

from automl_ft.config.study import BudgetConfig
from automl_ft.errors import ConfigError, Problem
from automl_ft.search.shadow import Proposal
from automl_ft.search.trials import (
    Shadows,
    add_proposal,
    failed_result,
    invalid_message,
    may_start,
    put_default_recipe,
    trial_seed,
    trial_spec,
)
from automl_ft.space.load import load_space
from automl_ft.space.resolve import resolve
from automl_ft.space.suggest import stored_distributions
from automl_ft.specs.failure import FailureKind, TrialFailure
from automl_ft.specs.hyperparameters import complete
from automl_ft.specs.trial import Outcome
from automl_ft.storage.studies import open_database
from tests.fakes.lab import SPACE
from tests.fakes.records import make_trial

DEFAULT = make_trial(0, "WAITING", origin="default")
PAUSED = dataclasses.replace(DEFAULT, intermediate_values={50: 0.1})
USER = make_trial(1, "WAITING", origin="user")


def space_of(**changes):
    return resolve(load_space({**SPACE, **changes}), {"num_layers": 4})


def test_seeds_differ_between_trials_and_studies_and_repeat_themselves(bare_lab):
    config, other = bare_lab.config(seed=0), bare_lab.config(seed=1)
    seeds = [trial_seed(config, number) for number in range(50)]
    assert len(set(seeds)) == 50
    assert seeds == [trial_seed(config, number) for number in range(50)]
    assert trial_seed(other, 0) != seeds[0]
    assert all(0 <= seed < 2**31 for seed in seeds)


def test_fixed_seed_is_that_of_every_trial(bare_lab):
    config = bare_lab.config()
    training = dataclasses.replace(config.training, seed=7)
    config = dataclasses.replace(config, training=training)
    assert [trial_seed(config, number) for number in (0, 5)] == [7, 7]


def test_added_proposal_is_in_line_with_every_hyperparameter(lab):
    lab.search(trials=0)
    store = lab.store()
    space = space_of()
    params = space.default_params()
    proposal = Proposal(
        number=1, params=params, distributions=stored_distributions(space), system_attrs={"k": 1}
    )
    trial = store.trial(add_proposal(store, space, proposal))
    assert (trial.number, trial.state, trial.origin) == (1, TrialState.WAITING, "sampler")
    assert trial.hyperparameters == space.hyperparameters(trial.params)
    assert trial.seed == trial_seed(store.record.config, 1)
    assert trial.system_attrs["k"] == 1


def test_spec_holds_what_is_stored(bare_lab):
    trial = make_trial(3, seed=11)
    spec = trial_spec(trial, bare_lab.config(), bare_lab.files)
    assert (spec.number, spec.seed, spec.hyperparameters) == (3, 11, trial.hyperparameters)
    assert spec.folder == str(bare_lab.files.trial(3))


def test_trial_without_a_seed_gets_the_one_of_its_number(bare_lab):
    config = bare_lab.config()
    spec = trial_spec(make_trial(3, seed=None), config, bare_lab.files)
    assert spec.seed == trial_seed(config, 3)


def test_shadows_know_every_hyperparameter_even_those_of_a_newer_version():
    trial = make_trial(
        2,
        "PRUNED",
        value=0.25,
        intermediate_values={50: 0.25},
        system_attrs={"completed_rung_0": 0.25},
    )
    (shadow,) = Shadows().of([trial])
    assert shadow.params == complete({"learning_rate": 1e-3, "epochs": 2})
    assert (shadow.number, shadow.state, shadow.value) == (2, TrialState.PRUNED, 0.25)
    assert shadow.intermediate_values == {50: 0.25}
    assert shadow.system_attrs == {"completed_rung_0": 0.25}


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (
            ConfigError([Problem(place="a", message="One."), Problem(place="b", message="Two.")]),
            "a: One.; b: Two.",
        ),
        (ValueError("not\n  compatible"), "not compatible"),
    ],
)
def test_message_of_an_invalid_configuration_is_one_line(error, said):
    assert invalid_message(error) == said


@pytest.fixture
def prepared(lab):
    """The stored study as it is right after it was created."""
    lab.search(trials=0)
    return lab.store()


@pytest.mark.parametrize(
    ("trial", "trials", "may"),
    [(DEFAULT, 0, False), (DEFAULT, 1, True), (PAUSED, 0, True), (USER, 0, True)],
    ids=["only prepared", "first of the budget", "already begun", "the user's"],
)
def test_only_a_new_default_recipe_waits_for_the_budget(trial, trials, may):
    assert may_start(trial, [DEFAULT, USER], BudgetConfig(trials=trials)) is may


def test_configurations_before_the_default_recipe_use_the_budget_but_reruns_do_not():
    late = dataclasses.replace(DEFAULT, number=2)
    trials = [make_trial(0), make_trial(1, rerun_of=0), late]
    assert not may_start(late, trials, BudgetConfig(trials=1))
    assert may_start(late, trials, BudgetConfig(trials=2))


def test_new_study_has_the_default_recipe_in_line(prepared):
    (trial,) = prepared.trials()
    assert (trial.origin, trial.state) == ("default", TrialState.WAITING)
    assert trial.params == {"learning_rate": 1e-4, "dropout": 0.1}
    assert trial.hyperparameters["epochs"] == 2


def test_default_recipe_that_has_not_begun_follows_the_space(prepared):
    space = load_space({**SPACE, "dropout": 0.4, "epochs": 1})
    prepared.update_record(space=space.to_plain())
    put_default_recipe(prepared)
    (trial,) = prepared.trials()
    assert trial.params == {"learning_rate": 1e-4}
    assert trial.distributions.keys() == {"learning_rate"}
    assert (trial.hyperparameters["dropout"], trial.hyperparameters["epochs"]) == (0.4, 1)


@pytest.mark.parametrize("begun", ["claimed", "released", "ended"])
def test_default_recipe_that_has_begun_stays_as_it_is(prepared, begun):
    prepared.claim(0)
    if begun == "released":
        prepared.release(0)
    if begun == "ended":
        prepared.finish(0, TrialState.FAIL)
    before = prepared.trials()
    prepared.update_record(space=load_space({**SPACE, "dropout": 0.4}).to_plain())
    put_default_recipe(prepared)
    assert prepared.trials() == before


def test_default_recipe_that_a_kill_left_out_is_put_in_line(prepared, lab):
    database = open_database(lab.url)
    bare = database.create(dataclasses.replace(prepared.record, name="bare"))
    put_default_recipe(bare)
    put_default_recipe(bare)
    assert [trial.origin for trial in bare.trials()] == ["default"]
    database.close()


def test_shadow_knows_only_the_parameters_of_a_trial_that_is_not_adopted_yet():
    (shadow,) = Shadows().of([make_trial(0, "WAITING", params={}, hyperparameters={})])
    assert shadow.params == {}


def test_trial_that_failed_without_a_word_has_a_result():
    failure = TrialFailure(kind=FailureKind.WORKER_DIED, message="gone")
    result = failed_result(3, failure)
    assert (result.number, result.outcome, result.failure) == (3, Outcome.FAILED, failure)
    assert (result.value, result.cost.examples) == (None, 0)


def test_the_same_record_has_the_same_shadow_and_a_changed_one_another():
    shadows, trials = Shadows(), [make_trial(0, value=0.5), make_trial(1, "RUNNING")]
    first = shadows.of(trials)
    trials[1] = make_trial(1, "RUNNING", intermediate_values={50: 0.25})
    second = shadows.of(trials)
    assert second[0] is first[0]
    assert second[1].intermediate_values == {50: 0.25}
