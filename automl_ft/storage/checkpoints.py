"""Which checkpoints of a study lie on disk, as the database knows it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from sqlalchemy import delete, select

from automl_ft.storage.database import Database
from automl_ft.storage.tables import CHECKPOINTS
from automl_ft.storage.upsert import upsert

__all__ = ["CheckpointRecord", "Checkpoints"]


@dataclass(frozen=True, kw_only=True, slots=True)
class CheckpointRecord:
    """One checkpoint on disk."""

    trial_number: int
    """The trial it belongs to."""
    kind: str
    """`best` or `last`."""
    path: Path
    """The file or folder."""
    num_bytes: int
    """Its size on disk."""
    value: float | None
    """The objective there, where it was validated."""


class Checkpoints:
    """The checkpoints of one study."""

    def __init__(self, database: Database, study_id: int) -> None:
        """Store whose they are.

        Args:
            database: Where the study is.
            study_id: Optuna's id of it.
        """
        self._database = database
        self._study_id = study_id

    def put(self, checkpoint: CheckpointRecord) -> None:
        """Note a checkpoint; an earlier one of its trial and kind is replaced.

        Args:
            checkpoint: The checkpoint, already on disk.

        Raises:
            StorageError: The database fails.
        """
        row = {
            "study_id": self._study_id,
            "trial_number": checkpoint.trial_number,
            "kind": checkpoint.kind,
            "path": str(checkpoint.path),
            "bytes": checkpoint.num_bytes,
            "value": checkpoint.value,
        }
        keys = ("study_id", "trial_number", "kind")
        self._database.write(lambda connection: upsert(connection, CHECKPOINTS, keys, [row]))

    def drop(self, trial_number: int, kind: str | None = None) -> None:
        """Forget a checkpoint that is no longer on disk; one that is not known is fine.

        Args:
            trial_number: The trial.
            kind: `best` or `last`; None for both.

        Raises:
            StorageError: The database fails.
        """
        columns = CHECKPOINTS.c
        statement = delete(CHECKPOINTS).where(
            columns.study_id == self._study_id,
            columns.trial_number == trial_number,
            *([] if kind is None else [columns.kind == kind]),
        )
        self._database.write(lambda connection: connection.execute(statement))

    def all(self) -> list[CheckpointRecord]:
        """Return the checkpoints by trial and kind.

        Returns:
            The checkpoints.

        Raises:
            StorageError: The database fails.
        """
        columns = CHECKPOINTS.c
        query = select(CHECKPOINTS).where(columns.study_id == self._study_id)
        query = query.order_by(columns.trial_number, columns.kind)
        rows = self._database.read(lambda connection: connection.execute(query).all())
        return [
            CheckpointRecord(
                trial_number=row.trial_number,
                kind=row.kind,
                path=Path(row.path),
                num_bytes=row.bytes,
                value=row.value,
            )
            for row in rows
        ]
