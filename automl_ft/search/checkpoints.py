"""Which checkpoints stay on disk? Those of the best trials, and of trials that go on."""

from __future__ import annotations

import contextlib
from pathlib import Path

from automl_ft.config.study import StudyConfig
from automl_ft.search.folder import StudyFolder
from automl_ft.search.ranking import rank_trials
from automl_ft.specs.trial import Outcome, TrialResult
from automl_ft.storage.checkpoints import CheckpointRecord
from automl_ft.storage.store import StudyStore

__all__ = ["BEST_FILE", "LAST_FILE", "Shelf"]

BEST_FILE = "best.safetensors"
"""The best validated model of a trial, as `trial.checkpoint` writes it."""
LAST_FILE = "last.pt"
"""What a trial goes on from."""


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
            self._note(result, "last", LAST_FILE)
        elif result.outcome is Outcome.COMPLETE:
            with contextlib.suppress(FileNotFoundError):
                (self._folder.trial(result.number) / LAST_FILE).unlink()
            self._store.checkpoints.drop(result.number, "last")
            self._note(result, "best", BEST_FILE)
            self._drop_surplus()
        else:
            self.drop(result.number)

    def drop(self, number: int) -> None:
        """Delete all checkpoints of a trial.

        Args:
            number: The trial.
        """
        self._folder.drop_trial(number)
        for kind in ("best", "last"):
            self._store.checkpoints.drop(number, kind)

    def _note(self, result: TrialResult, kind: str, name: str) -> None:
        path: Path = self._folder.trial(result.number) / name
        if path.is_file():
            self._store.checkpoints.put(
                CheckpointRecord(
                    trial_number=result.number,
                    kind=kind,
                    path=path,
                    num_bytes=path.stat().st_size,
                    value=result.value,
                )
            )

    def _drop_surplus(self) -> None:
        """Delete the models of all but the best trials; small files such as scores stay."""
        ranked = [r.trial.number for r in rank_trials(self._store.trials()) if r.rank is not None]
        kept = set(ranked[: self._keep])
        for checkpoint in self._store.checkpoints.all():
            if checkpoint.kind == "best" and checkpoint.trial_number not in kept:
                with contextlib.suppress(FileNotFoundError):
                    (self._folder.trial(checkpoint.trial_number) / BEST_FILE).unlink()
                self._store.checkpoints.drop(checkpoint.trial_number, "best")
