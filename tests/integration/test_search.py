"""The main job on real processes, real training and a real database: run, killed, gone on with."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import sqlite3
import subprocess
import sys
import time
from pathlib import Path

import pytest

import automl_ft
from automl_ft.search.events import SilentListener, StopReason
from automl_ft.search.run import run_search
from automl_ft.search.team import start_process
from tests.contracts.conftest import postgresql_url  # noqa: F401 - a fixture
from tests.fakes.tiny_study import read_study, write_model, write_rows, write_study

COMMAND = [sys.executable, "-m", "automl_ft.cli.main"]
LENGTH = 20
"""Validations of one trial."""


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    """A folder with a tiny model and a few rows."""
    folder = tmp_path_factory.mktemp("source")
    write_model(folder / "model")
    write_rows(folder / "rows.csv")
    return folder


@pytest.fixture(scope="module")
def whole(source, tmp_path_factory):
    """A study that nothing interrupted, and how it ended."""
    home = tmp_path_factory.mktemp("whole")
    file = study_in(home, source)
    outcome = automl_ft.search(read_study(file))
    study = automl_ft.load_study("tiny", storage=read_study(file).storage)
    yield outcome, study
    study.close()


def study_in(home: Path, source: Path, **changes) -> Path:
    """Write a study file that keeps everything below a folder."""
    url = f"sqlite:///{home}/studies.db"
    return write_study(
        home,
        model=str(source / "model"),
        data={"path": str(source / "rows.csv"), "test": None},
        **{"storage": url, "output": str(home / "files"), **changes},
    )


@pytest.fixture
def load():
    """Load a study and close it after the test."""
    with contextlib.ExitStack() as stack:

        def open_study(file):
            study = automl_ft.load_study("tiny", storage=read_study(file).storage)
            stack.callback(study.close)
            return study

        yield open_study


@pytest.fixture
def start():
    """Start a search by the command line; whatever is left of it ends with the test."""
    started = []

    def run(file):
        started.append(
            subprocess.Popen(
                [*COMMAND, "search", str(file)],
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                text=True,
                cwd=file.parent,
            )
        )
        return started[-1]

    yield run
    for process in started:
        process.kill()
        process.communicate()


def wait_for_validations(file: Path, process: subprocess.Popen, number: int, count: int) -> None:
    """Wait until a running trial has so many validations."""
    query = (
        "SELECT COUNT(*) FROM trial_intermediate_values JOIN trials USING (trial_id)"
        " WHERE number = ? AND state = 'RUNNING'"
    )
    deadline = time.monotonic() + 60
    database = file.parent / "studies.db"
    while time.monotonic() < deadline:
        assert process.poll() is None, process.communicate()
        with contextlib.suppress(sqlite3.Error):
            uri = f"file:{database}?mode=ro"
            with contextlib.closing(sqlite3.connect(uri, uri=True, timeout=1)) as connection:
                if connection.execute(query, (number,)).fetchone()[0] >= count:
                    return
        time.sleep(0.01)
    raise AssertionError(f"trial {number} did not get to validation {count}")


def children(pid: int) -> list[int]:
    """Return the child processes of a process; none where /proc does not tell."""
    try:
        return [int(p) for p in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
    except OSError:
        return []


def is_running(pid: int) -> bool:
    """Whether a process is there and no zombie."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def assert_same(study, expected) -> None:
    """Trials have the same configuration, curve, value and scores; only seconds differ."""
    for trial, other in zip(study.trials, expected.trials, strict=True):
        assert (trial.number, trial.state, trial.params) == (
            other.number,
            other.state,
            other.params,
        )
        assert trial.intermediate_values == other.intermediate_values
        assert (trial.value, trial.best_step) == (other.value, other.best_step)
        assert trial.examples == other.examples
        assert trial.metrics == other.metrics


def test_search_ends_with_a_ranking_models_and_a_verdict(whole):
    outcome, study = whole
    assert outcome.stop_reason is StopReason.TRIALS
    assert [trial.state.name for trial in study.trials] == ["COMPLETE", "COMPLETE"]
    assert [trial.origin for trial in study.trials] == ["default", "sampler"]
    assert all(len(trial.intermediate_values) == LENGTH for trial in study.trials)
    assert study.best_trial.value > 0.9, "one word of each row decides its label"
    assert [ranked.rank for ranked in study.ranking()] == [1, 2]
    for number in (0, 1):
        names = {path.name for path in (study.folder / "trials" / str(number)).iterdir()}
        assert names == {"best.safetensors", "validation_logits.npy"}
    assert "default recipe" in study.verdict().text
    assert study.record.facts.data.num_examples["train"] == 96
    assert 0 < study.trials[0].seconds < study.store.active_seconds()


def test_plain_optuna_opens_the_study(whole):
    _, study = whole
    optuna = [shutil.which("optuna", path=str(Path(sys.executable).parent)) or "optuna"]
    place = ["--storage", study.location, "--study-name", "tiny", "--format", "json"]

    def ask(command):
        done = subprocess.run(
            [*optuna, command, *place], capture_output=True, text=True, check=True, timeout=60
        )
        return json.loads(done.stdout)

    trials, best = ask("trials"), ask("best-trial")
    assert [trial["state"] for trial in trials] == ["COMPLETE", "COMPLETE"]
    assert best["number"] == study.best_trial.number


def test_killed_supervisor_takes_its_worker_along_and_a_rerun_goes_on(
    source, whole, tmp_path, load, start
):
    file = study_in(tmp_path, source)
    process = start(file)
    wait_for_validations(file, process, number=1, count=2)
    workers = children(process.pid)
    process.kill()
    process.wait()
    deadline = time.monotonic() + 10
    while any(map(is_running, workers)) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not any(map(is_running, workers)), "no orphan trains on"

    study = load(file)
    before = study.trials[1]
    assert before.state.name == "RUNNING"
    assert 2 <= len(before.intermediate_values) < LENGTH
    assert automl_ft.search(read_study(file)).stop_reason is StopReason.TRIALS
    assert_same(study, whole[1])
    runs = study.store.runs()
    assert [run.ended_reason for run in runs] == [None, "trials"]
    assert study.trials[1].started > before.started


def test_trial_of_a_killed_worker_goes_on_in_another(source, whole, tmp_path, load):
    file = study_in(tmp_path, source)
    workers = []

    def factory(index, events, log):
        workers.append(start_process(index, events, log))
        return workers[-1]

    class Killer(SilentListener):
        said: list[str] = []

        def changed(self, snapshot):
            second = [trial for trial in snapshot.running if trial.number == 1]
            if len(workers) == 1 and second and len(second[0].curve) >= 2:
                os.kill(workers[0]._process.pid, signal.SIGKILL)

        def message(self, text):
            self.said.append(text)

    outcome = run_search(read_study(file), listener=Killer(), factory=factory)
    assert outcome.stop_reason is StopReason.TRIALS
    assert len(workers) == 2
    assert "killed by signal 9" in Killer.said[0]
    assert_same(load(file), whole[1])
    assert [worker._process.poll() for worker in workers] == [-signal.SIGKILL, 0]
    assert (tmp_path / "files" / "logs" / "worker-1.log").is_file()


def test_ctrl_c_ends_with_the_ranking_so_far_and_a_rerun_goes_on(
    source, whole, tmp_path, load, start
):
    file = study_in(tmp_path, source)
    process = start(file)
    wait_for_validations(file, process, number=1, count=2)
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=60)
    assert process.returncode == 130, err
    assert "Traceback" not in err
    rows = [line.split() for line in out.splitlines()]
    assert any("complete" in [word.lower() for word in row] for row in rows), out
    assert any("paused" in [word.lower() for word in row] for row in rows), out
    study = load(file)
    assert study.trials[1].is_paused

    process = start(file)
    out, err = process.communicate(timeout=60)
    assert process.returncode == 0, err
    assert "default recipe" in out
    assert_same(study, whole[1])


@pytest.mark.postgresql
def test_search_in_postgresql(source, tmp_path, postgresql_url, load):  # noqa: F811
    file = study_in(tmp_path, source, storage=postgresql_url, budget={"trials": 1})
    outcome = automl_ft.search(read_study(file))
    assert outcome.stop_reason is StopReason.TRIALS
    assert "hunter2" not in outcome.storage
    study = load(file)
    assert [trial.state.name for trial in study.trials] == ["COMPLETE"]
    assert study.record.config.storage is None
    study.delete()
    assert not study.folder.exists()
