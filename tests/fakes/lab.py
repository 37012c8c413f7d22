"""A place to search in: a database, a folder, scripted workers, and a listener that remembers."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import optuna
from optuna.storages import RDBStorage

from automl_ft.config.study import (
    BudgetConfig,
    DataConfig,
    ModelConfig,
    StudyConfig,
    TrainingConfig,
)
from automl_ft.search.events import SearchSnapshot
from automl_ft.search.folder import StudyFolder
from automl_ft.search.run import SearchOutcome, run_search
from automl_ft.specs.facts import StudyFacts
from automl_ft.specs.trial import TrialResult
from automl_ft.storage.records import TrialRecord
from automl_ft.storage.store import StudyStore
from automl_ft.storage.studies import StudyDatabase, open_database
from tests.fakes.scripted_worker import Script

SPACE = {
    "learning_rate": {"low": 1e-5, "high": 1e-1, "log": True, "default": 1e-4},
    "dropout": {"low": 0.0, "high": 0.5, "default": 0.1},
    "epochs": 2,
}

HEAD_ONLY_SPACE = {
    "freezing": "head_only",
    "learning_rate": {"low": 1e-5, "high": 1e-1, "log": True, "default": 1e-4},
    "dropout": {"low": 0.0, "high": 0.5, "default": 0.1},
    "epochs": 2,
}
"""Every trial may be trained together with every other one."""


class Recorder:
    """A `SearchListener` that remembers."""

    def __init__(self) -> None:
        self.phrases: list[str] = []
        self.facts: list[tuple[StudyFacts, bool]] = []
        self.started: list[tuple[int, bool]] = []
        self.results: list[TrialResult] = []
        self.messages: list[str] = []
        self.snapshots: list[SearchSnapshot] = []

    def preparing(self, text: str) -> None:
        self.phrases.append(text)

    def prepared(self, facts: StudyFacts, *, is_resumed: bool) -> None:
        self.facts.append((facts, is_resumed))

    def trial_started(self, snapshot: SearchSnapshot, number: int, *, is_resumed: bool) -> None:
        self.started.append((number, is_resumed))
        self.snapshots.append(snapshot)

    def changed(self, snapshot: SearchSnapshot) -> None:
        self.snapshots.append(snapshot)

    def trial_ended(self, snapshot: SearchSnapshot, result: TrialResult) -> None:
        self.results.append(result)
        self.snapshots.append(snapshot)

    def message(self, text: str) -> None:
        self.messages.append(text)


class Lab:
    """Runs searches on scripted workers in one database."""

    def __init__(self, folder: Path, url: str | None = None) -> None:
        self.folder = folder
        self.database_file = folder / "db" / "studies.db"
        self.url = url or f"sqlite:///{self.database_file}"
        self.script = Script()
        self.listener = Recorder()
        self._open: list[StudyDatabase] = []
        self._storages: list[RDBStorage] = []

    @property
    def files(self) -> StudyFolder:
        """The study's folder."""
        return StudyFolder(self.folder / "files")

    def config(self, **changes: Any) -> StudyConfig:
        """A study of three trials; `trials`, `timeout_seconds`... go to their section."""
        budget: dict[str, Any] = {"trials": 3}
        training: dict[str, Any] = {}
        for section, kind in ((budget, BudgetConfig), (training, TrainingConfig)):
            names = set(kind.__dataclass_fields__) - {"seed"}
            section.update({k: changes.pop(k) for k in list(changes) if k in names})
        values: dict[str, Any] = {
            "name": "demo",
            "model": ModelConfig(checkpoint="tiny"),
            "data": DataConfig(path="rows.csv"),
            "space": SPACE,
            "storage": self.url,
            "output": str(self.files.path),
            **changes,
        }
        return StudyConfig(
            budget=BudgetConfig(**budget), training=TrainingConfig(**training), **values
        )

    def search(self, origins: Mapping[str, str] | None = None, **changes: Any) -> SearchOutcome:
        """Search on scripted workers."""
        return run_search(
            self.config(**changes), origins=origins, listener=self.listener, factory=self.script
        )

    def store(self) -> StudyStore:
        """The study as it is stored now."""
        database = open_database(self.url)
        self._open.append(database)
        return database.load("demo")

    def trials(self) -> list[TrialRecord]:
        """Its trials as they are stored now."""
        return self.store().trials()

    def states(self) -> list[str]:
        """Their states by number."""
        return [trial.state.name for trial in self.trials()]

    def optuna(self) -> optuna.Study:
        """The study as a plain Optuna process sees it."""
        storage = RDBStorage(self.url)
        self._storages.append(storage)
        return optuna.load_study(study_name="demo", storage=storage)

    def close(self) -> None:
        """Give all connections back."""
        for database in self._open:
            database.close()
        for storage in self._storages:
            storage.remove_session()
            storage.engine.dispose()
