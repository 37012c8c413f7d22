"""Records, snapshots and a fake of the Python interface, for the command line's tests."""

from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from types import SimpleNamespace

import pytest
from optuna.trial import TrialState

import automl_ft.api
from automl_ft.cli.main import main
from automl_ft.config.study import DataConfig, ModelConfig, StudyConfig
from automl_ft.search.events import RunningTrial, SearchSnapshot, StopReason
from automl_ft.search.ranking import best_trial, rank_trials
from automl_ft.search.run import SearchOutcome
from automl_ft.search.verdict import Verdict
from automl_ft.specs.facts import CheckpointFacts, DataFacts, DataNote, StudyFacts
from automl_ft.specs.failure import FailureKind, TrialFailure
from automl_ft.specs.trial import Outcome, TrialCost, TrialResult
from automl_ft.storage.records import StudyRecord, TrialRecord

PARAMS = {"learning_rate": 3.123e-5, "batch_size": 16, "freezing": "none"}
MOMENT = datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)


def make_trial(number=0, **changes):
    values = {
        "number": number,
        "state": TrialState.COMPLETE,
        "params": PARAMS,
        "distributions": {},
        "hyperparameters": {**PARAMS, "epochs": 3, "dropout": None},
        "value": 0.8432,
        "intermediate_values": {100: 0.5, 200: 0.8432},
        "metrics": {
            "validation_accuracy": 0.9,
            "validation_f1/good": 0.91,
            "validation_precision/good": 0.92,
            "validation_recall/good": 0.93,
        },
        "seconds": 41.0,
        "examples": 12_000,
        "peak_memory_mib": 900.0,
        "failure": None,
        "seed": 7,
        "origin": "sampler" if number else "default",
        "rerun_of": None,
        "best_step": 200,
        "started": MOMENT,
        "ended": MOMENT,
        "user_attrs": {},
        "system_attrs": {},
    }
    return TrialRecord(**{**values, **changes})


def make_failed_trial(number=2):
    failure = TrialFailure(
        kind=FailureKind.OUT_OF_MEMORY, message="no memory left", traceback="Traceback: here"
    )
    return make_trial(
        number,
        state=TrialState.FAIL,
        value=None,
        intermediate_values={},
        metrics={},
        best_step=None,
        failure=failure,
    )


def make_facts(**data):
    facts = {
        "labels": ("bad", "good"),
        "num_examples": {"train": 1234, "validation": 400, "test": 0},
        "class_counts": {},
        "fingerprint": "f",
        "split_fingerprints": {},
        "notes": (DataNote(kind="empty_text", message="3 texts are empty.", count=3),),
    }
    checkpoint = CheckpointFacts(
        checkpoint="minilm-l6",
        revision="",
        weights_hash="w",
        architecture="bert",
        num_layers=6,
        num_parameters=22_700_000,
        max_length=128,
        num_truncated=1,
        num_tokens=9,
    )
    return StudyFacts(
        data=DataFacts(**{**facts, **data}), checkpoints=(checkpoint,), device="cpu", versions={}
    )


def make_config(**changes):
    values = {
        "name": "demo",
        "model": ModelConfig(checkpoint="minilm-l6"),
        "data": DataConfig(path="docstrings"),
    }
    return StudyConfig(**{**values, **changes})


def make_record():
    return StudyRecord(
        name="demo",
        config=make_config(),
        facts=make_facts(),
        space={},
        objective="f1_macro",
        created_at=MOMENT,
    )


def make_snapshot(**changes):
    running = RunningTrial(
        number=7,
        worker=0,
        params=PARAMS,
        curve=(0.3, 0.5, 0.71),
        fraction=0.62,
        train_loss=0.412,
        seconds=20.0,
        seconds_left=12.0,
    )
    values = {
        "study_name": "demo",
        "objective": "f1_macro",
        "counts": {"complete": 4, "pruned": 2, "failed": 1, "running": 1, "waiting": 0},
        "num_configurations": 8,
        "total_configurations": 12,
        "running": (running,),
        "best_number": 3,
        "best_value": 0.8611,
        "best_params": PARAMS,
        "default_value": 0.8432,
        "active_seconds": 72.0,
        "timeout_seconds": 240.0,
    }
    return SearchSnapshot(**{**values, **changes})


def make_result(number=3, outcome=Outcome.COMPLETE, value=0.8611, failure=None):
    return TrialResult(
        number=number,
        outcome=outcome,
        value=value,
        best_step=1,
        metrics={},
        evaluations=(),
        cost=TrialCost(seconds=41.0, examples=1000, peak_memory_mib=900.0),
        failure=failure,
    )


def failed_result(number=5, message="no memory left\nsecond line"):
    failure = TrialFailure(kind=FailureKind.OUT_OF_MEMORY, message=message)
    return make_result(number, Outcome.FAILED, None, failure)


@dataclass
class FakeStudy:
    """Stands for `automl_ft.api.Study`; notes what it was asked to do."""

    trials: list = field(default_factory=lambda: [make_trial(0), make_trial(1, value=0.8611)])
    folder: Path = Path("/nowhere")
    name: str = "demo"
    record: StudyRecord = field(default_factory=make_record)
    done: list = field(default_factory=list)

    @property
    def best_trial(self):
        return best_trial(self.trials)

    def ranking(self):
        return rank_trials(self.trials)

    def verdict(self):
        if len(self.trials) < 2:
            return None
        return Verdict(
            best=1,
            default=0,
            best_value=0.8611,
            default_value=0.8432,
            low=0.01,
            high=0.03,
            objective="f1_macro",
        )

    def enqueue(self, params):
        self.done.append(("enqueue", params))
        return 9

    def rerun(self, number):
        self.done.append(("rerun", number))
        return 9

    def export(self, to, *, trial=None, force=False):
        self.done.append(("export", to, trial, force))
        return Path(to)

    def delete(self):
        self.done.append(("delete",))


@dataclass
class FakeApi:
    """Stands for the module `automl_ft.api`; `during` plays the search to the listener."""

    study: FakeStudy = field(default_factory=FakeStudy)
    stop_reason: StopReason = StopReason.TRIALS
    folder: Path | None = Path("/nowhere")
    during: object = None
    loaded: list = field(default_factory=list)
    searched: list = field(default_factory=list)
    summaries: list = field(default_factory=list)

    def search(self, config, *, origins, listener):
        self.searched.append((config, origins))
        self.study.name = config.name
        if self.during is not None:
            self.during(listener)
        return SearchOutcome(
            study_name=config.name, stop_reason=self.stop_reason, storage=None, folder=self.folder
        )

    def load_study(self, name, *, storage=None):
        self.loaded.append((name, storage))
        return self.study

    def list_studies(self, storage=None):
        self.loaded.append(storage)
        return self.summaries


@pytest.fixture
def api(monkeypatch):
    fake = FakeApi()
    for name in ("search", "load_study", "list_studies"):
        monkeypatch.setattr(automl_ft.api, name, getattr(fake, name))
    return fake


@dataclass(frozen=True)
class Ran:
    """What a command left: exit code, stdout, stderr."""

    code: int
    out: str
    err: str


@pytest.fixture
def run(capsys, monkeypatch, tmp_path):
    """Run a command line in an empty folder, with no database in the environment."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "80")
    monkeypatch.delenv("AUTOML_FT_STORAGE", raising=False)

    def call(*args):
        code = main([str(arg) for arg in args])
        captured = capsys.readouterr()
        return Ran(code, captured.out, captured.err)

    return call


@pytest.fixture
def make():
    """The builders above, for test files."""
    functions = (
        make_trial,
        make_failed_trial,
        make_facts,
        make_config,
        make_record,
        make_snapshot,
        make_result,
        failed_result,
    )
    return SimpleNamespace(**{function.__name__: function for function in functions})
