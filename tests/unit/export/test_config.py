from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest

from automl_ft.config.load import load_config
from automl_ft.config.study import DataConfig, ModelConfig
from automl_ft.errors import ConfigError
from automl_ft.export.config import absolute_paths, config_text, trial_study_name, write_config
from automl_ft.space.load import load_space
from automl_ft.specs.hyperparameters import complete


@pytest.fixture
def job(bert_study, make_job, tmp_path):
    return make_job(bert_study, tmp_path)


@pytest.fixture
def written(job, tmp_path):
    write_config(job, tmp_path / "config.yaml")
    return load_config(str(tmp_path / "config.yaml")).config


def with_data(job, **changes):
    data = dataclasses.replace(job.config.data, **changes)
    return dataclasses.replace(job, config=dataclasses.replace(job.config, data=data))


def test_the_space_is_one_point_with_every_hyperparameter(job, written):
    space = load_space(written.space)
    assert space.sampled == ()
    assert space.hyperparameters({}) == dict(job.hyperparameters)


def test_every_kind_of_value_comes_back_as_it_was(job, tmp_path):
    values = complete({"learning_rate": 1.2345678901234567e-05, "dropout": 0.1, "epochs": 7})
    write_config(dataclasses.replace(job, hyperparameters=values), tmp_path / "c.yaml")
    space = load_space(load_config(str(tmp_path / "c.yaml")).config.space)
    assert space.hyperparameters({}) == values


def test_the_run_repeats_the_trial_exactly(job, written):
    assert written.training.seed == job.seed
    assert written.seed == job.config.seed
    assert written.data == dataclasses.replace(job.config.data, max_length=10)
    assert written.objective == job.config.objective
    assert written.budget.trials == 1
    assert written.pruner == "none"
    assert written.name == "reviews-trial-0"


def test_training_settings_are_those_of_the_study(job, tmp_path):
    training = dataclasses.replace(job.config.training, precision="fp32", early_stopping_patience=2)
    changed = dataclasses.replace(job, config=dataclasses.replace(job.config, training=training))
    write_config(changed, tmp_path / "c.yaml")
    found = load_config(str(tmp_path / "c.yaml")).config.training
    assert found == dataclasses.replace(
        training, seed=job.seed, validations_per_epoch=2, batching="packed"
    )


def test_what_auto_came_to_on_this_device_is_written(job, tmp_path):
    checkpoints = tuple(
        dataclasses.replace(checkpoint, batching="bucketed") for checkpoint in job.facts.checkpoints
    )
    facts = dataclasses.replace(job.facts, precision="bf16", checkpoints=checkpoints)
    write_config(dataclasses.replace(job, facts=facts), tmp_path / "c.yaml")
    found = load_config(str(tmp_path / "c.yaml")).config.training
    assert (found.precision, found.batching) == ("bf16", "bucketed")


@pytest.mark.parametrize(("per_epoch", "written"), [(1.0, 1), (2.0, 2), (0.5, "auto")])
def test_what_auto_came_to_is_written_where_it_can_be_set(job, tmp_path, per_epoch, written):
    facts = dataclasses.replace(job.facts, validations_per_epoch=per_epoch)
    write_config(dataclasses.replace(job, facts=facts), tmp_path / "c.yaml")
    found = load_config(str(tmp_path / "c.yaml")).config.training
    assert found.validations_per_epoch == written


def test_a_study_without_test_split_stays_without(job, tmp_path):
    write_config(with_data(job, test=None), tmp_path / "c.yaml")
    assert load_config(str(tmp_path / "c.yaml")).config.data.test is None


def test_texts_that_look_like_numbers_stay_texts(job, tmp_path):
    write_config(with_data(job, label="1e5", text=("010", "null")), tmp_path / "c.yaml")
    found = load_config(str(tmp_path / "c.yaml")).config.data
    assert (found.label, found.text) == ("1e5", ("010", "null"))


def test_a_hub_model_is_pinned_to_its_commit(job, tmp_path):
    facts = dataclasses.replace(job.checkpoint, checkpoint="org/name", revision="abc123")
    config = dataclasses.replace(job.config, model=ModelConfig(checkpoint="org/name"))
    pinned = dataclasses.replace(
        job, config=config, facts=dataclasses.replace(job.facts, checkpoints=(facts,))
    )
    write_config(pinned, tmp_path / "c.yaml")
    found = load_config(str(tmp_path / "c.yaml")).config.model
    assert (found.checkpoint, found.revision) == ("org/name", "abc123")


def test_a_searched_model_becomes_the_studys_model(job, tmp_path):
    other = dataclasses.replace(
        job.checkpoint, checkpoint="org/other", revision="f00", max_length=9
    )
    facts = dataclasses.replace(job.facts, checkpoints=(job.checkpoint, other))
    values = {**job.hyperparameters, "model": "org/other"}
    write_config(dataclasses.replace(job, facts=facts, hyperparameters=values), tmp_path / "c.yaml")
    found = load_config(str(tmp_path / "c.yaml")).config
    assert found.model == ModelConfig(checkpoint="org/other", revision="f00")
    assert found.data.max_length == 9
    assert "model" not in found.space


def test_the_header_says_where_it_comes_from(job):
    header = [line for line in config_text(job).splitlines() if line.startswith("#")]
    text = "\n".join(header)
    assert "study:        reviews" in text
    assert "trial:        0" in text
    assert repr(job.value) in text
    assert job.facts.data.fingerprint in text
    assert job.checkpoint.weights_hash in text
    assert "torch 2.13.0" in text


def test_a_line_break_in_a_name_cannot_leave_the_comment(job):
    text = config_text(with_data(job, path="a\nb: c"))
    assert "\nb: c" not in text.split("name: ")[0]


def test_a_file_that_the_loader_refuses_is_an_error(job, tmp_path):
    broken = dataclasses.replace(job, study="/")
    with pytest.raises(ConfigError, match="name"):
        write_config(broken, tmp_path / "c.yaml")


def test_a_long_name_is_cut_to_what_is_accepted():
    name = trial_study_name("x" * 120, 34)
    assert len(name) == 120
    assert name.endswith("-trial-34")


def test_local_paths_become_absolute(job, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("train.csv", "valid.csv", "test.csv"):
        Path(name).touch()
    Path("checkpoint").mkdir()
    config = dataclasses.replace(
        job.config,
        model=ModelConfig(checkpoint="checkpoint"),
        data=DataConfig(
            path="train.csv", train="train.csv", validation="valid.csv", test="test.csv"
        ),
    )
    found = absolute_paths(config)
    assert found.model.checkpoint == str(tmp_path / "checkpoint")
    assert found.data.path == found.data.train == str(tmp_path / "train.csv")
    assert found.data.validation == str(tmp_path / "valid.csv")
    assert found.data.test == str(tmp_path / "test.csv")


def test_several_files_become_absolute(job, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("a.csv").touch()
    data = DataConfig(path=("a.csv", "elsewhere.csv"))
    found = absolute_paths(dataclasses.replace(job.config, data=data))
    assert found.data.path == (str(tmp_path / "a.csv"), "elsewhere.csv")


def test_hub_ids_splits_and_bundled_names_stay_as_they_are(job, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("docstrings", "minilm-l6", "validation"):
        Path(name).mkdir()
    config = dataclasses.replace(
        job.config,
        model=ModelConfig(checkpoint="minilm-l6"),
        data=DataConfig(path="docstrings", validation="validation", test=0.1),
    )
    assert absolute_paths(config) == config
    hub = dataclasses.replace(config, data=DataConfig(path="org/data", test=None))
    assert absolute_paths(hub) == hub


def test_data_that_is_named_by_split_only_is_kept(job, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("t.csv").touch()
    found = absolute_paths(dataclasses.replace(job.config, data=DataConfig(train="t.csv")))
    assert found.data.path is None
    assert found.data.train == str(tmp_path / "t.csv")


@pytest.mark.parametrize(
    ("threads", "said"),
    [
        (None, "same machine\n# with the same number of CPU threads, which the study left"),
        (3, "trains it again, the same on the same machine.\n"),
    ],
)
def test_the_header_says_on_what_a_repetition_depends(job, threads, said):
    training = dataclasses.replace(job.config.training, threads=threads)
    changed = dataclasses.replace(job, config=dataclasses.replace(job.config, training=training))
    text = config_text(changed)
    assert said in text
    assert ("threads: 3\n" in text) == (threads == 3)
