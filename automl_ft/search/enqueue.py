"""How does a user put a configuration of their own next in line, or a trial once more?"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping

from automl_ft.errors import ConfigError, Problem, UsageError
from automl_ft.search.trials import add_configuration
from automl_ft.space.spec import SearchSpace
from automl_ft.specs.trial import ParamValue
from automl_ft.storage.store import StudyStore

__all__ = ["enqueue", "rerun"]


def enqueue(store: StudyStore, params: Mapping[str, ParamValue]) -> int:
    """Put a configuration in line; the next search runs it before it proposes anything.

    Args:
        store: The study.
        params: Some hyperparameters of its space; the others take their defaults.

    Returns:
        The new trial's number.

    Raises:
        ConfigError: With every problem of the values.
    """
    space = SearchSpace.from_plain(store.record.space)
    try:
        complete = space.complete(params)
    except ConfigError as error:
        raise ConfigError(
            [dataclasses.replace(p, place=f"{store.name}: {p.place}") for p in error.problems]
        ) from None
    return add_configuration(store, space, complete)


def rerun(store: StudyStore, number: int) -> int:
    """Put a trial's configuration in line once more, with a seed of its own.

    Args:
        store: The study.
        number: The trial.

    Returns:
        The new trial's number.

    Raises:
        UsageError: There is no such trial, it has not run yet, or it has no configuration.
        ConfigError: Its configuration no longer fits the space.
    """
    trials = store.trials()
    if not 0 <= number < len(trials):
        there = f"0 to {len(trials) - 1}" if trials else "none yet"
        raise UsageError(
            f"Study `{store.name}` has no trial {number}; there is {there}."
            f" `automl-ft show {store.name}` lists them."
        )
    trial = trials[number]
    if not trial.is_finished:
        raise UsageError(
            f"Trial {number} of study `{store.name}` is {trial.state.name} and will go on by"
            " itself with the next `automl-ft search`. Only finished trials are rerun."
        )
    space = SearchSpace.from_plain(store.record.space)
    known = {p.name for p in space.sampled}
    params = {name: value for name, value in trial.params.items() if name in known}
    if not params and trial.params:
        place = f"{store.name}: trial {number}"
        message = "its configuration is outside the study's search space."
        raise ConfigError([Problem(place=place, message=message)])
    origin = trial.rerun_of if trial.rerun_of is not None else number
    return add_configuration(store, space, space.complete(params), rerun_of=origin)
