"""`automl-ft doctor` on real databases; only torch's answer is made up."""

import dataclasses
import json
import sqlite3
import subprocess
from types import SimpleNamespace

import pytest
from optuna.trial import TrialState

from automl_ft.cli import checkup
from automl_ft.storage.studies import open_database

FACTS = {"cores": 2, "threads": 1, "cuda": [], "mps": False}


@pytest.fixture
def torch(monkeypatch):
    """Answer for torch; the dict can be changed by the test."""
    answer = {"facts": dict(FACTS), "code": 0, "stderr": ""}

    def run(command, **options):
        if answer["code"] is None:
            raise subprocess.TimeoutExpired(command, 1)
        stdout = json.dumps(answer["facts"])
        return subprocess.CompletedProcess(command, answer["code"], stdout, answer["stderr"])

    monkeypatch.setattr(checkup.subprocess, "run", run)
    return answer


@pytest.fixture
def study(tmp_path, make):
    """Create a study with two trials in the default database; return its store."""
    database = open_database(f"sqlite:///{tmp_path}/studies/studies.db", create=True)
    config = make.make_config(output=str(tmp_path / "studies" / "demo"))
    store = database.create(dataclasses.replace(make.make_record(), config=config))
    for state in (TrialState.RUNNING, TrialState.WAITING):
        store.add_trial({}, {}, state=state)
    yield store
    database.close()


def findings(ran):
    return [(row["check"], row["state"], row["finding"]) for row in json.loads(ran.out)]


def of(ran, name):
    return [(state, finding) for check, state, finding in findings(ran) if check == name]


def test_without_a_database_all_is_well_and_nothing_is_created(torch, run, tmp_path):
    ran = run("doctor", "--format", "json")
    assert ran.code == 0
    assert of(ran, "database")[0][1].startswith("none yet")
    assert list(tmp_path.iterdir()) == []


def test_versions_and_devices_are_told(torch, run):
    ran = run("doctor", "--format", "json")
    assert "optuna 5" in of(ran, "packages")[0][1]
    assert of(ran, "devices") == [
        ("ok", "cpu: 2 cores, 1 torch thread; no GPU, so trials run here")
    ]


def test_gpus_are_told_with_memory_and_precision(torch, run):
    torch["facts"]["cuda"] = [["H200", 143_000.0, True], ["old", 8192.0, False]]
    torch["facts"]["mps"] = True
    told = [finding for _, finding in of(run("doctor", "--format", "json"), "devices")]
    assert told[:3] == [
        "cuda:0: H200, 140 GiB, bf16",
        "cuda:1: old, 8.0 GiB, fp32 only",
        "mps: Apple GPU",
    ]


def test_a_broken_torch_is_a_problem(torch, run):
    torch.update(code=1, stderr="Traceback\nImportError: no libtorch")
    ran = run("doctor", "--format", "json")
    assert ran.code == 1
    assert "ImportError: no libtorch" in of(ran, "devices")[0][1]


def test_a_silent_torch_is_a_problem(torch, run):
    torch["code"] = None
    assert of(run("doctor", "--format", "json"), "devices")[0][0] == "problem"


def test_the_real_torch_answers():
    assert all(check.state == "ok" for check in checkup.check_devices())


def test_a_missing_package_is_a_problem(monkeypatch):
    monkeypatch.setattr(checkup, "_PACKAGES", ("no-such-package",))
    first = next(iter(checkup.check_packages()))
    assert (first.state, first.finding) == (
        "problem",
        "no-such-package is not installed: pip install no-such-package",
    )


def test_a_stale_trial_is_a_problem_until_it_is_mended(torch, run, study):
    before = run("doctor", "--format", "json")
    assert before.code == 1
    assert of(before, "study demo")[0][0] == "problem"
    mended = run("doctor", "demo", "--fix", "--format", "json")
    assert mended.code == 0
    assert of(mended, "study demo")[0][0] == "mended"
    assert [t.state for t in study.trials()] == [TrialState.WAITING] * 2
    assert of(run("doctor", "--format", "json"), "study demo")[0][0] == "ok"


def test_checkpoints_of_no_trial_and_of_pruned_ones_are_deleted(torch, run, study, tmp_path):
    study.finish(0, TrialState.PRUNED)
    trials = tmp_path / "studies" / "demo" / "trials"
    for number in (0, 1, 7):
        (trials / str(number)).mkdir(parents=True)
        (trials / str(number) / "last.pt").write_bytes(b"x" * 2048)
    before = run("doctor", "--format", "json")
    assert (before.code, of(before, "study demo")[0][0]) == (0, "warn")
    assert "4.0 KiB" in of(before, "study demo")[0][1]
    assert "trials 0, 7" in of(before, "study demo")[0][1]
    run("doctor", "--fix")
    assert [path.name for path in trials.iterdir()] == ["1"]


def test_a_study_that_is_being_searched_is_left_alone(torch, run, study, tmp_path):
    with study.lock(tmp_path / "studies" / "demo"):
        ran = run("doctor", "--fix", "--format", "json")
    assert "right now" in of(ran, "study demo")[0][1]
    assert study.trial(0).state is TrialState.RUNNING


def test_a_slow_journal_mode_is_mended(torch, run, study, tmp_path):
    study.recover_stale()
    file = tmp_path / "copy.db"
    with sqlite3.connect(tmp_path / "studies" / "studies.db") as source:
        target = sqlite3.connect(file)
        source.backup(target)
    source.close()
    target.execute("PRAGMA journal_mode=DELETE")
    target.close()
    words = ("doctor", "--storage", f"sqlite:///{file}", "--format", "json")
    assert "journal mode delete" in of(run(*words), "database")[1][1]
    assert of(run(*words, "--fix"), "database")[1][0] == "mended"
    assert of(run(*words), "database")[1] == ("ok", "journal mode WAL")


def test_a_file_that_is_no_database_is_a_problem(torch, run, tmp_path):
    (tmp_path / "x.db").write_text("nothing")
    ran = run("doctor", "--storage", "sqlite:///x.db", "--format", "json")
    assert (ran.code, of(ran, "database")[0][0]) == (1, "problem")


def test_a_study_that_is_not_there_is_refused(torch, run, study):
    ran = run("doctor", "dmeo")
    assert ran.code == 2
    assert "Did you mean `demo`?" in ran.err


@pytest.mark.parametrize(
    ("free", "state"), [(2**40, "ok"), (2 * 2**30, "warn"), (2**20, "problem")]
)
def test_little_free_space_is_told(monkeypatch, tmp_path, free, state):
    usage = type("Usage", (), {"free": free})
    monkeypatch.setattr(checkup.shutil, "disk_usage", lambda path: usage)
    assert checkup.check_disk(tmp_path / "not" / "yet").state == state


def test_the_table_says_each_state_in_a_word(torch, run, study):
    out = run("doctor").out
    assert "problem" in out
    assert "ok" in out


class FakeDatabase:
    """Answers pragmas as a damaged SQLite file on a share without WAL would."""

    def __init__(self, file, answers):
        self.address = SimpleNamespace(file=file, shown="sqlite:///x.db")
        self.answers = answers
        self.asked = []

    def read(self, action):
        def execute(statement):
            self.asked.append(statement)
            return SimpleNamespace(scalar=lambda: self.answers[statement])

        return action(SimpleNamespace(exec_driver_sql=execute))


def test_a_damaged_file_is_a_problem_and_a_journal_that_stays_slow_a_warning():
    answers = {
        "PRAGMA quick_check": "row 7 missing",
        "PRAGMA journal_mode": "delete",
        "PRAGMA journal_mode=WAL": "delete",
    }
    checks = list(checkup.check_database(FakeDatabase("x.db", answers), fix=True))
    assert [check.state for check in checks] == ["ok", "problem", "warn"]
    assert "row 7 missing" in checks[1].finding


def test_a_server_is_not_asked_for_pragmas():
    database = FakeDatabase(None, {})
    assert [check.state for check in checkup.check_database(database, fix=True)] == ["ok"]
    assert database.asked == []
