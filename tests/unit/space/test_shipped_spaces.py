"""The search spaces that ship: each loads, and its default is a recipe to begin with."""

import pytest

from automl_ft.space.load import list_spaces, load_space
from automl_ft.space.resolve import resolve
from automl_ft.space.suggest import stored_distributions
from automl_ft.specs.hyperparameters import FREEZING_STRATEGIES, HYPERPARAMETERS

DEPTHS = (1, 2, 6, 12, 24)


@pytest.fixture(params=list_spaces())
def space(request):
    return load_space(request.param)


def test_there_are_spaces():
    assert len(list_spaces()) >= 4


@pytest.mark.parametrize("depth", DEPTHS)
def test_default_is_the_standard_recipe_for_every_depth(space, depth):
    resolved = resolve(space, {"num_layers": depth})
    recipe = resolved.hyperparameters(resolved.default_params())
    assert recipe["learning_rate"] in (3e-5, 5e-5)
    assert recipe["dropout"] in (None, 0.1)
    expected = {
        "freezing": "none", "batch_size": 16, "epochs": 3, "weight_decay": 0.01,
        "warmup_ratio": 0.1, "lr_schedule": "linear", "l1": 0.0, "label_smoothing": 0.0,
        "layerwise_lr_decay": 1.0, "max_grad_norm": 1.0, "reinit_layers": 0,
        "token_dropout": 0.0, "word_swap": 0.0, "word_deletion": 0.0, "mixup": 0.0,
    }  # fmt: skip
    assert {name: recipe[name] for name in expected} == expected


@pytest.mark.parametrize("depth", DEPTHS)
def test_default_of_every_strategy_is_accepted(space, depth):
    resolved = resolve(space, {"num_layers": depth})
    for strategy in resolved.find("freezing").choices:
        params = resolved.complete({"freezing": strategy})
        recipe = resolved.hyperparameters(params)
        assert all(HYPERPARAMETERS[k].problem_with(v) is None for k, v in recipe.items())
        assert params.keys() <= stored_distributions(resolved).keys()


def test_a_model_with_one_block_cannot_freeze_bottom_layers(space):
    assert "bottom_layers" not in resolve(space, {"num_layers": 1}).find("freezing").choices


def test_everything_that_is_searched_says_where_it_comes_from(space):
    assert [param.name for param in space.sampled if len(param.source) < 20] == []
    assert space.description


def test_full_searches_everything_but_the_model():
    names = {param.name for param in load_space("full").sampled}
    assert names == HYPERPARAMETERS.keys() - {"model"}
    assert load_space("full").find("freezing").choices == FREEZING_STRATEGIES


def test_quick_has_cheap_trials():
    space = load_space("quick")
    assert "head_only" in space.find("freezing").choices
    assert space.find("epochs").bounds == (1, 4)
