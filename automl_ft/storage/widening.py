"""How a stored study's distributions grow with its search space.

Optuna demands one compatible distribution for each name and stores one with every parameter of
every trial. Categorical values are stored as indices, so choices may only be appended.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

from optuna.distributions import (
    BaseDistribution,
    CategoricalDistribution,
    FloatDistribution,
    IntDistribution,
    distribution_to_json,
    json_to_distribution,
)
from sqlalchemy import Connection, select, update

from automl_ft.errors import StudyExistsError
from automl_ft.storage.tables import OPTUNA_TABLES

__all__ = ["widen", "widen_stored"]

_PARAMS = OPTUNA_TABLES["trial_params"]
_TRIALS = OPTUNA_TABLES["trials"]


def widen(name: str, old: BaseDistribution, new: BaseDistribution) -> BaseDistribution:
    """Return the smallest distribution that holds both.

    Args:
        name: The parameter, for the message.
        old: The stored distribution.
        new: The one that is asked for.

    Returns:
        For ranges their union; for choices the longer list.

    Raises:
        StudyExistsError: They differ in kind, scale or step, or the new choices do not begin
            with the old ones or the other way round.
    """
    if isinstance(old, CategoricalDistribution) and isinstance(new, CategoricalDistribution):
        shorter, longer = sorted((old, new), key=lambda d: len(d.choices))
        if longer.choices[: len(shorter.choices)] == shorter.choices:
            return longer
        raise _cannot(name, old, new, "choices may only be appended")
    if isinstance(old, FloatDistribution) and isinstance(new, FloatDistribution):
        _check_grid(name, old, new)
        low, high = min(old.low, new.low), max(old.high, new.high)
        return FloatDistribution(low, high, log=old.log, step=old.step)
    if isinstance(old, IntDistribution) and isinstance(new, IntDistribution):
        _check_grid(name, old, new)
        return IntDistribution(
            min(old.low, new.low), max(old.high, new.high), log=old.log, step=old.step
        )
    raise _cannot(name, old, new, "its kind must stay as it is")


def widen_stored(
    connection: Connection, study_id: int, new: Mapping[str, BaseDistribution]
) -> dict[str, BaseDistribution]:
    """Rewrite the distributions of all trials of a study.

    Args:
        connection: Inside a transaction that holds the study.
        study_id: Optuna's id of the study.
        new: Distributions by name; names that no trial has are fine.

    Returns:
        By name the distribution that all trials have now, and new ones should have.

    Raises:
        StudyExistsError: A distribution cannot grow into the new one.
    """
    trials = select(_TRIALS.c.trial_id).where(_TRIALS.c.study_id == study_id)
    result = {}
    for name, distribution in new.items():
        theirs = (_PARAMS.c.param_name == name) & _PARAMS.c.trial_id.in_(trials)
        stored = connection.scalars(select(_PARAMS.c.distribution_json).where(theirs).distinct())
        for text in stored.all():
            distribution = widen(name, json_to_distribution(text), distribution)
        values = {"distribution_json": distribution_to_json(distribution)}
        connection.execute(update(_PARAMS).where(theirs).values(values))
        result[name] = distribution
    return result


def _check_grid(
    name: str, old: FloatDistribution | IntDistribution, new: FloatDistribution | IntDistribution
) -> None:
    """Refuse another scale, another step, and steps that are counted from elsewhere."""
    if old.log != new.log or old.step != new.step:
        raise _cannot(name, old, new, "log and step must stay as they are")
    steps = (old.low - new.low) / (old.step or 1)
    if old.step is not None and not math.isclose(steps, round(steps), abs_tol=1e-9):
        raise _cannot(name, old, new, "low must move by whole steps")


def _cannot(name: str, old: BaseDistribution, new: BaseDistribution, rule: str) -> StudyExistsError:
    return StudyExistsError(
        f"The parameter `{name}` of the study was searched in {old} and cannot be searched in"
        f" {new}: {rule}. Give the study another name to search the new space."
    )
