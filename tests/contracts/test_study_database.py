"""What a database of studies must do, on each of the servers that can be had here."""

import dataclasses
import json
import subprocess
import sys
from collections import Counter
from pathlib import Path

import optuna
import pytest
from optuna.distributions import IntDistribution
from optuna.trial import TrialState
from sqlalchemy import create_engine, inspect, text

from automl_ft.errors import StorageError, StudyExistsError, StudyNotFoundError
from automl_ft.storage.checkpoints import CheckpointRecord
from automl_ft.storage.database import open_storage
from automl_ft.storage.studies import StudyDatabase, open_database


def running(store):
    """Add a trial that runs."""
    space = {"epochs": IntDistribution(1, 4)}
    return store.add_trial({"epochs": 2}, space, state=TrialState.RUNNING)


def a_checkpoint(number):
    return CheckpointRecord(
        trial_number=number, kind="best", path=Path("/out/0"), num_bytes=9, value=0.5
    )


def test_created_study_is_loaded_as_it_was(studies, store, record):
    stored = studies.load("demo").record
    assert stored == store.record
    assert stored == dataclasses.replace(
        record, config=dataclasses.replace(record.config, storage=None)
    )


def test_plain_optuna_sees_direction_and_name_of_the_objective(store, other):
    study = optuna.load_study(study_name="demo", storage=other)
    assert study.direction == optuna.study.StudyDirection.MAXIMIZE
    assert study.metric_names == ["f1_macro"]
    assert "automl_ft:config" in study.user_attrs


def test_second_study_of_a_name_is_refused(studies, store, record):
    with pytest.raises(StudyExistsError, match="already is a study `demo`"):
        studies.create(record)
    assert [study.name for study in studies.studies()] == ["demo"]


def test_unknown_study_gets_a_suggestion(studies, store):
    with pytest.raises(StudyNotFoundError, match=r"no study `dmeo` in.*Did you mean `demo`"):
        studies.load("dmeo")


def test_study_of_plain_optuna_is_listed_and_left_alone(studies, other):
    study = optuna.create_study(storage=other, study_name="mine")
    study.add_trial(optuna.create_trial(value=1.0))
    (summary,) = studies.studies()
    assert (summary.name, summary.is_foreign, summary.config) == ("mine", True, None)
    for action in (studies.load, studies.delete):
        with pytest.raises(StorageError, match="plain Optuna"):
            action("mine")
    assert study.best_value == 1.0


def test_summary_counts_trials_by_state_and_has_the_best_value(studies, store):
    for value in (0.25, 0.75, 0.5):
        assert store.finish(running(store), TrialState.COMPLETE, value)
    assert store.finish(running(store), TrialState.PRUNED, 0.99)
    store.add_trial({}, {})
    (summary,) = studies.studies()
    assert summary.num_trials == {
        TrialState.COMPLETE: 3,
        TrialState.PRUNED: 1,
        TrialState.WAITING: 1,
    }
    assert (summary.best_value, summary.objective) == (0.75, "f1_macro")
    assert summary.config.name == "demo"


def test_deleted_study_leaves_no_row(studies, store, record, url):
    number = running(store)
    store.report(number, 8, 0.5)
    store.set_system_attrs(number, {"note": 1})
    store.finish(number, TrialState.COMPLETE, 0.5, {"validation_f1_macro": 0.5})
    store.start_run()
    store.checkpoints.put(a_checkpoint(number))
    kept = studies.create(dataclasses.replace(record, name="kept"))
    kept.finish(running(kept), TrialState.COMPLETE, 0.5)
    kept.start_run()
    before_and_after = [row_counts(url)]
    studies.delete("demo")
    before_and_after.append(row_counts(url))
    studies.delete("kept")
    before_and_after.append(row_counts(url))
    before, after, empty = before_and_after
    assert before["automl_ft_checkpoints"] == 1
    assert (before["automl_ft_runs"], after["automl_ft_runs"]) == (2, 1)
    assert (before["trials"], after["trials"]) == (2, 1)
    assert after["trial_params"] == 1
    assert set(empty) == {"alembic_version", "version_info"}


def row_counts(url) -> Counter:
    database = open_storage(url, create=False)

    def count(connection):
        tables = inspect(connection).get_table_names()
        return Counter(
            {name: connection.scalar(text(f"SELECT COUNT(*) FROM {name}")) for name in tables}
        )

    counts = database.read(count)
    database.close()
    return +counts


def test_study_that_follows_a_deleted_one_starts_at_zero(studies, store, record, other):
    store.start_run()
    store.touch_run(60.0)
    store.checkpoints.put(a_checkpoint(0))
    optuna.delete_study(study_name="demo", storage=other)  # knows nothing of our tables
    again = studies.create(record)
    assert again.active_seconds() == 0
    assert again.checkpoints.all() == []


def test_deleted_study_cannot_be_updated(studies, store, record):
    studies.delete("demo")
    with pytest.raises(StorageError, match="it was deleted in the meantime"):
        store.update_record(space={})


def test_password_is_in_no_row_and_no_repr(studies, store, url):
    number = running(store)
    store.report(number, 8, 0.5)
    store.start_run()
    database = open_storage(url, create=False)

    def everything(connection):
        tables = inspect(connection).get_table_names()
        queries = [text(f"SELECT * FROM {name}") for name in tables]
        return [str(row) for query in queries for row in connection.execute(query)]

    rows = database.read(everything)
    database.close()
    assert len(rows) > 10
    shown = [*rows, repr(studies), repr(store), repr(database), studies.location, store.location]
    assert not [line for line in shown if "hunter2" in line]


def optuna_cli(url, *arguments):
    program = Path(sys.executable).with_name("optuna")
    done = subprocess.run(
        [program, *arguments, "--study-name", "demo", "--storage", url, "--format", "json"],
        capture_output=True,
        text=True,
        check=True,
        timeout=60,
    )
    return json.loads(done.stdout)


def test_optuna_command_reads_the_study(store, url):
    for value in (0.25, 0.75):
        number = running(store)
        store.report(number, 8, value)
        store.finish(number, TrialState.COMPLETE, value, {"validation_f1_macro": value})
    store.add_trial({}, {})
    best = optuna_cli(url, "best-trial")
    assert best["number"] == 1
    assert best["params"] == {"epochs": 2}
    states = [trial["state"] for trial in optuna_cli(url, "trials")]
    assert states == ["COMPLETE", "COMPLETE", "WAITING"]


@pytest.mark.postgresql
def test_empty_database_on_a_server_is_left_empty(postgresql_url):
    server = create_engine(postgresql_url, isolation_level="AUTOCOMMIT")
    with server.connect() as connection:
        connection.execute(text("CREATE DATABASE empty"))
    server.dispose()
    empty = postgresql_url.replace("/postgres?", "/empty?")
    with pytest.raises(StorageError, match="the database holds no studies"):
        open_database(empty)
    engine = create_engine(empty)
    assert inspect(engine).get_table_names() == []
    engine.dispose()


def test_new_database_has_no_studies(url):
    database = open_database(url, create=True)
    assert isinstance(database, StudyDatabase)
    assert database.studies() == []
    with pytest.raises(StudyNotFoundError, match="It holds no study"):
        database.load("demo")
    database.close()
