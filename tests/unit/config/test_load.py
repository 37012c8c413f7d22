"""Options win over the file, the file over the defaults; all problems come in one message."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest

from automl_ft.config.load import (
    LoadedConfig,
    default_name,
    find_study_file,
    load_config,
    settings_of,
)
from automl_ft.config.study import DataConfig, ModelConfig, StudyConfig
from automl_ft.errors import ConfigError
from automl_ft.files.shipped import shipped_names
from automl_ft.specs.codec import from_plain, to_plain

Load = Callable[..., LoadedConfig]
Problems = Callable[..., dict[str, str]]


def config(model: str = "minilm-l6", **data: Any) -> StudyConfig:
    return StudyConfig(
        model=ModelConfig(checkpoint=model), data=DataConfig(**(data or {"path": "docstrings"}))
    )


def test_short_forms_are_spelled_out(load: Load) -> None:
    found = load().config
    assert (found.model.checkpoint, found.data.path) == ("minilm-l6", "docstrings")


def test_several_files_may_be_given_short(load: Load) -> None:
    found = load("model: m\ndata: [a.csv, b.csv]\n", bare=True).config
    assert found.data.path == ("a.csv", "b.csv")


def test_everything_of_a_study_file_arrives(load: Load) -> None:
    found = load(
        "name: mine\nmodel: {checkpoint: m, revision: v1}\n"
        "data: {path: p, text: [a, b], label: c, validation: 0.25, test: null, max_length: 99}\n"
        "objective: mcc\nsampler: gp\npruner: none\nseed: 3\nworkers: 2\ndevice: cpu\n"
        "budget: {trials: 5, timeout: 1h30m, patience: 4}\n"
        "training: {precision: bf16, early_stopping_patience: 2}\n",
        bare=True,
    ).config
    assert found.model.revision == "v1"
    assert (found.data.text, found.data.test, found.data.max_length) == (("a", "b"), None, 99)
    assert (found.objective, found.sampler, found.pruner) == ("mcc", "gp", "none")
    assert (found.seed, found.workers, found.device, found.name) == (3, 2, "cpu", "mine")
    assert (found.budget.trials, found.budget.timeout_seconds) == (5, 5400.0)
    assert (found.training.precision, found.training.early_stopping_patience) == ("bf16", 2)


def test_what_is_not_given_takes_its_default(load: Load) -> None:
    found = load("name: x\n").config
    assert found == StudyConfig(
        name="x",
        model=ModelConfig(checkpoint="minilm-l6"),
        data=DataConfig(path="docstrings"),
    )


def test_a_config_survives_plain_values(load: Load) -> None:
    found = load("space: {epochs: 3}\nbudget: {timeout: 30m}\n")
    assert from_plain(StudyConfig, to_plain(found.config)) == found.config


def test_settings_spell_out_every_default(load: Load) -> None:
    loaded = load("budget: {trials: 3}\nspace: {epochs: {low: 1, high: 3}}\n")
    settings = settings_of(loaded.config)
    assert settings["budget"]["trials"] == 3
    assert settings["training"]["micro_batch_size"] == "auto"
    assert settings["space"] == {"epochs": {"low": 1, "high": 3}}
    assert list(settings)[:4] == ["name", "task", "model", "data"]


def test_options_win_over_the_file(load: Load) -> None:
    found = load("seed: 3\nbudget: {trials: 5}\n", {"seed": 4, "budget.trials": 6}).config
    assert (found.seed, found.budget.trials) == (4, 6)


def test_options_leave_their_neighbours_alone(load: Load) -> None:
    options = {"model": "other", "data.label": "stars", "budget.patience": 3}
    found = load("budget: {trials: 5}\n", options).config
    assert (found.model.checkpoint, found.data.path, found.data.label) == (
        "other", "docstrings", "stars",
    )  # fmt: skip
    assert (found.budget.trials, found.budget.patience) == (5, 3)


def test_options_alone_are_a_study() -> None:
    options = {"model": "m", "data": "x.csv", "data.text": "review", "data.label": "stars"}
    found = load_config(None, options).config
    assert (found.data.path, found.data.text, found.data.label) == ("x.csv", ("review",), "stars")


@pytest.mark.parametrize("key", ["budget.timeout", "budget.timeout_seconds"])
@pytest.mark.parametrize("text", ["budget: {timeout: 30m}\n", "budget: {timeout_seconds: 60}\n"])
def test_a_timeout_of_an_option_wins_in_either_form(load: Load, text: str, key: str) -> None:
    loaded = load(text, {key: 90})
    assert loaded.config.budget.timeout_seconds == 90.0
    assert loaded.origins["budget.timeout_seconds"] == "option"


@pytest.mark.parametrize(("text", "seconds"), [("30m", 1800.0), ("90", 90.0), ("null", None)])
def test_a_timeout_is_read_as_people_write_it(load: Load, text: str, seconds: float | None) -> None:
    assert load(f"budget: {{timeout: {text}}}\n").config.budget.timeout_seconds == seconds


def test_a_space_may_be_a_mapping(load: Load) -> None:
    space = {"epochs": {"type": "int", "low": 1, "high": 3}, "freezing": "head_only"}
    loaded = load("space: {epochs: {type: int, low: 1, high: 3}, freezing: head_only}\n")
    assert loaded.config.space == space
    assert loaded.origins["space"] == loaded.origins["model.checkpoint"]


def test_an_option_changes_one_key_of_a_space(load: Load) -> None:
    found = load("space: {epochs: 3, batch_size: 8}\n", {"space.epochs": 5}).config
    assert found.space == {"epochs": 5, "batch_size": 8}


def test_an_option_cannot_change_a_space_that_is_only_named(problems: Problems) -> None:
    found = problems("space: quick\n", {"space.epochs": 5})
    assert found == {
        "option space.epochs": "`space` is `quick`, which has no keys below it."
        " Give it as a mapping."
    }


def test_origins_name_file_option_and_default(load: Load, tmp_path: Path) -> None:
    origins = load("seed: 3\nbudget: {timeout: 1h}\n", {"workers": 2, "model": "m"}).origins
    file = str(tmp_path / "study.yaml")
    assert origins["seed"] == origins["data.path"] == origins["budget.timeout_seconds"] == file
    assert origins["workers"] == origins["model.checkpoint"] == "option"
    assert origins["name"] == origins["training.precision"] == "default"


def test_every_setting_has_an_origin(load: Load) -> None:
    loaded = load("space: {epochs: 3}\n")

    def leaves(plain: Mapping[str, Any], prefix: str = "") -> set[str]:
        found = set()
        for key, value in plain.items():
            is_section = isinstance(value, Mapping) and key != "space"
            found |= leaves(value, f"{prefix}{key}.") if is_section else {prefix + key}
        return found

    assert set(loaded.origins) == leaves(settings_of(loaded.config))


def test_all_problems_come_in_one_message(problems: Problems) -> None:
    found = problems(
        "model: {checkpoint: '', revisions: x}\n"
        "data: {format: cvs, validation: 2, max_length: 1}\n"
        "objective: f2\nbudget: {trials: many, timeout: soon, patience: 0}\n"
        "training: {threads: 0, precision: fp8}\nworkers: 0\nsed: 1\n",
        {"device": "gpu", "budget.min_improvement": -1},
        bare=True,
    )
    assert set(found) == {
        "model.checkpoint", "model.revisions", "data.path", "data.format", "data.validation",
        "data.max_length", "objective", "budget.trials", "budget.timeout", "budget.patience",
        "training.threads", "training.precision", "workers", "sed", "option device",
        "option budget.min_improvement",
    }  # fmt: skip


def test_unknown_keys_are_told_with_a_suggestion(problems: Problems) -> None:
    found = problems("models: x\nbudget: {trails: 3}\n", {"data.labels": "y"})
    assert found == {
        "models": "unknown key. Did you mean `model`?",
        "budget.trails": "unknown key. Did you mean `trials`?",
        "option data.labels": "unknown key. Did you mean `label`?",
    }


def test_a_problem_with_an_option_is_placed_at_the_option(problems: Problems) -> None:
    found = problems("budget: {trials: 3}\nworkers: 0\n", {"budget.trials": -1})
    assert found == {
        "option budget.trials": "`-1` is not accepted; accepted is 0 or more.",
        "workers": "`0` is not accepted; accepted: auto, or a whole number from 1 to 256.",
    }


@pytest.mark.parametrize("value", ["0", "-1", "inf", "0s"])
def test_a_timeout_out_of_range_is_placed_where_it_was_written(
    problems: Problems, value: str
) -> None:
    (in_file,) = problems(f"budget: {{timeout: {value}}}\n").items()
    (in_option,) = problems("", {"budget.timeout": value}).items()
    assert (in_file[0], in_option[0]) == ("budget.timeout", "option budget.timeout")
    assert in_file[1] == in_option[1]
    assert in_file[1].endswith("accepted is a time above 0, such as 30m.")


@pytest.mark.parametrize("value", ["soon", "[1, 2]", "true", "{a: 1}"])
def test_a_timeout_that_is_no_duration_is_told(problems: Problems, value: str) -> None:
    found = problems(f"budget: {{timeout: {value}, patience: 0}}\n")
    assert "is no duration; accepted are seconds or forms such as 90s" in found["budget.timeout"]
    assert "budget.patience" in found


def test_missing_model_and_data_are_told(problems: Problems) -> None:
    found = problems("seed: -1\n", bare=True)
    assert found == {
        "model": "missing; a value is needed.",
        "data": "missing; a value is needed.",
        "seed": "`-1` is not accepted; accepted is 0 to 4294967295.",
    }


@pytest.mark.parametrize("text", ["model:\ndata: x\n", "model: m\ndata: null\n"])
def test_an_empty_model_or_data_is_told(problems: Problems, text: str) -> None:
    assert list(problems(text, bare=True).values()) == ["missing; a value is needed."]


def test_an_option_fills_what_the_file_leaves_empty(load: Load) -> None:
    found = load("model:\ndata: x\nbudget:\n  # trials: 5\n", {"model": "m"}, bare=True).config
    assert (found.model.checkpoint, found.budget.trials) == ("m", 50)


def test_an_option_below_a_plain_value_is_told(problems: Problems) -> None:
    found = problems("budget: 5\nname: x\n", {"budget.trials": 3, "name.first": "y"})
    assert set(found) == {"budget", "option budget.trials", "option name.first"}
    assert found["option name.first"].startswith("`name` is `x`, which has no keys below it.")
    assert found["budget"].startswith("`5` is not accepted; accepted is a mapping of trials")


def test_yaml_that_cannot_be_read_is_the_only_problem(problems: Problems) -> None:
    found = problems("budget: {trials: 3\n", bare=True)
    assert len(found) == 1
    assert "The YAML cannot be read" in next(iter(found.values()))


def test_a_key_given_twice_is_told_with_all_else(problems: Problems) -> None:
    found = problems("seed: 1\nseed: 2\nworkers: 0\n")
    assert set(found) == {"seed", "workers"}
    assert "given twice" in found["seed"]


def test_an_option_may_open_a_section_that_the_file_lacks(load: Load) -> None:
    assert load("", {"training.threads": 2}).config.training.threads == 2


def test_the_message_names_the_file_with_every_problem(load: Load, tmp_path: Path) -> None:
    with pytest.raises(ConfigError) as caught:
        load("workers: 0\nseed: -1\n")
    lines = str(caught.value).splitlines()
    assert len(lines) == 2
    assert all(line.startswith(f"{tmp_path / 'study.yaml'}: ") for line in lines)


def test_a_path_is_found(study_file: Callable[..., str]) -> None:
    path = study_file()
    assert find_study_file(path) == Path(path)


def test_a_shipped_study_is_found_by_name() -> None:
    assert shipped_names("studies")
    for name in shipped_names("studies"):
        assert find_study_file(name).name == f"{name}.yaml"
        assert load_config(name).config.name == name


def test_a_file_of_a_shipped_name_wins(tmp_path: Path) -> None:
    (tmp_path / "demo").write_text("model: m\ndata: d\n", encoding="utf-8")
    assert find_study_file("demo") == Path("demo")  # tests run in `tmp_path`


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("none.yaml", "none.yaml: there is no such study file. Give the path of a YAML file"),
        ("dmo", "Did you mean `demo`?"),
        ("folder", "folder: is a folder, not a study file."),
        ("../demo", "there is no such study file"),
    ],
)
def test_a_missing_study_file_is_told(tmp_path: Path, source: str, message: str) -> None:
    (tmp_path / "folder").mkdir()
    with pytest.raises(ConfigError) as caught:
        load_config(source)
    assert message in str(caught.value)


@pytest.mark.parametrize(
    ("model", "data", "name"),
    [
        ("distilbert/distilbert-base-uncased", {"path": "data/train.csv"},
         "distilbert-base-uncased-train"),
        ("minilm-l6", {"path": "docstrings"}, "minilm-l6-docstrings"),
        ("./my model/", {"path": ("a.csv", "b.csv")}, "my-model-a"),
        ("m", {"train": "t.csv", "validation": "v.csv"}, "m-t"),
        ("+m", {"path": "_x_"}, "m-_x"),
        ("../..", {"path": "/"}, "study"),
        ("m" * 200, {"path": "x"}, "m" * 120),
    ],
)  # fmt: skip
def test_a_study_without_a_name_gets_one(model: str, data: dict[str, Any], name: str) -> None:
    assert default_name(config(model, **data)) == name


def test_the_made_name_is_always_accepted() -> None:
    for model in ("+a", "..", "-", "___", "a b", "\u00e9t\u00e9", "a/+b", "@x", "."):
        found = load_config(None, {"model": model, "data": "+.csv"}).config
        assert found.name


def test_a_stored_study_goes_on_with_its_settings_and_options_over_them() -> None:
    stored = config("minilm-l6", path="docstrings", text="body")
    loaded = load_config(stored, {"budget.trials": 9, "budget.timeout": "2m"})
    assert loaded.config.data == stored.data
    assert loaded.config.data.text == ("body",)
    assert (loaded.config.budget.trials, loaded.config.budget.timeout_seconds) == (9, 120.0)
    assert loaded.origins["budget.trials"] == "option"
    assert loaded.origins["data.text"].startswith("study ")


def test_another_model_does_not_inherit_the_trust_in_the_files_own(load: Load) -> None:
    text = (
        "model: {checkpoint: mine, revision: abc, trust_remote_code: true}\n"
        "data: {path: rows, config: en, revision: def}\n"
    )
    same = load(text, {"seed": 1}, bare=True).config
    assert (same.model.revision, same.model.trust_remote_code) == ("abc", True)
    assert (same.data.config, same.data.revision) == ("en", "def")
    for options in ({"model": "other", "data": "more"}, {"model.checkpoint": "other"}):
        loaded = load(text, options, bare=True)
        assert (loaded.config.model.revision, loaded.config.model.trust_remote_code) == (
            None,
            False,
        )
        assert loaded.origins["model.trust_remote_code"] == "default"
    assert loaded.config.data.revision == "def"
    given = load(text, {"model": "other", "model.revision": "xyz"}, bare=True).config
    assert given.model.revision == "xyz"
