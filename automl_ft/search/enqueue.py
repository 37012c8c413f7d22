"""How does a user put a configuration of their own next in line, or a trial once more?"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping

from automl_ft.errors import ConfigError, UsageError
from automl_ft.search.trials import add_configuration, add_rerun
from automl_ft.space.spec import SearchSpace
from automl_ft.specs.trial import ParamValue
from automl_ft.storage.store import StudyStore

__all__ = ["enqueue", "rerun"]


def enqueue(store: StudyStore, params: Mapping[str, ParamValue]) -> int:
    """Put a configuration in line; the next search runs it before it proposes anything.

    Args:
        store: The study.
        params: Some hyperparameters of the space that it was last searched with; the others take
            their defaults there.

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

    Its hyperparameters are those of the trial, even if the space has changed since.

    Args:
        store: The study.
        number: The trial.

    Returns:
        The new trial's number.

    Raises:
        UsageError: There is no such trial, it has not run yet, or it has no configuration.
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
    if not trial.hyperparameters:
        raise UsageError(
            f"Trial {number} of study `{store.name}` was put there by plain Optuna and never ran,"
            f" so there is nothing to repeat. Try `automl-ft enqueue {store.name} NAME=VALUE ...`."
        )
    return add_rerun(store, trial)
