"""The Python interface: what the command line does, for programs.

import automl_ft
from automl_ft import DataConfig, ModelConfig, StudyConfig

config = StudyConfig(
    name="reviews",
    model=ModelConfig(checkpoint="distilbert/distilbert-base-uncased"),
    data=DataConfig(path="reviews.csv", text=("review",), label="stars"),
)
automl_ft.search(config)
study = automl_ft.load_study("reviews")
study.export("best/")
"""

from __future__ import annotations

import contextlib
from collections.abc import Mapping
from pathlib import Path

from automl_ft.export.importances import hyperparameter_importances
from automl_ft.export.service import export_trial
from automl_ft.search.enqueue import enqueue, rerun
from automl_ft.search.folder import StudyFolder, study_folder
from automl_ft.search.ranking import RankedTrial, best_trial, rank_trials
from automl_ft.search.run import run_search
from automl_ft.search.verdict import Verdict, give_verdict
from automl_ft.specs.trial import ParamValue
from automl_ft.storage.records import StudyRecord, TrialRecord
from automl_ft.storage.store import StudyStore
from automl_ft.storage.studies import StudyDatabase, StudySummary, open_database

__all__ = ["Study", "list_studies", "load_study", "search"]

search = run_search
"""What `automl_ft.search` calls."""


def load_study(name: str, *, storage: str | None = None) -> Study:
    """Load a study from its database.

    Args:
        name: The study.
        storage: SQLAlchemy URL; None takes AUTOML_FT_STORAGE, else studies/studies.db.

    Returns:
        The study.

    Raises:
        StudyNotFoundError: There is none of that name.
        StorageError: The database cannot be read.
    """
    with contextlib.ExitStack() as on_failure:
        database = on_failure.enter_context(contextlib.closing(open_database(storage)))
        store = database.load(name)
        on_failure.pop_all()
    return Study(database, store)


def list_studies(storage: str | None = None) -> list[StudySummary]:
    """List the studies of a database.

    Args:
        storage: SQLAlchemy URL; None takes AUTOML_FT_STORAGE, else studies/studies.db.

    Returns:
        The studies, ours and those of plain Optuna, oldest first.

    Raises:
        StorageError: The database cannot be read.
    """
    with contextlib.closing(open_database(storage)) as database:
        return database.studies()


class Study:
    """A stored study: what it found, and what can be done with it."""

    def __init__(self, database: StudyDatabase, store: StudyStore) -> None:
        """Store the parts; `load_study` makes it.

        Args:
            database: The open database.
            store: The study in it.
        """
        self._database = database
        self._store = store

    def __repr__(self) -> str:
        return f"Study({self.name!r}, {self._store.location!r})"

    @property
    def name(self) -> str:
        """Its name."""
        return self._store.name

    @property
    def location(self) -> str:
        """The database's URL without its password."""
        return self._store.location

    @property
    def record(self) -> StudyRecord:
        """Its configuration, facts and search space."""
        return self._store.record

    @property
    def store(self) -> StudyStore:
        """The study in the database, for tools that mend it."""
        return self._store

    @property
    def trials(self) -> list[TrialRecord]:
        """All its trials, as they are now, by number."""
        return self._store.trials()

    @property
    def best_trial(self) -> TrialRecord | None:
        """The best complete trial; None before one is complete."""
        return best_trial(self.trials)

    @property
    def folder(self) -> Path:
        """The folder of its checkpoints and its copy of the data."""
        return self._files.path

    @property
    def _files(self) -> StudyFolder:
        return study_folder(self.record.config, self.record)

    def ranking(self) -> list[RankedTrial]:
        """Rank its trials.

        Returns:
            Every trial once, the best first.
        """
        return rank_trials(self.trials)

    def verdict(self) -> Verdict | None:
        """Compare the best trial with the default recipe.

        Returns:
            The verdict; None before both are there.
        """
        return give_verdict(self.record, self.trials, self._files)

    def importances(self) -> dict[str, float]:
        """Estimate how much each hyperparameter mattered (PED-ANOVA, Optuna's default).

        Returns:
            Shares by name, the largest first, that add up to 1; empty where too few trials are
            complete to say anything.
        """
        shares, _ = hyperparameter_importances(self.trials)
        return shares

    def enqueue(self, params: Mapping[str, ParamValue]) -> int:
        """Put a configuration next in line.

        Args:
            params: Some hyperparameters of its space; the others take their defaults.

        Returns:
            The new trial's number.

        Raises:
            ConfigError: With every problem of the values.
        """
        return enqueue(self._store, params)

    def rerun(self, number: int) -> int:
        """Put a trial's configuration in line once more, with another seed.

        Args:
            number: The trial.

        Returns:
            The new trial's number.

        Raises:
            UsageError: There is no such trial, or it is not finished.
        """
        return rerun(self._store, number)

    def export(self, to: str | Path, *, trial: int | None = None, force: bool = False) -> Path:
        """Export a trial: configuration, model, training script and model card.

        Args:
            to: The folder to write.
            trial: Which trial; None for the best one.
            force: Whether an existing folder is replaced.

        Returns:
            The folder.

        Raises:
            ExportError: There is nothing to export, or the folder is in the way.
        """
        verdict = self.verdict()
        return export_trial(
            store=self._store,
            folder=self.folder,
            to=Path(to),
            number=trial,
            force=force,
            verdict_text=None if verdict is None else verdict.text,
        )

    def delete(self) -> None:
        """Delete the study with its checkpoints, its copy of the data and its caches.

        Raises:
            StudyLockedError: A search of it is running.
        """
        files = self._files
        with self._store.lock(files.path):
            self._database.delete(self.name)
            files.delete(self.record.created_at.isoformat())

    def close(self) -> None:
        """Give the database's connections back."""
        self._database.close()
