"""What a study has cost: the runs of its supervisor, by the database's clock."""

from __future__ import annotations

import os
import socket
from dataclasses import dataclass
from datetime import UTC, datetime

from sqlalchemy import Connection, func, insert, select, update

from automl_ft.storage.tables import RUNS, UtcNow

__all__ = ["RunRecord", "active_seconds", "end_run", "runs", "start_run", "touch_run"]


@dataclass(frozen=True, kw_only=True, slots=True)
class RunRecord:
    """One run of a study's supervisor."""

    started_at: datetime
    """When it began, by the database's clock, in UTC."""
    touched_at: datetime
    """When it last told its time, by the database's clock, in UTC."""
    active_seconds: float
    """How long it has been working."""
    host: str
    """On which machine."""
    pid: int
    """In which process."""
    ended_reason: str | None
    """Why it ended; None while it runs, or if it was killed."""


def start_run(connection: Connection, study_id: int) -> int:
    """Open a run in the ledger.

    Args:
        connection: Inside a transaction.
        study_id: Optuna's id of the study.

    Returns:
        The run's id.
    """
    row = {
        "study_id": study_id,
        "started_at": UtcNow(),
        "touched_at": UtcNow(),
        "active_seconds": 0.0,
        "host": socket.gethostname()[:255],
        "pid": os.getpid(),
    }
    key = connection.execute(insert(RUNS).values(row)).inserted_primary_key
    assert key is not None
    return int(key[0])


def touch_run(connection: Connection, run_id: int, seconds: float) -> None:
    """Tell how long a run has been working.

    Args:
        connection: Inside a transaction.
        run_id: The run.
        seconds: Seconds since it began.
    """
    values = {"touched_at": UtcNow(), "active_seconds": seconds}
    connection.execute(update(RUNS).where(RUNS.c.run_id == run_id).values(values))


def end_run(connection: Connection, run_id: int, reason: str) -> None:
    """Close a run.

    Args:
        connection: Inside a transaction.
        run_id: The run.
        reason: Why it ended, in a few words.
    """
    values = {"touched_at": UtcNow(), "ended_reason": reason[:255]}
    connection.execute(update(RUNS).where(RUNS.c.run_id == run_id).values(values))


def active_seconds(connection: Connection, study_id: int) -> float:
    """Return how long all runs of a study have been working together.

    Args:
        connection: A connection.
        study_id: Optuna's id of the study.

    Returns:
        Seconds, 0 where there was no run.
    """
    total = select(func.sum(RUNS.c.active_seconds)).where(RUNS.c.study_id == study_id)
    return float(connection.scalar(total) or 0.0)


def runs(connection: Connection, study_id: int) -> list[RunRecord]:
    """Return the runs of a study, oldest first.

    Args:
        connection: A connection.
        study_id: Optuna's id of the study.

    Returns:
        The runs.
    """
    rows = connection.execute(
        select(RUNS).where(RUNS.c.study_id == study_id).order_by(RUNS.c.run_id)
    )
    return [
        RunRecord(
            started_at=row.started_at.replace(tzinfo=UTC),
            touched_at=row.touched_at.replace(tzinfo=UTC),
            active_seconds=row.active_seconds,
            host=row.host,
            pid=row.pid,
            ended_reason=row.ended_reason,
        )
        for row in rows
    ]
