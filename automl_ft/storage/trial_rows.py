"""How are the trials of a study read: those that changed, and each finished one only once?

Every step of a search reads all trials, since users may end one or put one in line at any moment.
Optuna loads them as objects, and those that are not finished anew each time. Here six plain
queries read what can have changed, and what reads the same as before stays the same record.
"""

from __future__ import annotations

import functools
import json
import threading
from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

from optuna.distributions import BaseDistribution, json_to_distribution
from optuna.storages._rdb.models import TrialIntermediateValueModel, TrialValueModel
from optuna.trial import FrozenTrial
from sqlalchemy import Connection, Select, bindparam, or_, select

from automl_ft.storage.records import TrialRecord, trial_record
from automl_ft.storage.tables import OPTUNA_TABLES

__all__ = ["TrialRows"]

_STUDIES = OPTUNA_TABLES["studies"]
_TRIALS = OPTUNA_TABLES["trials"]
_DETAILS: Mapping[str, tuple[str, ...]] = {
    "trial_params": ("param_name", "param_value", "distribution_json"),
    "trial_values": ("objective", "value", "value_type"),
    "trial_user_attributes": ("key", "value_json"),
    "trial_system_attributes": ("key", "value_json"),
    "trial_intermediate_values": ("step", "intermediate_value", "intermediate_value_type"),
}
"""By table what belongs to a trial."""
_CHUNK = 500
"""Trials whose rows are asked for at once; SQLite takes 999 values in a statement, or more."""

_Row = tuple[Any, ...]


class TrialRows:
    """Reads the trials of one study, and keeps what it has read; may be shared by threads."""

    def __init__(self, study_id: int) -> None:
        """Begin with nothing read.

        Args:
            study_id: Optuna's id of the study.
        """
        self._study_id = study_id
        self._lock = threading.Lock()
        self._records: dict[int, TrialRecord] = {}
        self._ids: dict[int, int] = {}
        self._open: dict[int, tuple[_Row, ...]] = {}
        """By id what was read of a trial that was not finished."""
        self._last_id = -1

    def all(self, connection: Connection) -> list[TrialRecord] | None:
        """Read all trials.

        Args:
            connection: To the study's database.

        Returns:
            The trials by number; None where the study is no longer there.
        """
        with self._lock:
            known = {"study": self._study_id, "last": self._last_id, "open": list(self._open)}
            rows = connection.execute(_changed(), known).all()
            if not rows:
                return None
            heads = [tuple(row) for row in rows if row.trial_id is not None]
            for first in range(0, len(heads), _CHUNK):
                self._keep(connection, heads[first : first + _CHUNK])
            self._last_id = max([self._last_id, *(head[0] for head in heads)])
            return [self._records[number] for number in sorted(self._records)]

    def one(self, connection: Connection, number: int) -> TrialRecord:
        """Read one trial.

        Args:
            connection: To the study's database.
            number: Its number.

        Returns:
            The trial.

        Raises:
            KeyError: There is no such trial.
        """
        trial_id = self.id_of(connection, number)
        with self._lock:
            known = self._records.get(number)
            if known is not None and known.is_finished:
                return known
            row = connection.execute(_head(), {"id": trial_id}).one_or_none()
            if row is None:
                raise KeyError(f"There is no trial {number}.")
            self._keep(connection, [tuple(row)])
            return self._records[number]

    def known_id(self, number: int) -> int | None:
        """Return Optuna's id of a trial without asking the database.

        Args:
            number: Its number.

        Returns:
            The id, or None where the trial was not met yet.
        """
        return self._ids.get(number)

    def id_of(self, connection: Connection, number: int) -> int:
        """Return Optuna's id of a trial.

        Args:
            connection: To the study's database.
            number: Its number.

        Returns:
            The id.

        Raises:
            KeyError: There is no such trial.
        """
        if number not in self._ids:
            place = {"study": self._study_id, "number": number}
            found = connection.scalar(_id_of_number(), place)
            if found is None:
                raise KeyError(f"There is no trial {number}.")
            self._ids[number] = found
        return self._ids[number]

    def _keep(self, connection: Connection, heads: Sequence[_Row]) -> None:
        """Read what belongs to trials; a record whose rows are the same stays the same."""
        ids = {"ids": [head[0] for head in heads]}
        details = [_by_trial(connection.execute(_detail(t), ids).all()) for t in _DETAILS]
        for head in heads:
            trial_id, number = head[:2]
            rows = (head, *(found.get(trial_id, ()) for found in details))
            if self._open.get(trial_id) != rows:
                self._records[number] = trial_record(_frozen(*rows))
            self._ids[number] = trial_id
            self._open[trial_id] = rows
            if self._records[number].is_finished:
                del self._open[trial_id]


def _by_trial(rows: Iterable[Any]) -> dict[int, tuple[_Row, ...]]:
    found: dict[int, list[_Row]] = {}
    for trial_id, *values in rows:
        found.setdefault(trial_id, []).append(tuple(values))
    return {trial_id: tuple(group) for trial_id, group in found.items()}


def _frozen(
    head: _Row,
    params: Sequence[_Row],
    values: Sequence[_Row],
    user_attrs: Sequence[_Row],
    system_attrs: Sequence[_Row],
    curve: Sequence[_Row],
) -> FrozenTrial:
    """Build Optuna's trial as Optuna does."""
    trial_id, number, state, started, ended = head
    distributions = {name: _distribution(text) for name, _, text in params}
    return FrozenTrial(
        number=number,
        trial_id=trial_id,
        state=state,
        value=None,
        values=[TrialValueModel.stored_repr_to_value(v, kind) for _, v, kind in values] or None,
        datetime_start=_local(started),
        datetime_complete=_local(ended),
        params={name: distributions[name].to_external_repr(value) for name, value, _ in params},
        distributions=distributions,
        user_attrs={key: json.loads(text) for key, text in user_attrs},
        system_attrs={key: json.loads(text) for key, text in system_attrs},
        intermediate_values={
            step: TrialIntermediateValueModel.stored_repr_to_intermediate_value(value, kind)
            for step, value, kind in curve
        },
    )


@functools.lru_cache(maxsize=1024)  # a study has one for each name, stored with every trial
def _distribution(text: str) -> BaseDistribution:
    return json_to_distribution(text)


def _local(stored: datetime | None) -> datetime | None:
    """Turn the database's UTC into what Optuna gives: local time without offset."""
    if stored is None:
        return None
    return stored.replace(tzinfo=UTC).astimezone().replace(tzinfo=None)


# Building a statement takes longer than running it, so each is built once.


@functools.cache
def _changed() -> Select[Any]:
    """Select what can have changed: what was open, and what is new. No row: no study."""
    columns = _TRIALS.c
    is_news = or_(
        columns.trial_id > bindparam("last"),
        columns.trial_id.in_(bindparam("open", expanding=True)),
    )
    joined = _STUDIES.outerjoin(_TRIALS, (columns.study_id == _STUDIES.c.study_id) & is_news)
    statement = select(*_head_columns()).select_from(joined)
    return statement.where(_STUDIES.c.study_id == bindparam("study")).order_by(columns.trial_id)


@functools.cache
def _head() -> Select[Any]:
    return select(*_head_columns()).where(_TRIALS.c.trial_id == bindparam("id"))


def _head_columns() -> list[Any]:
    columns = _TRIALS.c
    return [
        columns.trial_id,
        columns.number,
        columns.state,
        columns.datetime_start,
        columns.datetime_complete,
    ]


@functools.cache
def _id_of_number() -> Select[Any]:
    columns = _TRIALS.c
    is_it = (columns.study_id == bindparam("study")) & (columns.number == bindparam("number"))
    return select(columns.trial_id).where(is_it)


@functools.cache
def _detail(name: str) -> Select[Any]:
    table = OPTUNA_TABLES[name]
    (key,) = table.primary_key
    columns = [table.c.trial_id, *(table.c[column] for column in _DETAILS[name])]
    wanted = table.c.trial_id.in_(bindparam("ids", expanding=True))
    return select(*columns).where(wanted).order_by(key)
