"""Which checkpoints stay on disk? Those of the best trials, and of trials that go on."""

from __future__ import annotations

import contextlib
from pathlib import Path

from optuna.trial import TrialState

from automl_ft.config.study import StudyConfig
from automl_ft.files.atomic import remove_leftovers
from automl_ft.search.folder import StudyFolder
from automl_ft.search.ranking import rank_trials
from automl_ft.specs.layout import BEST, LAST
from automl_ft.specs.trial import Outcome, TrialResult
from automl_ft.storage.checkpoints import CheckpointRecord
from automl_ft.storage.store import StudyStore

__all__ = ["Shelf"]


class Shelf:
    """The checkpoints of one study, on disk and in its ledger."""

    def __init__(self, store: StudyStore, folder: StudyFolder, config: StudyConfig) -> None:
        """Store the parts.

        Args:
            store: The study.
            folder: Its folder.
            config: `training.keep_checkpoints` says how many best models are kept.
        """
        self._store = store
        self._folder = folder
        self._keep = config.training.keep_checkpoints

    def tidy(self, result: TrialResult) -> None:
        """Keep what is worth it after a run of a trial, and delete the rest.

        Args:
            result: How the run ended; already stored.
        """
        if result.outcome is Outcome.PAUSED:
            self._note(result.number, result.value, "last", LAST)
        elif result.outcome is Outcome.COMPLETE:
            self._keep_best(result.number, result.value)
            self._drop_surplus()
        else:
            self.drop(result.number)

    def sweep(self) -> None:
        """Tidy up what a killed search left, and trials that the user ended while none ran.

        Call it only under the study's lock.
        """
        remove_leftovers(self._folder.path)
        noted = {checkpoint.trial_number for checkpoint in self._store.checkpoints.all()}
        for trial in self._store.trials():
            folder = self._folder.trial(trial.number)
            if trial.state in (TrialState.PRUNED, TrialState.FAIL):
                if trial.number in noted or folder.exists():
                    self.drop(trial.number)
            elif trial.state is TrialState.COMPLETE and (folder / LAST).exists():
                self._keep_best(trial.number, trial.value)
                self._drop_surplus()

    def drop(self, number: int) -> None:
        """Delete all checkpoints of a trial.

        Args:
            number: The trial.
        """
        self._folder.drop_trial(number)
        self._store.checkpoints.drop(number)

    def _keep_best(self, number: int, value: float | None) -> None:
        """Exchange what a trial goes on from for its best model.

        The old file goes last: while it is there, `sweep` knows that this was not finished.
        """
        self._note(number, value, "best", BEST)
        self._store.checkpoints.drop(number, "last")
        with contextlib.suppress(FileNotFoundError):
            (self._folder.trial(number) / LAST).unlink()

    def _note(self, number: int, value: float | None, kind: str, name: str) -> None:
        path: Path = self._folder.trial(number) / name
        if path.is_file():
            self._store.checkpoints.put(
                CheckpointRecord(
                    trial_number=number,
                    kind=kind,
                    path=path,
                    num_bytes=path.stat().st_size,
                    value=value,
                )
            )

    def _drop_surplus(self) -> None:
        """Delete the models of all but the best trials; small files such as scores stay."""
        ranked = [r.trial.number for r in rank_trials(self._store.trials()) if r.rank is not None]
        kept = set(ranked[: self._keep])
        for checkpoint in self._store.checkpoints.all():
            if checkpoint.kind == "best" and checkpoint.trial_number not in kept:
                with contextlib.suppress(FileNotFoundError):
                    (self._folder.trial(checkpoint.trial_number) / BEST).unlink()
                self._store.checkpoints.drop(checkpoint.trial_number, "best")
