"""All studies of a database: which there are, and how one is created, loaded and deleted."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from optuna.study import StudyDirection
from optuna.trial import TrialState
from sqlalchemy import Connection, Table, delete, func, insert, select
from sqlalchemy.exc import IntegrityError

from automl_ft.config.study import StudyConfig
from automl_ft.errors import StorageError, StudyExistsError, StudyNotFoundError, did_you_mean
from automl_ft.storage import optuna_rows, schema
from automl_ft.storage.database import Database, open_storage
from automl_ft.storage.records import StudyRecord, study_attrs, study_record
from automl_ft.storage.store import StudyStore
from automl_ft.storage.tables import METADATA, OPTUNA_TABLES

__all__ = ["StudyDatabase", "StudySummary", "open_database"]

_STUDIES = OPTUNA_TABLES["studies"]
_TRIALS = OPTUNA_TABLES["trials"]
_VALUES = OPTUNA_TABLES["trial_values"]
_ATTRIBUTES = OPTUNA_TABLES["study_user_attributes"]


@dataclass(frozen=True, kw_only=True, slots=True)
class StudySummary:
    """One study of a database, in short."""

    name: str
    """Its name."""
    is_foreign: bool
    """Whether plain Optuna made it, not automl-ft."""
    config: StudyConfig | None
    """What the user asked for; None for a foreign study, or one of a newer automl-ft."""
    objective: str | None
    """The metric that it maximises; None for a foreign study."""
    created_at: datetime | None
    """When it was created; None for a foreign study."""
    num_trials: Mapping[TrialState, int]
    """How many trials it has in each state; a state with none is missing."""
    best_value: float | None
    """The best value of its complete trials; None where there is none, and for a foreign study."""


def open_database(url: str | None, *, create: bool = False) -> StudyDatabase:
    """Open the study database.

    Args:
        url: SQLAlchemy URL; None takes AUTOML_FT_STORAGE, else studies/studies.db.
        create: Whether a missing database is created.

    Returns:
        The database.

    Raises:
        StorageError: It cannot be reached or read, or it is missing and shall not be created.
    """
    return StudyDatabase(open_storage(url, create=create))


class StudyDatabase:
    """All studies of an open database."""

    def __init__(self, database: Database) -> None:
        """Store the database; `open_database` opens it.

        Args:
            database: The open database.
        """
        self._database = database

    def __repr__(self) -> str:
        return f"StudyDatabase({self.location!r})"

    @property
    def location(self) -> str:
        """The database's URL without its password."""
        return self._database.address.shown

    def close(self) -> None:
        """Give all connections back; stores that were made from here end with it."""
        self._database.close()

    def studies(self) -> list[StudySummary]:
        """Return all studies, ours and foreign ones, oldest first.

        Returns:
            The studies in short.

        Raises:
            StorageError: The database fails.
        """
        return self._database.read(_summaries)

    def create(self, record: StudyRecord) -> StudyStore:
        """Create a study, in one transaction.

        Args:
            record: What it is; its storage URL is not stored.

        Returns:
            The study.

        Raises:
            StudyExistsError: There is a study of that name, ours or foreign.
            StorageError: The database fails.
        """

        def write(connection: Connection) -> None:
            try:
                _insert(connection, record)
            except IntegrityError:
                raise StudyExistsError(
                    f"There already is a study `{record.name}` in {self._database.address}."
                    " Give this one another name, or delete the old one with"
                    f" `automl-ft delete {record.name}`."
                ) from None

        self._database.write(write)
        return self.load(record.name)

    def load(self, name: str) -> StudyStore:
        """Load a study.

        Args:
            name: Its name.

        Returns:
            The study.

        Raises:
            StudyNotFoundError: There is none of that name.
            StorageError: It is not ours, of a newer version or damaged, or the database fails.
        """
        study_id, record = self._find(name)
        return StudyStore(self._database, study_id, record)

    def delete(self, name: str) -> None:
        """Delete a study with all rows that belong to it; call it under the study's lock.

        Args:
            name: Its name.

        Raises:
            StudyNotFoundError: There is none of that name.
            StorageError: It is not ours or of a newer version, or the database fails.
        """
        study_id, attrs = self._attrs_of(name)
        schema.check_schema_version(name, attrs)
        self._database.write(lambda connection: _delete(connection, study_id))

    def _find(self, name: str) -> tuple[int, StudyRecord]:
        study_id, attrs = self._attrs_of(name)
        return study_id, study_record(name, attrs)

    def _attrs_of(self, name: str) -> tuple[int, dict[str, Any]]:
        def read(connection: Connection) -> tuple[dict[str, int], dict[str, Any]]:
            ids = {row.study_name: row.study_id for row in connection.execute(select(_STUDIES))}
            return ids, _user_attrs(connection).get(ids.get(name, -1), {})

        ids, attrs = self._database.read(read)
        if name not in ids:
            hint = did_you_mean(name, ids) or "It holds no study."
            raise StudyNotFoundError(
                f"There is no study `{name}` in {self._database.address}. {hint}"
            )
        return ids[name], attrs


def _insert(connection: Connection, record: StudyRecord) -> None:
    key = connection.execute(insert(_STUDIES).values(study_name=record.name)).inserted_primary_key
    assert key is not None
    study_id = int(key[0])
    # SQLite gives the id of a deleted study to the next one, and plain Optuna leaves our rows.
    for table in METADATA.tables.values():
        connection.execute(delete(table).where(table.c.study_id == study_id))
    direction = {"study_id": study_id, "objective": 0, "direction": StudyDirection.MAXIMIZE}
    connection.execute(insert(OPTUNA_TABLES["study_directions"]).values(direction))
    optuna_rows.put_study_attrs(connection, study_id, study_attrs(record))
    names = {schema.METRIC_NAMES: [record.objective]}
    optuna_rows.put_study_attrs(connection, study_id, names, kind="system")


def _delete(connection: Connection, study_id: int) -> None:
    """Delete what belongs to a study, leaves first.

    Optuna's own method loads every row as an object, and knows nothing of ours.
    """
    trials = select(_TRIALS.c.trial_id).where(_TRIALS.c.study_id == study_id)
    tables = [*METADATA.tables.values(), *reversed(_sorted_optuna_tables())]
    for table in tables:
        if "study_id" in table.c:
            connection.execute(delete(table).where(table.c.study_id == study_id))
        elif "trial_id" in table.c:
            connection.execute(delete(table).where(table.c.trial_id.in_(trials)))


def _sorted_optuna_tables() -> list[Table]:
    return list(_STUDIES.metadata.sorted_tables)


def _summaries(connection: Connection) -> list[StudySummary]:
    attrs, counts, best = _user_attrs(connection), _counts(connection), _best_values(connection)
    rows = connection.execute(select(_STUDIES).order_by(_STUDIES.c.study_id)).all()
    return [
        _summary(
            row.study_name,
            attrs.get(row.study_id, {}),
            counts.get(row.study_id, {}),
            best.get(row.study_id),
        )
        for row in rows
    ]


def _summary(
    name: str, attrs: Mapping[str, Any], counts: Mapping[TrialState, int], best: float | None
) -> StudySummary:
    record = None
    if not schema.is_foreign(attrs):
        with contextlib.suppress(StorageError):  # listed all the same; `load` says what is wrong
            record = study_record(name, attrs)
    return StudySummary(
        name=name,
        is_foreign=schema.is_foreign(attrs),
        config=None if record is None else record.config,
        objective=attrs.get(schema.STUDY_OBJECTIVE),
        created_at=None if record is None else record.created_at,
        num_trials=counts,
        best_value=None if schema.is_foreign(attrs) else best,
    )


def _user_attrs(connection: Connection) -> dict[int, dict[str, Any]]:
    found: dict[int, dict[str, Any]] = {}
    for row in connection.execute(select(_ATTRIBUTES)):
        found.setdefault(row.study_id, {})[row.key] = json.loads(row.value_json)
    return found


def _counts(connection: Connection) -> dict[int, dict[TrialState, int]]:
    columns = (_TRIALS.c.study_id, _TRIALS.c.state)
    found: dict[int, dict[TrialState, int]] = {}
    for study_id, state, count in connection.execute(
        select(*columns, func.count()).group_by(*columns)
    ):
        found.setdefault(study_id, {})[state] = count
    return found


def _best_values(connection: Connection) -> dict[int, float]:
    """Return the greatest finite value of complete trials, by study."""
    query = (
        select(_TRIALS.c.study_id, func.max(_VALUES.c.value))
        .join(_VALUES, _VALUES.c.trial_id == _TRIALS.c.trial_id)
        .where(_TRIALS.c.state == TrialState.COMPLETE, _VALUES.c.objective == 0)
        .where(_VALUES.c.value.is_not(None))
        .group_by(_TRIALS.c.study_id)
    )
    return {study_id: value for study_id, value in connection.execute(query)}
