import warnings

import pytest
from optuna.exceptions import ExperimentalWarning

from automl_ft.config.study import SAMPLERS
from automl_ft.search.samplers import (
    SamplerSettings,
    accept_experimental,
    make_sampler,
    startup_trials,
)

CLASSES = {
    "tpe": "TPESampler",
    "gp": "GPSampler",
    "random": "RandomSampler",
    "qmc": "QMCSampler",
    "cmaes": "CmaEsSampler",
    "grid": "BruteForceSampler",
}


@pytest.mark.parametrize("name", SAMPLERS)
def test_every_sampler_of_the_config_is_built_without_a_warning(name):
    sampler = make_sampler(name, SamplerSettings(study_seed=0, trial_seed=1))
    assert type(sampler).__name__ == CLASSES[name]


def test_unknown_sampler_is_refused():
    with pytest.raises(KeyError, match="annealing"):
        make_sampler("annealing", SamplerSettings(study_seed=0, trial_seed=1))


def test_only_experimental_notices_are_silenced():
    def notify():
        with accept_experimental():
            warnings.warn("interface may change", ExperimentalWarning, stacklevel=1)
            warnings.warn("real", FutureWarning, stacklevel=1)

    with pytest.warns(FutureWarning, match="real") as caught:
        notify()
    assert len(caught) == 1


def test_experimental_notices_are_back_afterwards():
    with accept_experimental():
        pass
    with pytest.warns(ExperimentalWarning):
        warnings.warn("interface may change", ExperimentalWarning, stacklevel=1)


@pytest.mark.parametrize(("budget", "startup"), [(1, 4), (20, 5), (32, 8), (500, 10)])
def test_start_up_is_a_quarter_of_the_budget_from_4_to_10(budget, startup):
    assert startup_trials(budget) == startup
