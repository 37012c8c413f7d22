import optuna
import pytest
from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution
from optuna.samplers import RandomSampler

from automl_ft.space.load import load_space
from automl_ft.space.resolve import resolve
from automl_ft.space.suggest import coordinates, exploration, stored_distributions, suggest


@pytest.fixture
def space(conditional):
    return resolve(load_space(conditional), {"num_layers": 6})


@pytest.fixture
def study():
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    return optuna.create_study(sampler=RandomSampler(seed=0))


def test_stored_distributions_are_the_union_over_conditions(space):
    assert stored_distributions(space) == {
        "freezing": CategoricalDistribution(["none", "bottom_layers", "head_only"]),
        "batch_size": CategoricalDistribution([8, 16, 32]),
        "epochs": IntDistribution(1, 4),
        "dropout": FloatDistribution(0.0, 0.4, step=0.1),
        "frozen_layers": IntDistribution(1, 5),
        "learning_rate": FloatDistribution(1e-5, 1e-2, log=True),
    }


def test_a_prior_is_explored_relative_to_its_centre(space):
    assert exploration(space)["learning_rate"] == FloatDistribution(0.1, 10, log=True)


def test_suggestions_are_valid_and_hold_what_applies(space, study):
    for _ in range(60):
        params = suggest(study.ask(), space)
        assert space.validate_params(params) == []
        assert space.complete(params) == params


def test_suggested_rate_stays_near_the_centre_of_its_strategy(space, study):
    centers = space.find("learning_rate").prior.centers
    for _ in range(60):
        params = suggest(study.ask(), space)
        low, high = (centers[params["freezing"]] * factor for factor in (0.0999, 10.001))
        assert max(low, 1e-5) <= params["learning_rate"] <= min(high, 1e-2)


def test_rate_is_clipped_to_the_stored_range(space):
    trial = optuna.trial.FixedTrial(
        {
            "freezing": "head_only",
            "batch_size": 8,
            "epochs": 1,
            "dropout": 0.0,
            "learning_rate": 9.0,
        }
    )
    assert suggest(trial, space)["learning_rate"] == 1e-2


def test_coordinates_invert_suggestions(space, study):
    for _ in range(60):
        trial = study.ask()
        params = suggest(trial, space)
        place = coordinates(params, space)
        assert place.keys() == trial.params.keys()
        clipped = params["learning_rate"] in (1e-5, 1e-2)
        assert clipped or place["learning_rate"] == pytest.approx(trial.params["learning_rate"])


def test_rate_beyond_the_prior_counts_at_its_end(space):
    params = space.complete({"learning_rate": 5e-3})
    assert coordinates(params, space)["learning_rate"] == 10


def test_configuration_outside_the_space_has_no_coordinates(space):
    assert coordinates({**space.default_params(), "batch_size": 64}, space) is None
    assert coordinates({**space.default_params(), "epochs": 5}, space) is None


def test_coordinates_hold_only_what_the_space_searches(space):
    params = space.hyperparameters(space.default_params())
    assert coordinates(params, space).keys() == space.default_params().keys()


@pytest.mark.parametrize(
    "change",
    [{"weight_decay": 0.0}, {"l1": 0.1}, {"frozen_layers": 2}, {"lr_schedule": "cosine"}],
    ids=["fixed", "not named", "not searched here", "text"],
)
@pytest.mark.parametrize("is_grid", [False, True])
def test_other_value_of_what_is_not_searched_lies_outside(space, change, is_grid):
    params = space.hyperparameters(space.default_params())
    assert coordinates(params, space, is_grid=is_grid) is not None
    assert coordinates({**params, **change}, space, is_grid=is_grid) is None


def test_fixed_value_may_be_written_as_a_whole_number():
    space = load_space({"weight_decay": 1, "epochs": {"low": 1, "high": 3}})
    assert coordinates({"weight_decay": 1.0, "epochs": 2}, space) == {"epochs": 2}


def test_missing_parameter_counts_as_neutral(space):
    assert coordinates({"freezing": "none", "dropout": 0.1}, space)["epochs"] == 3


def test_grid_takes_low_default_and_high_of_floats_and_spread_whole_numbers():
    space = load_space(
        {
            "l1": {"low": 0.0, "high": 0.1, "default": 0.0},
            "mixup": {"low": 0.0, "high": 1.0, "default": 0.2},
            "dropout": {"low": 0.0, "high": 0.5, "default": 0.1, "grid": [0.1, 0.3]},
            "epochs": {"low": 1, "high": 20, "default": 3},
            "reinit_layers": {"low": 0, "high": 3},
            "batch_size": {"low": 8, "high": 64, "default": 16, "grid": [16, 64]},
        }
    )
    choices = {name: d.choices for name, d in exploration(space, is_grid=True).items()}
    assert choices == {
        "l1": (0.0, 0.1),
        "mixup": (0.0, 0.2, 1.0),
        "dropout": (0.1, 0.3),
        "epochs": (1, 3, 6, 11, 15, 20),
        "reinit_layers": (0, 1, 2, 3),
        "batch_size": (16, 64),
    }


def test_grid_of_a_prior_lies_around_each_centre(space, study):
    low, middle, high = exploration(space, is_grid=True)["learning_rate"].choices
    assert (low, middle, high) == (
        pytest.approx(0.464, abs=1e-3),
        1.0,
        pytest.approx(2.154, abs=1e-3),
    )
    params = suggest(study.ask(), space, is_grid=True)
    assert coordinates(params, space, is_grid=True).keys() == params.keys()


def test_configuration_off_the_grid_has_no_coordinates_there(space):
    params = {**space.default_params(), "learning_rate": 6e-5}
    assert coordinates(params, space, is_grid=True) is None
    assert coordinates(space.default_params(), space, is_grid=True)["learning_rate"] == 1.0


def test_unresolved_space_is_refused(conditional):
    with pytest.raises(ValueError, match="resolve the space first"):
        stored_distributions(load_space(conditional))
