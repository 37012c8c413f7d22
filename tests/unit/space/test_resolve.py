import pytest

from automl_ft.errors import ConfigError
from automl_ft.space.load import load_space
from automl_ft.space.resolve import resolve


def test_bounds_become_numbers_of_the_model(conditional):
    space = resolve(load_space(conditional), {"num_layers": 12})
    param = space.find("frozen_layers")
    assert (param.bounds, param.default) == ((1, 11), 6)


def test_default_that_names_facts_moves_into_the_range(conditional):
    conditional["frozen_layers"]["default"] = "num_layers + 7"
    space = resolve(load_space(conditional), {"num_layers": 4})
    assert space.find("frozen_layers").default == 3


def test_literal_default_moves_into_a_range_that_names_facts(conditional):
    conditional["frozen_layers"]["default"] = 8
    space = resolve(load_space(conditional), {"num_layers": 4})
    assert space.find("frozen_layers").default == 3


def test_bounds_and_default_stay_on_the_steps(conditional):
    conditional["frozen_layers"]["step"] = 2
    space = resolve(load_space(conditional), {"num_layers": 7})
    param = space.find("frozen_layers")
    assert (param.bounds, param.default) == ((1, 5), 3)


def test_grid_values_outside_the_model_drop_out(conditional):
    conditional["frozen_layers"]["grid"] = [1, 3, 9]
    space = resolve(load_space(conditional), {"num_layers": 6})
    assert space.find("frozen_layers").grid == (1, 3)


def test_choice_that_is_impossible_for_the_model_drops_out(conditional):
    space = resolve(load_space(conditional), {"num_layers": 1})
    assert space.find("freezing").choices == ("none", "head_only")
    assert space.find("frozen_layers") is None
    assert space.default_params()["freezing"] == "none"


def test_parameters_of_a_dropped_choice_go_with_it_and_so_do_theirs(conditional):
    conditional["batch_size"]["when"] = {"freezing": "bottom_layers"}
    conditional["l1"] = {"low": 0.0, "high": 0.1, "default": 0.0, "when": {"batch_size": 8}}
    space = resolve(load_space(conditional), {"num_layers": 1})
    assert space.find("batch_size") is None
    assert space.find("l1") is None


def test_parameter_of_several_choices_stays_with_those_that_are_left(conditional):
    conditional["batch_size"]["when"] = {"freezing": ["bottom_layers", "none"]}
    space = resolve(load_space(conditional), {"num_layers": 1})
    assert "batch_size" in space.default_params()


@pytest.mark.parametrize(
    "change",
    [
        {"freezing": {"choices": ["none", "bottom_layers"], "default": "bottom_layers"}},
        {"freezing": {"choices": ["bottom_layers"], "default": "bottom_layers"}},
        {"freezing": "bottom_layers"},
    ],
)
def test_impossible_default_choice_is_reported(conditional, change):
    space = load_space({**conditional, **change})
    with pytest.raises(
        ConfigError, match="frozen_layers: The range from 1 to 0 is empty"
    ) as caught:
        resolve(space, {"num_layers": 1})
    assert "num_layers = 1" in str(caught.value)


def test_empty_range_without_a_condition_is_reported():
    space = load_space({"reinit_layers": {"low": 2, "high": "num_layers // 2", "default": 2}})
    with pytest.raises(ConfigError, match="reinit_layers: The range from 2 to 1 is empty"):
        resolve(space, {"num_layers": 2})


def test_empty_range_that_never_applies_is_dropped(conditional):
    space = load_space({**conditional, "freezing": "head_only"})
    assert resolve(space, {"num_layers": 1}).find("frozen_layers") is None
