"""Which tables of our own lie beside Optuna's, for what Optuna's cannot hold.

They belong to a study by its id and go with it: on PostgreSQL and MySQL by the foreign key, also
when plain Optuna deletes the study; on SQLite whoever deletes or creates a study sees to it.
"""

from __future__ import annotations

from datetime import datetime
from typing import Any

from optuna.storages._rdb.models import BaseModel
from sqlalchemy import (
    BigInteger,
    Column,
    DateTime,
    Float,
    ForeignKey,
    Integer,
    MetaData,
    String,
    Table,
    Text,
)
from sqlalchemy.ext.compiler import compiles
from sqlalchemy.sql.compiler import SQLCompiler
from sqlalchemy.sql.functions import FunctionElement

__all__ = ["CHECKPOINTS", "METADATA", "OPTUNA_TABLES", "RUNS", "UtcNow"]

METADATA = MetaData()
"""Our own tables."""
OPTUNA_TABLES: dict[str, Table] = dict(BaseModel.metadata.tables)
"""Optuna's tables by name."""


class UtcNow(FunctionElement[datetime]):
    """The database's clock, in UTC without offset: one clock for all machines of a study."""

    inherit_cache = True
    type = DateTime()


@compiles(UtcNow)
def _current_timestamp(element: UtcNow, compiler: SQLCompiler, **kwargs: Any) -> str:
    return "CURRENT_TIMESTAMP"  # SQLite's is UTC


@compiles(UtcNow, "postgresql")
def _timezone_utc(element: UtcNow, compiler: SQLCompiler, **kwargs: Any) -> str:
    return "TIMEZONE('utc', CURRENT_TIMESTAMP)"


@compiles(UtcNow, "mysql")
def _utc_timestamp(element: UtcNow, compiler: SQLCompiler, **kwargs: Any) -> str:
    return "UTC_TIMESTAMP()"


def _study_id(**options: Any) -> Column[int]:
    studies = OPTUNA_TABLES["studies"]
    return Column(
        "study_id",
        Integer,
        ForeignKey(studies.c.study_id, ondelete="CASCADE"),
        nullable=False,
        **options,
    )


RUNS = Table(
    "automl_ft_runs",
    METADATA,
    Column("run_id", Integer, primary_key=True),
    _study_id(index=True),
    Column("started_at", DateTime, nullable=False),
    Column("touched_at", DateTime, nullable=False),
    Column("active_seconds", Float(53), nullable=False),
    Column("host", String(255), nullable=False),
    Column("pid", Integer, nullable=False),
    Column("ended_reason", String(255)),
)
"""The cost ledger: one row for each run of a study's supervisor. Times are the database's, in UTC;
`ended_reason` stays null where the run was killed."""

CHECKPOINTS = Table(
    "automl_ft_checkpoints",
    METADATA,
    _study_id(primary_key=True, autoincrement=False),
    Column("trial_number", Integer, primary_key=True, autoincrement=False),
    Column("kind", String(16), primary_key=True),
    Column("path", Text, nullable=False),
    Column("bytes", BigInteger, nullable=False),
    Column("value", Float(53)),
)
"""Checkpoints on disk: by trial its `best` and its `last`."""
