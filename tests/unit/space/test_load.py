import pytest

from automl_ft.errors import ConfigError
from automl_ft.space.load import list_spaces, load_space
from automl_ft.space.spec import CategoricalParam, Fixed, FloatParam, IntParam


def problems_of(source, **kwargs):
    with pytest.raises(ConfigError) as caught:
        load_space(source, **kwargs)
    return {problem.place: problem.message for problem in caught.value.problems}


def only_problem(entry, name="dropout", key=None):
    place = f"space.{name}.{key}" if key else f"space.{name}"
    problems = problems_of({name: entry})
    assert list(problems) == [place]
    return problems[place]


RANGE = {"low": 0.0, "high": 0.4, "default": 0.1}


def test_a_bare_value_is_fixed_and_a_mapping_is_searched(conditional):
    space = load_space(conditional)
    assert space.fixed == {"weight_decay": 0.01}
    kinds = {param.name: type(param) for param in space.parameters}
    assert kinds["learning_rate"] is FloatParam
    assert kinds["epochs"] is IntParam
    assert kinds["freezing"] is CategoricalParam
    assert kinds["weight_decay"] is Fixed


def test_a_configuration_is_a_space_of_one_point():
    space = load_space(
        {"batch_size": 16, "learning_rate": 5e-5, "dropout": None, "weight_decay": 0}
    )
    assert space.sampled == ()
    assert space.default_params() == {}
    assert space.hyperparameters({})["batch_size"] == 16
    assert space.fixed["dropout"] is None
    assert type(space.fixed["weight_decay"]) is float


def test_parameters_come_after_those_that_they_depend_on():
    space = load_space(
        {
            "frozen_layers": {
                "low": 1, "high": 3, "default": 1, "when": {"freezing": "bottom_layers"},
            },
            "freezing": {"choices": ["none", "bottom_layers"], "default": "none"},
        }
    )  # fmt: skip
    assert [param.name for param in space.parameters] == ["freezing", "frozen_layers"]


def test_missing_default_is_the_neutral_one():
    assert load_space({"epochs": {"low": 1, "high": 4}}).find("epochs").default == 3


def test_default_with_a_prior_is_the_centre_of_the_default_recipe(conditional):
    assert load_space(conditional).find("learning_rate").default == 5e-5
    fixed = load_space({**conditional, "freezing": "head_only"})
    assert fixed.find("learning_rate").default == 3e-3


def test_search_over_models():
    space = load_space({"model": {"choices": ["a/b", "./c"], "default": "a/b"}})
    assert space.default_params() == {"model": "a/b"}


def test_file_by_path_is_named_after_itself(write):
    path = write("description: mine\nepochs: {low: 1, high: 5, default: 3}\ndropout: 0.1\n")
    space = load_space(str(path))
    assert (space.name, space.description) == ("mine", "mine")


def test_relative_path_starts_from_the_folder_given(write, tmp_path):
    write("name: own\nepochs: 1\n")
    assert load_space("mine.yaml", folder=tmp_path).name == "own"


def test_unknown_name_gets_a_suggestion():
    problems = problems_of("quik", place="studies/demo.yaml: space")
    assert "`quik` is no search space" in problems["studies/demo.yaml: space"]
    assert "Did you mean `quick`" in problems["studies/demo.yaml: space"]


def test_missing_path_is_reported_with_the_shipped_names(tmp_path):
    message = problems_of("spaces/no.yaml", folder=tmp_path)["space"]
    assert f"no file `{tmp_path}/spaces/no.yaml`" in message
    assert "text_classification" in message


def test_every_mistake_of_a_file_is_in_one_message_with_file_and_key(write):
    path = write(
        """
lerning_rate: {low: 1.0e-6, high: 1.0e-3}
dropout: {low: 0.5, high: 0.1, default: 0.2}
l1: {low: 0, high: 0.1, log: true, default: 0.01}
epochs: {low: 1, high: 4, default: 9}
epochs: {low: 1, high: 4, default: 9}
label_smoothing: {low: 0, high: 0.1, defaults: 0.0}
batch_size: {choices: [], default: 16}
unfreezing_pace: {low: 0.2, high: 0.9, when: {frezing: gradual_unfreezing}}
freezing: {choices: [none, head_only], default: none}
frozen_layers: {low: 1, high: num_layer, default: 1, when: {freezing: bottom_layers}}
weight_decay: a lot
mixup: [0.1, 0.2]
"""
    )
    problems = problems_of(str(path))
    assert {place.removeprefix(f"{path}: ") for place in problems} == {
        "epochs",
        "lerning_rate",
        "dropout.low",
        "l1.low",
        "epochs.default",
        "label_smoothing.defaults",
        "batch_size.choices",
        "unfreezing_pace.when.frezing",
        "frozen_layers.high",
        "weight_decay",
        "mixup",
    }


def test_syntax_error_carries_file_line_and_column(write):
    path = write("epochs: {low: 1\ndropout: 0.1\n")
    assert list(problems_of(str(path))) == [f"{path}: line 2, column 8"]


def test_unknown_hyperparameter_gets_a_suggestion():
    assert "Did you mean `learning_rate`" in problems_of({"lerning_rate": 1})["space.lerning_rate"]


def test_unknown_key_gets_a_suggestion():
    assert "Did you mean `default`" in only_problem({**RANGE, "defaults": 1}, key="defaults")


@pytest.mark.parametrize("bad", [1, [1], {"a": 1}])
def test_name_and_description_are_text(bad):
    assert "text" in problems_of({"name": bad, "epochs": 1})["space.name"]


def test_space_without_hyperparameters_is_refused():
    assert "names no hyperparameter" in problems_of({"description": "nothing"})["space"]


def test_low_above_high():
    message = only_problem({"low": 0.4, "high": 0.1, "default": 0.2}, key="low")
    assert "`0.4` is above `high`, which is `0.1`" in message


def test_zero_with_log():
    message = only_problem({**RANGE, "log": True}, key="low")
    assert message == (
        "`0.0` is given, but `log: true` needs low > 0. Set low, for example, to 1e-6."
    )


def test_zero_with_log_for_whole_numbers():
    entry = {"low": 0, "high": 4, "log": True, "default": 1}
    assert "to 1." in only_problem(entry, "reinit_layers", "low")


def test_log_with_a_step():
    entry = {"low": 0.1, "high": 0.4, "default": 0.1, "log": True, "step": 0.1}
    assert "takes no step" in only_problem(entry, key="step")


@pytest.mark.parametrize("step", [0, -1, "x", True, float("inf")])
def test_step_must_be_above_zero(step):
    assert f"`{step}` is not accepted" in only_problem({**RANGE, "step": step}, key="step")


def test_step_of_whole_numbers_is_whole():
    entry = {"low": 1, "high": 4, "default": 1, "step": 1.5}
    assert "whole number" in only_problem(entry, "epochs", "step")


def test_high_must_lie_on_a_step():
    entry = {"low": 0.0, "high": 0.5, "default": 0.0, "step": 0.2}
    assert "Set it to 0.4." in only_problem(entry, key="high")


def test_default_must_lie_on_a_step():
    entry = {"low": 0.0, "high": 0.4, "default": 0.1, "step": 0.2}
    assert "`0.1` is not on a step" in only_problem(entry, key="default")


def test_default_out_of_range():
    message = only_problem({**RANGE, "default": 0.5}, key="default")
    assert "`0.5` is not in the range from 0.0 to 0.4" in message


def test_neutral_default_out_of_range_asks_for_one():
    message = only_problem({"low": 1, "high": 3}, "frozen_layers", "default")
    assert "`0` is not in the range from 1 to 3" in message


def test_default_that_is_missing_where_there_is_no_neutral_one():
    assert "missing" in only_problem({"low": 0.0, "high": 0.4}, key="default")


@pytest.mark.parametrize("key", ["low", "high"])
def test_missing_bound(key):
    entry = {name: value for name, value in RANGE.items() if name != key}
    assert f"`{key}` is missing" in only_problem(entry, key=key)


@pytest.mark.parametrize("bad", ["0.1", True, float("nan"), -0.1, 0.95, [0.1]])
def test_bound_that_the_hyperparameter_does_not_accept(bad):
    assert "float from 0 to 0.9" in only_problem({**RANGE, "low": bad}, key="low")


def test_infinite_bound():
    entry = {"low": 0.1, "high": float("inf"), "default": 1.0}
    assert "finite" in only_problem(entry, "max_grad_norm", "high")


def test_fractional_bound_of_a_whole_number():
    entry = {"low": 1.5, "high": 4, "default": 3}
    assert "`1.5` is not accepted; accepted is a int" in only_problem(entry, "epochs", "low")


def test_bound_that_names_no_fact():
    entry = {"low": 1, "high": "num_layer", "default": 1}
    assert "Did you mean `num_layers`" in only_problem(entry, "frozen_layers", "high")


def test_log_must_be_true_or_false():
    assert "accepted: true, false" in only_problem({**RANGE, "log": "yes"}, key="log")


def test_source_must_be_text():
    assert "text" in only_problem({**RANGE, "source": 2019}, key="source")


@pytest.mark.parametrize("grid", [0.1, ["a"], [True], [0.1, 0.1]])
def test_grid_must_be_a_list_of_different_numbers(grid):
    assert "list of different numbers" in only_problem({**RANGE, "grid": grid}, key="grid")


def test_grid_must_lie_in_the_range():
    assert "`0.7` is not in the range" in only_problem({**RANGE, "grid": [0.1, 0.7]}, key="grid")


def test_grid_is_kept_in_the_type_of_the_hyperparameter():
    assert load_space({"dropout": {**RANGE, "grid": [0]}}).find("dropout").grid == (0.0,)
    entry = {"low": 1, "high": 4, "grid": [1, 4]}
    assert load_space({"epochs": entry}).find("epochs").grid == (1, 4)


def test_choice_that_the_hyperparameter_does_not_accept():
    entry = {"choices": [8, "many"], "default": 8}
    assert "`many` is not accepted" in only_problem(entry, "batch_size", "choices[1]")


def test_choice_listed_twice():
    entry = {"choices": [8, 16, 8], "default": 8}
    assert "`8` is listed twice" in only_problem(entry, "batch_size", "choices")


def test_default_that_is_no_choice():
    entry = {"choices": [8, 32], "default": 16}
    message = only_problem(entry, "batch_size", "default")
    assert message == "`16` is none of the choices (8, 32). Choose one of them."


def test_text_needs_choices():
    message = problems_of({"lr_schedule": {"default": "linear"}})["space.lr_schedule.choices"]
    assert "list of at least one" in message


def test_range_keys_beside_choices():
    entry = {"choices": [8, 16], "low": 8, "default": 8}
    assert "no such key" in only_problem(entry, "batch_size", "low")


def test_fixed_value_that_is_not_accepted():
    assert "`0` is not accepted; accepted is a int from 1 to 1000" in only_problem(0, "epochs")


def test_list_without_choices():
    assert "Write `choices:`" in only_problem([8, 16], "batch_size")


def test_condition_on_an_absent_parameter(conditional):
    conditional["epochs"]["when"] = {"unfreezing_pace": 0.5}
    message = problems_of(conditional)["space.epochs.when.unfreezing_pace"]
    assert "The space has no `unfreezing_pace`" in message


def test_condition_on_a_choice_that_does_not_exist(conditional):
    conditional["epochs"]["when"] = {"freezing": ["none", "embeddings"]}
    message = problems_of(conditional)["space.epochs.when.freezing"]
    assert "`embeddings` is no value of `freezing`" in message


def test_condition_on_a_float(conditional):
    conditional["epochs"]["when"] = {"dropout": 0.1}
    assert "float range" in problems_of(conditional)["space.epochs.when.dropout"]


def test_condition_on_a_range_that_names_facts_is_accepted(conditional):
    conditional["epochs"]["when"] = {"frozen_layers": 2}
    assert load_space(conditional).find("epochs").when[0].values == (2,)


def test_condition_on_a_fixed_parameter_need_not_hold(conditional):
    space = load_space({**conditional, "freezing": "head_only"})
    assert "frozen_layers" not in space.default_params()
    wrong = problems_of({**conditional, "freezing": "head_only", "epochs": {
        "low": 1, "high": 2, "default": 1, "when": {"freezing": "hed"}}})  # fmt: skip
    assert "`hed` is no value" in wrong["space.epochs.when.freezing"]


def test_circular_conditions():
    problems = problems_of(
        {
            "batch_size": {"choices": [8], "default": 8, "when": {"epochs": 1}},
            "epochs": {"low": 1, "high": 3, "when": {"batch_size": 8}},
        }
    )
    assert list(problems) == ["space.batch_size.when", "space.epochs.when"]
    assert "lead back to itself" in problems["space.epochs.when"]


@pytest.mark.parametrize("when", ["freezing", ["freezing"], 3])
def test_when_must_be_a_mapping(conditional, when):
    conditional["epochs"]["when"] = when
    assert "freezing: bottom_layers" in problems_of(conditional)["space.epochs.when"]


def test_condition_without_values(conditional):
    conditional["epochs"]["when"] = {"freezing": []}
    assert "list is empty" in problems_of(conditional)["space.epochs.when.freezing"]


@pytest.mark.parametrize(
    ("change", "key", "message"),
    [
        ({"by": "batch_size"}, "prior.by", "`batch_size` is no parameter with text"),
        ({"by": "lr_schedule"}, "prior.by", "`lr_schedule` is no parameter"),
        ({"centers": {"none": 5e-5}}, "prior.centers", "no centre for `head_only`"),
        ({"spread": 1}, "prior.spread", "`1` is not accepted"),
        ({"spread": None}, "prior.spread", "`None` is not accepted"),
        ({"centers": [5e-5]}, "prior", "accepted is for example"),
        ({"sprad": 2}, "prior.sprad", "Did you mean `spread`"),
    ],
)
def test_mistakes_in_a_prior(conditional, change, key, message):
    conditional["freezing"]["choices"] = ["none", "head_only"]
    del conditional["frozen_layers"]
    conditional["learning_rate"]["prior"].update(change)
    assert message in problems_of(conditional)[f"space.learning_rate.{key}"]


def test_centre_outside_the_range(conditional):
    conditional["learning_rate"]["prior"]["centers"]["none"] = 0.5
    message = problems_of(conditional)["space.learning_rate.prior.centers.none"]
    assert "`0.5` is not in the range from 1e-05 to 0.01" in message


def test_centre_of_a_choice_that_does_not_exist(conditional):
    conditional["learning_rate"]["prior"]["centers"]["hed_only"] = 1e-3
    message = problems_of(conditional)["space.learning_rate.prior.centers.hed_only"]
    assert "Did you mean `head_only`" in message


def test_prior_by_a_conditional_parameter(conditional):
    conditional["freezing"]["when"] = {"batch_size": 8}
    assert "conditions" in problems_of(conditional)["space.learning_rate.prior.by"]


def test_prior_needs_the_logarithm(conditional):
    conditional["learning_rate"]["log"] = False
    assert "Add `log: true`" in problems_of(conditional)["space.learning_rate.prior"]


def test_default_beside_a_prior_is_refused(conditional):
    conditional["learning_rate"]["default"] = 5e-5
    assert "centres are the defaults" in problems_of(conditional)["space.learning_rate.default"]


def test_problems_of_an_inline_space_start_with_where_it_stands():
    problems = problems_of({"epochs": 0}, place="studies/demo.yaml: space")
    assert list(problems) == ["studies/demo.yaml: space.epochs"]


def test_shipped_spaces_are_listed():
    assert {"full", "low_data", "quick", "text_classification"} <= set(list_spaces())
