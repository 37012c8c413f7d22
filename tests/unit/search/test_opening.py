"""How a study is opened: bad input creates nothing, an old study goes on only as it was."""

import dataclasses
import re
import shutil
import sqlite3

import optuna
import pytest
from optuna.distributions import CategoricalDistribution, FloatDistribution

from automl_ft.config.study import DataConfig, ModelConfig
from automl_ft.errors import (
    ConfigError,
    DataError,
    ModelError,
    SearchFailedError,
    StorageError,
    StudyExistsError,
    StudyLockedError,
    UsageError,
)
from automl_ft.search.events import StopReason
from automl_ft.storage.database import open_storage
from automl_ft.workers.protocol import Keep, Open, Prepare, WorkerError
from tests.fakes.lab import SPACE
from tests.fakes.scripted_worker import make_facts

RATE = SPACE["learning_rate"]


@pytest.fixture
def is_untouched(tmp_path):
    """Remember what lies below a folder, and tell whether it still is all."""
    (tmp_path / "there").mkdir()
    (tmp_path / "there" / "file.txt").write_text("mine")

    def listing():
        return sorted((str(path), path.is_file()) for path in tmp_path.rglob("*"))

    before = listing()
    return lambda: listing() == before


@pytest.mark.parametrize("kind", [DataError, ModelError, UsageError])
def test_bad_data_or_model_creates_nothing(bare_lab, is_untouched, kind):
    message = "column `text` is missing; there is `review`."
    bare_lab.script.setup_errors[Prepare] = WorkerError(
        kind=kind.__name__, message=message, traceback=""
    )
    with pytest.raises(kind, match="column `text` is missing") as error:
        bare_lab.search()
    assert type(error.value) is kind
    assert str(error.value) == message
    assert is_untouched()
    assert all(worker.is_killed for worker in bare_lab.script.workers)


def test_crash_of_the_worker_creates_nothing(bare_lab, is_untouched):
    bare_lab.script.setup_errors[Prepare] = WorkerError(
        kind="RuntimeError", message="boom", traceback="Traceback: here"
    )
    with pytest.raises(SearchFailedError, match=r"(?s)RuntimeError: boom.*Traceback: here"):
        bare_lab.search()
    assert is_untouched()


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"space": "text_clasification"}, "Did you mean `text_classification`"),
        ({"space": "no/such/space.yaml"}, "There is no file"),
        ({"space": {"learning_rate": {"low": 1.0, "high": 1e-5}}}, "learning_rate"),
        ({"storage": "nonsense"}, "is no database URL"),
        ({"storage": "oracle://host/db"}, "oracle"),
        ({"storage": "sqlite:///{there}/file.txt"}, "file is not a database"),
        ({"storage": "sqlite:///{there}/file.txt/studies.db"}, "is no folder"),
        ({"storage": "postgresql://me:hunter2@localhost:1/db"}, "failed"),
        ({"output": "{there}/file.txt"}, "is no folder"),
        ({"output": "{there}/file.txt/below"}, "is no folder"),
        ({"output": "{there}"}, "holds other files"),
    ],
)
def test_bad_input_is_met_before_data_is_read_and_creates_nothing(
    bare_lab, is_untouched, tmp_path, changes, said
):
    there = str(tmp_path / "there")
    values = {
        key: value.replace("{there}", there) if isinstance(value, str) else value
        for key, value in changes.items()
    }
    with pytest.raises(UsageError, match=said) as error:
        bare_lab.search(**values)
    assert error.value.exit_code == 2
    assert "hunter2" not in str(error.value)
    assert bare_lab.script.workers == [], "nothing slow was started"
    assert is_untouched()


def test_space_that_does_not_fit_the_model_creates_nothing(bare_lab, is_untouched):
    space = {
        "freezing": {"choices": ["bottom_layers"], "default": "bottom_layers"},
        "frozen_layers": {
            "low": 4,
            "high": "num_layers - 1",
            "default": 4,
            "when": {"freezing": "bottom_layers"},
        },
    }
    with pytest.raises(ConfigError, match="empty for this model"):
        bare_lab.search(space=space)
    assert is_untouched()


def test_database_of_an_older_optuna_is_refused_before_data_is_read(lab):
    with sqlite3.connect(lab.database_file) as connection:
        connection.execute("UPDATE alembic_version SET version_num = 'v0.9.0.a'")
    connection.close()
    with pytest.raises(StorageError, match="older Optuna"):
        lab.search()
    assert lab.script.workers == []


def test_empty_database_file_of_the_user_s_is_used(bare_lab):
    bare_lab.database_file.parent.mkdir()
    bare_lab.database_file.touch()
    bare_lab.search(trials=1)
    assert bare_lab.states() == ["COMPLETE"]


def test_study_of_plain_optuna_is_left_alone(lab):
    storage = f"sqlite:///{lab.database_file}"
    optuna.create_study(study_name="demo", storage=storage)
    with pytest.raises(StorageError, match="demo"):
        lab.search()
    assert lab.script.workers == []
    assert not lab.files.path.exists()


def test_new_study_is_stored_with_all_that_defines_it(lab):
    lab.search(origins={"seed": "option"}, trials=0)
    record = lab.store().record
    assert (record.name, record.objective) == ("demo", "f1_macro")
    assert record.config.output == str(lab.files.path)
    assert record.config.storage is None, "a URL may hold a password"
    assert record.facts == make_facts()
    assert record.origins == {"seed": "option"}
    assert [p["name"] for p in record.space["parameters"]] == list(SPACE)
    assert lab.listener.facts == [(make_facts(), False)]
    assert lab.listener.phrases == ["reading data and model", "opening the workers"]


def test_settings_of_a_program_say_so(lab):
    lab.search(trials=0)
    origins = lab.store().record.origins
    assert set(origins.values()) == {"program"}
    assert "seed" in origins


def test_space_that_searches_the_model_prepares_all_of_them(lab):
    model = {"choices": ["one", "two"], "default": "one"}
    lab.search(trials=0, space={**SPACE, "model": model})
    lab.search(
        trials=0, name="fixed", output=str(lab.folder / "2"), space={**SPACE, "model": "one"}
    )
    prepared = [r.checkpoints for r in lab.script.requests if isinstance(r, Prepare)]
    assert prepared == [("one", "two"), ("one",)]


CHANGED = {
    "objective: stored `f1_macro`, now `accuracy`": {"objective": "accuracy"},
    "seed: stored `0`, now `1`": {"seed": 1},
    "model.checkpoint: stored `tiny`, now `large`": {"model": ModelConfig(checkpoint="large")},
    "data.text: stored `text`, now `one, two`": {
        "data": DataConfig(path="rows.csv", text=("one", "two"))
    },
    "data.class_weights: stored `none`, now `balanced`": {
        "data": DataConfig(path="rows.csv", class_weights="balanced")
    },
    "training.validations_per_epoch: stored `2`, now `5`": {"validations_per_epoch": 5},
}


@pytest.mark.parametrize(("said", "changes"), CHANGED.items(), ids=list(CHANGED))
def test_differing_study_is_refused_with_both_values(lab, said, changes):
    lab.search(trials=1)
    before = lab.trials(), lab.store().record
    with pytest.raises(StudyExistsError, match="Study `demo` exists and differs") as error:
        lab.search(trials=5, **changes)
    assert f"  {said}\n" in str(error.value)
    assert "another --name" in str(error.value)
    assert (lab.trials(), lab.store().record) == before


def test_all_differences_are_listed(lab):
    lab.search(trials=1)
    changed = {"train": "0" * 24, "validation": "da7" * 8, "test": "7e5" * 8}
    lab.script.facts = make_facts(
        split_fingerprints=changed, labels=("bad", "fine"), weights_hash="cd" * 32, max_length=8
    )
    with pytest.raises(StudyExistsError) as error:
        lab.search(seed=3, objective="mcc")
    lines = [line.strip() for line in str(error.value).splitlines()[1:-1]]
    assert [line.split(":")[0] for line in lines] == [
        "objective",
        "seed",
        "labels",
        "data, train split",
        "weights of tiny",
        "max_length of tiny",
    ]
    assert (
        "stored 100 rows with fingerprint 7a17a17a17a1, now 100 rows with 000000000000" in lines[3]
    )


def test_budget_sampler_pruner_and_workers_may_change(lab):
    lab.search(trials=1)
    lab.search(trials=2, sampler="random", pruner="median", workers=2, keep_checkpoints=1)
    config = lab.store().record.config
    assert (config.budget.trials, config.sampler, config.pruner) == (2, "random", "median")
    assert (config.workers, config.training.keep_checkpoints) == (2, 1)
    assert lab.listener.facts[-1] == (make_facts(), True)


def test_a_smaller_activation_cache_is_taken_over(lab):
    lab.search(trials=1)
    lab.search(trials=1, activation_cache_gib=0.5)
    assert lab.store().record.config.training.activation_cache_gib == 0.5


def test_data_may_move(lab):
    lab.search(trials=1)
    lab.search(trials=1, data=DataConfig(path="elsewhere.csv"))
    assert lab.store().record.config.data.path == "elsewhere.csv"


def test_appended_choices_and_widened_ranges_are_stored(lab):
    small = {"learning_rate": RATE, "batch_size": {"choices": [8, 16], "default": 16}, "epochs": 1}
    lab.search(trials=2, space=small, pruner="none")
    grown = {
        "learning_rate": {**RATE, "low": 1e-6},
        "batch_size": {"choices": [8, 16, 32], "default": 16},
        "epochs": 1,
    }
    lab.search(trials=4, space=grown, pruner="none")
    for trial in [*lab.trials(), *lab.optuna().trials]:
        assert trial.distributions["learning_rate"] == FloatDistribution(1e-6, 1e-1, log=True)
        assert trial.distributions["batch_size"] == CategoricalDistribution([8, 16, 32])
    assert lab.states() == ["COMPLETE"] * 4


def test_space_that_shrinks_proposes_less_and_stores_the_union(lab):
    lab.search(trials=1)
    narrow = {**SPACE, "learning_rate": {**RATE, "low": 1e-4, "high": 2e-4}}
    lab.search(trials=4, space=narrow, pruner="none")
    rates = [trial.params["learning_rate"] for trial in lab.trials()[1:]]
    assert all(1e-4 <= rate <= 2e-4 for rate in rates)
    stored = {str(trial.distributions["learning_rate"]) for trial in lab.trials()}
    assert stored == {str(FloatDistribution(1e-5, 1e-1, log=True))}


def test_default_recipe_of_a_study_whose_space_was_fixed_since_has_the_fixed_value(lab):
    """The stored union still searches the parameter; the recipe is that of the space now."""
    lab.search(trials=0)
    lab.search(trials=1, space={**SPACE, "dropout": 0.4})
    (trial,) = lab.trials()
    assert trial.hyperparameters["dropout"] == 0.4


def test_space_that_changes_its_kind_is_refused(lab):
    lab.search(trials=1)
    linear = {**SPACE, "learning_rate": {**RATE, "log": False}}
    with pytest.raises(ConfigError, match="learning_rate"):
        lab.search(trials=2, space=linear)
    assert lab.states() == ["COMPLETE"]


def test_folder_of_another_study_is_refused(lab):
    lab.search(trials=1)
    lab.script.workers.clear()
    with pytest.raises(StudyExistsError, match="belongs to another study"):
        lab.search(name="other")
    assert lab.script.workers == []
    assert lab.states() == ["COMPLETE"]


def test_study_of_one_name_in_another_database_does_not_get_its_folder(lab, tmp_path):
    lab.search(trials=1)
    with pytest.raises(StudyExistsError, match="one of the same name in another database"):
        lab.search(storage=f"sqlite:///{tmp_path}/other.db")
    assert not (tmp_path / "other.db").exists()


def test_study_keeps_its_folder_when_none_is_given(lab):
    lab.search(trials=1)
    lab.search(trials=2, output=None)
    assert lab.store().record.config.output == str(lab.files.path)
    assert lab.files.trial(0).is_dir()


def test_study_whose_files_are_gone_goes_on(lab):
    lab.search(trials=1)
    shutil.rmtree(lab.files.path)
    lab.search(trials=2, pruner="none")
    assert lab.states() == ["COMPLETE", "COMPLETE"]
    assert lab.files.trial(1).is_dir()


def test_second_supervisor_is_refused_and_changes_nothing(lab):
    lab.search(trials=1)
    before = lab.trials(), lab.store().record
    with lab.store().lock(lab.files.path), pytest.raises(StudyLockedError, match="process"):
        lab.search(trials=5)
    assert (lab.trials(), lab.store().record) == before
    assert all(worker.is_closed for worker in lab.script.workers)


def test_second_supervisor_during_a_search_is_refused(lab):
    refused = []

    def rival(spec, index):
        if index == 0:
            lab.script.on_validation = lambda spec, index: None
            with pytest.raises(StudyLockedError) as error:
                lab.search(trials=9)
            refused.append(str(error.value))

    lab.script.on_validation = rival
    outcome = lab.search(trials=1)
    assert len(refused) == 1
    assert outcome.stop_reason is StopReason.TRIALS
    assert lab.states() == ["COMPLETE"]


def test_failure_to_keep_the_data_leaves_a_study_that_goes_on(lab):
    lab.script.setup_errors[Keep] = WorkerError(
        kind="OSError", message="No space left on device", traceback=""
    )
    with pytest.raises(SearchFailedError, match="No space left"):
        lab.search(trials=1)
    lab.script.setup_errors.clear()
    lab.search(trials=1)
    assert lab.states() == ["COMPLETE"]
    assert [run.ended_reason for run in lab.store().runs()] == ["failed", "trials"]


def test_database_is_closed_after_a_search(lab, monkeypatch):
    closed = []
    database_type = type(open_storage(lab.url, create=False))
    real = database_type.close
    monkeypatch.setattr(database_type, "close", lambda self: [closed.append(self), real(self)])
    lab.search(trials=0)
    assert len(closed) == 1
    with pytest.raises(StudyExistsError):
        lab.search(seed=1)
    assert len(closed) == 2


@pytest.mark.parametrize(("first", "per_epoch"), [({"validations_per_epoch": 5}, 5), ({}, 0.5)])
def test_auto_goes_on_with_the_validations_of_the_study(lab, first, per_epoch):
    lab.script.facts = dataclasses.replace(make_facts(), validations_per_epoch=per_epoch)
    lab.search(trials=1, **first)
    lab.script.facts = dataclasses.replace(make_facts(), validations_per_epoch=1.0)
    lab.search(trials=2)
    assert lab.store().record.facts.validations_per_epoch == per_epoch
    opened = [request for request in lab.script.requests if isinstance(request, Open)][-1]
    assert opened.facts.validations_per_epoch == per_epoch


def test_study_from_before_there_was_auto_goes_on(lab):
    lab.search(trials=1, validations_per_epoch=2)
    with sqlite3.connect(lab.database_file) as connection:
        rows = connection.execute(
            "SELECT study_user_attribute_id, value_json FROM study_user_attributes"
        ).fetchall()
        old = [(re.sub(r', "validations_per_epoch": [^,}]+', "", text), key) for key, text in rows]
        assert sum(text != new for (_, text), (new, _) in zip(rows, old, strict=True)) == 2
        connection.executemany(
            "UPDATE study_user_attributes SET value_json = ? WHERE study_user_attribute_id = ?", old
        )
    connection.close()
    lab.script.facts = dataclasses.replace(make_facts(), validations_per_epoch=1.0)
    lab.search(trials=2, pruner="none")
    assert lab.states() == ["COMPLETE"] * 2
    assert lab.store().record.facts.validations_per_epoch == 2
