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

from optuna.storages._rdb.models import TrialIntermediateValueModel, TrialValueModel
from optuna.trial import TrialState
from sqlalchemy import Connection, Update, bindparam, update

from automl_ft.storage.schema import json_safe
from automl_ft.storage.tables import OPTUNA_TABLES
from automl_ft.storage.upsert import upsert

__all__ = ["OPEN_STATES", "hold", "move", "put_attrs", "put_intermediate_value", "put_value"]

OPEN_STATES = (TrialState.RUNNING, TrialState.WAITING)
"""States in which a trial can still be written."""

_TRIALS = OPTUNA_TABLES["trials"]


def hold(connection: Connection, trial_id: int) -> bool:
    """Lock a trial's row if the trial is not finished.

    Args:
        connection: Inside a transaction.
        trial_id: Optuna's id of the trial.

    Returns:
        Whether the trial exists and is not finished.
    """
    return connection.execute(_hold(), {"id": trial_id}).rowcount > 0


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


def put_attrs(
    connection: Connection, table: str, owner: tuple[str, int], attrs: Mapping[str, Any]
) -> None:
    """Write attributes of a trial or a study.

    Args:
        connection: Inside a transaction.
        table: Which of Optuna's attribute tables, for instance `trial_user_attributes`.
        owner: Name and value of the column that says whose they are.
        attrs: JSON values by key; those that are there are replaced.
    """
    column, owner_id = owner
    rows = [
        {column: owner_id, "key": key, "value_json": json.dumps(json_safe(value))}
        for key, value in attrs.items()
    ]
    upsert(connection, OPTUNA_TABLES[table], (column, "key"), rows)


@functools.cache
def _hold() -> Update:
    same = update(_TRIALS).values(state=_TRIALS.c.state)
    return same.where(_TRIALS.c.trial_id == bindparam("id"), _TRIALS.c.state.in_(OPEN_STATES))
