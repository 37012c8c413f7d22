"""How rows of Optuna's tables are written: by few statements in one transaction.

Optuna's own methods need a transaction for each value and load the trial as objects; here a report
takes two statements. What is written is what Optuna writes: its readers see no difference, and a
finished trial stays as it is. Every write to a trial starts by a conditional update of its row,
which locks it on each database until the transaction ends.
"""

from __future__ import annotations

import functools
import json
from collections.abc import Collection, Mapping
from datetime import UTC, datetime
from typing import Any

from optuna.distributions import (
    BaseDistribution,
    check_distribution_compatibility,
    distribution_to_json,
    json_to_distribution,
)
from optuna.storages._rdb.models import TrialIntermediateValueModel, TrialValueModel
from optuna.trial import FrozenTrial, TrialState
from sqlalchemy import Connection, Select, Update, bindparam, delete, func, insert, select, update

from automl_ft.storage.schema import json_safe
from automl_ft.storage.tables import OPTUNA_TABLES
from automl_ft.storage.upsert import upsert

__all__ = [
    "OPEN_STATES",
    "add_trial",
    "hold",
    "hold_study",
    "move",
    "put_intermediate_value",
    "put_params",
    "put_value",
    "release_running",
]

OPEN_STATES = (TrialState.RUNNING, TrialState.WAITING)
"""States in which a trial can still be written."""

_STUDIES = OPTUNA_TABLES["studies"]
_TRIALS = OPTUNA_TABLES["trials"]
_PARAMS = OPTUNA_TABLES["trial_params"]


def hold(connection: Connection, trial_id: int) -> bool:
    """Lock a trial's row if the trial is not finished.

    Args:
        connection: Inside a transaction.
        trial_id: Optuna's id of the trial.

    Returns:
        Whether the trial exists and is not finished.
    """
    return connection.execute(_hold(), {"id": trial_id}).rowcount > 0


def hold_study(connection: Connection, study_id: int) -> bool:
    """Lock a study's row, on SQLite the database; Optuna adds no trial meanwhile.

    Args:
        connection: Inside a transaction.
        study_id: Optuna's id of the study.

    Returns:
        Whether the study exists.
    """
    same = update(_STUDIES).values(study_name=_STUDIES.c.study_name)
    return connection.execute(same.where(_STUDIES.c.study_id == study_id)).rowcount > 0


def release_running(connection: Connection, study_id: int) -> list[int]:
    """Put all running trials of a study back in line.

    Args:
        connection: Inside a transaction that holds the study.
        study_id: Optuna's id of the study.

    Returns:
        Their numbers, ascending.
    """
    running = (_TRIALS.c.study_id == study_id, _TRIALS.c.state == TrialState.RUNNING)
    numbers = select(_TRIALS.c.number).where(*running).order_by(_TRIALS.c.number)
    found = list(connection.scalars(numbers))
    connection.execute(update(_TRIALS).where(*running).values(state=TrialState.WAITING))
    return found


def add_trial(connection: Connection, study_id: int, template: FrozenTrial) -> int:
    """Add a trial that is not finished and has no value or curve yet.

    Args:
        connection: Inside a transaction that holds the study, so that numbers count up.
        study_id: Optuna's id of the study.
        template: The trial but for its number; checked.

    Returns:
        Its number.

    Raises:
        ValueError: A distribution is not compatible with the study's stored one.
    """
    number, newest = connection.execute(_newest(), {"study": study_id}).one()
    _check_distributions(connection, study_id, newest, template.distributions)
    started = template.datetime_start
    row = {
        "study_id": study_id,
        "number": number,
        "state": template.state,
        "datetime_start": None if started is None else _utc(started),
    }
    key = connection.execute(insert(_TRIALS).values(row)).inserted_primary_key
    assert key is not None
    trial_id = int(key[0])
    _insert_params(connection, trial_id, template.params, template.distributions)
    put_trial_attrs(connection, trial_id, template.user_attrs)
    put_trial_attrs(connection, trial_id, template.system_attrs, kind="system")
    return int(number)


def _check_distributions(
    connection: Connection,
    study_id: int,
    newest: int | None,
    distributions: Mapping[str, BaseDistribution],
) -> None:
    """Compare distributions with stored ones; a study has one for each name.

    The newest trial has most of the names, so that mostly one query is enough.
    """
    if newest is None:
        return
    rows = connection.execute(_distributions_of(), {"trial": newest})
    stored = {name: text for name, text in rows}
    for name, distribution in distributions.items():
        text = stored.get(name)
        if text is None:
            place = {"study": study_id, "name": name}
            text = connection.execute(_distribution_of_name(), place).scalar()
        if text is not None:
            check_distribution_compatibility(json_to_distribution(text), distribution)


def move(
    connection: Connection, trial_id: int, sources: Collection[TrialState], target: TrialState
) -> bool:
    """Change a trial's state if it is in one of some states; of several callers one succeeds.

    Args:
        connection: Inside a transaction.
        trial_id: Optuna's id of the trial.
        sources: The states in which it must be.
        target: The state in which it is afterwards. RUNNING sets the time it was started, a
            finished state the time it ended, as Optuna does.

    Returns:
        Whether the state was changed.
    """
    now = datetime.now(UTC).replace(tzinfo=None)
    values: dict[str, Any] = {"state": target}
    if target is TrialState.RUNNING:
        values["datetime_start"] = now
    if target.is_finished():
        values["datetime_complete"] = now
    statement = update(_TRIALS).where(_TRIALS.c.trial_id == trial_id, _TRIALS.c.state.in_(sources))
    return connection.execute(statement.values(values)).rowcount > 0


def put_intermediate_value(connection: Connection, trial_id: int, step: int, value: float) -> None:
    """Write one point of a trial's curve; NaN and infinities included.

    Args:
        connection: Inside a transaction that holds the trial.
        trial_id: Optuna's id of the trial.
        step: Where on the axis; an earlier value there is replaced.
        value: The value.
    """
    stored, kind = TrialIntermediateValueModel.intermediate_value_to_stored_repr(value)
    row = {
        "trial_id": trial_id,
        "step": step,
        "intermediate_value": stored,
        "intermediate_value_type": kind,
    }
    upsert(connection, OPTUNA_TABLES["trial_intermediate_values"], ("trial_id", "step"), [row])


def put_value(connection: Connection, trial_id: int, value: float) -> None:
    """Write a trial's final value.

    Args:
        connection: Inside a transaction that holds the trial.
        trial_id: Optuna's id of the trial.
        value: The value; may be infinite, not NaN.
    """
    stored, kind = TrialValueModel.value_to_stored_repr(value)
    row = {"trial_id": trial_id, "objective": 0, "value": stored, "value_type": kind}
    upsert(connection, OPTUNA_TABLES["trial_values"], ("trial_id", "objective"), [row])


def put_params(
    connection: Connection,
    trial_id: int,
    params: Mapping[str, Any],
    distributions: Mapping[str, BaseDistribution],
) -> None:
    """Write parameters of a trial.

    Args:
        connection: Inside a transaction that holds the trial.
        trial_id: Optuna's id of the trial.
        params: All its values by name; what is there is replaced.
        distributions: From what, by the same names at least.

    Raises:
        ValueError: A distribution is not compatible with the study's stored one.
    """
    study = select(_TRIALS.c.study_id).where(_TRIALS.c.trial_id == trial_id).scalar_subquery()
    mates = select(_TRIALS.c.trial_id).where(_TRIALS.c.study_id == study)
    stored = select(_PARAMS.c.param_name, _PARAMS.c.distribution_json).distinct()
    for name, text in connection.execute(stored.where(_PARAMS.c.trial_id.in_(mates))).all():
        if name in params:
            check_distribution_compatibility(json_to_distribution(text), distributions[name])
    theirs = _PARAMS.c.trial_id == trial_id
    connection.execute(delete(_PARAMS).where(theirs, _PARAMS.c.param_name.not_in(list(params))))
    _insert_params(connection, trial_id, params, distributions)


def _insert_params(
    connection: Connection,
    trial_id: int,
    params: Mapping[str, Any],
    distributions: Mapping[str, BaseDistribution],
) -> None:
    rows = [
        {
            "trial_id": trial_id,
            "param_name": name,
            "param_value": distributions[name].to_internal_repr(value),
            "distribution_json": distribution_to_json(distributions[name]),
        }
        for name, value in params.items()
    ]
    upsert(connection, _PARAMS, ("trial_id", "param_name"), rows)


def put_trial_attrs(
    connection: Connection, trial_id: int, attrs: Mapping[str, Any], kind: str = "user"
) -> None:
    """Write attributes of a trial.

    Args:
        connection: Inside a transaction that holds the trial.
        trial_id: Optuna's id of the trial.
        attrs: JSON values by key; those that are there are replaced.
        kind: `user` or `system`.
    """
    _put_attrs(connection, f"trial_{kind}_attributes", ("trial_id", trial_id), attrs)


def put_study_attrs(
    connection: Connection, study_id: int, attrs: Mapping[str, Any], kind: str = "user"
) -> None:
    """Write attributes of a study.

    Args:
        connection: Inside a transaction.
        study_id: Optuna's id of the study.
        attrs: JSON values by key; those that are there are replaced.
        kind: `user` or `system`.
    """
    _put_attrs(connection, f"study_{kind}_attributes", ("study_id", study_id), attrs)


def _put_attrs(
    connection: Connection, table: str, owner: tuple[str, int], attrs: Mapping[str, Any]
) -> None:
    column, owner_id = owner
    rows = [
        {column: owner_id, "key": key, "value_json": json.dumps(json_safe(value))}
        for key, value in attrs.items()
    ]
    upsert(connection, OPTUNA_TABLES[table], (column, "key"), rows)


def _utc(local: datetime) -> datetime:
    """Optuna takes naive local times and stores naive ones in UTC."""
    return local.astimezone(UTC).replace(tzinfo=None)


# Building a statement takes longer than running it, so those of every trial are built once.


@functools.cache
def _newest() -> Select[int, int]:
    theirs = _TRIALS.c.study_id == bindparam("study")
    return select(func.count(), func.max(_TRIALS.c.trial_id)).where(theirs)


@functools.cache
def _distributions_of() -> Select[Any]:
    columns = _PARAMS.c
    chosen = select(columns.param_name, columns.distribution_json)
    return chosen.where(columns.trial_id == bindparam("trial"))


@functools.cache
def _distribution_of_name() -> Select[Any]:
    joined = _PARAMS.join(_TRIALS, _PARAMS.c.trial_id == _TRIALS.c.trial_id)
    wanted = (_TRIALS.c.study_id == bindparam("study")) & (
        _PARAMS.c.param_name == bindparam("name")
    )
    return select(_PARAMS.c.distribution_json).select_from(joined).where(wanted).limit(1)


@functools.cache
def _hold() -> Update:
    same = update(_TRIALS).values(state=_TRIALS.c.state)
    return same.where(_TRIALS.c.trial_id == bindparam("id"), _TRIALS.c.state.in_(OPEN_STATES))
