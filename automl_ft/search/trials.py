"""Between the stored trials and the rest of the engine: new trials, specs, shadows, results."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from optuna.trial import TrialState

from automl_ft.config.study import StudyConfig
from automl_ft.errors import ConfigError
from automl_ft.search.folder import StudyFolder
from automl_ft.search.shadow import Proposal, ShadowTrial
from automl_ft.space.spec import SearchSpace
from automl_ft.space.suggest import stored_distributions
from automl_ft.specs.trial import ParamValue, TrialSpec
from automl_ft.storage.records import TrialRecord, new_trial_attrs
from automl_ft.storage.store import StudyStore

__all__ = [
    "add_configuration",
    "add_proposal",
    "adopt_foreign",
    "default_recipe",
    "invalid_message",
    "shadow_trials",
    "trial_seed",
    "trial_spec",
]


def trial_seed(config: StudyConfig, number: int) -> int:
    """Return the seed of a trial.

    Trials have seeds of their own, so that a search does not fit one seed's luck (Dodge et al.
    2020, arXiv 2002.06305); the same study seed gives the same ones.

    Args:
        config: The study; `training.seed` fixes one seed for all trials.
        number: The trial.

    Returns:
        A seed in [0, 2**31).
    """
    if config.training.seed is not None:
        return config.training.seed
    return int(np.random.SeedSequence([config.seed, number]).generate_state(1)[0] % 2**31)


def add_configuration(
    store: StudyStore,
    space: SearchSpace,
    params: Mapping[str, ParamValue],
    *,
    rerun_of: int | None = None,
) -> int:
    """Put a configuration of the user's in line.

    Args:
        store: The study.
        space: The stored space, resolved.
        params: A complete configuration of it (see `SearchSpace.complete`).
        rerun_of: The trial whose configuration it repeats.

    Returns:
        The new trial's number.
    """
    number = len(store.trials())
    distributions = stored_distributions(space)
    return store.add_trial(
        params,
        {name: distributions[name] for name in params},
        state=TrialState.WAITING,
        attrs=new_trial_attrs(
            space.hyperparameters(params),
            seed=trial_seed(store.record.config, number),
            origin="user",
            rerun_of=rerun_of,
        ),
    )


def default_recipe(space: SearchSpace, stored_space: SearchSpace, number: int) -> Proposal:
    """Propose the default recipe, which comes before everything that a sampler proposes.

    Args:
        space: The space that is searched, resolved.
        stored_space: The space that the study stores, resolved.
        number: The number that its trial will have.

    Returns:
        The proposal.
    """
    params = space.default_params()
    stored = stored_distributions(stored_space)
    return Proposal(
        number=number,
        params=params,
        distributions={name: stored[name] for name in params},
        system_attrs={},
    )


def add_proposal(store: StudyStore, space: SearchSpace, proposal: Proposal, *, origin: str) -> int:
    """Add the default recipe or what a sampler proposed, RUNNING at once.

    Args:
        store: The study.
        space: The space it was proposed from, resolved.
        proposal: The proposal.
        origin: `default` or `sampler`.

    Returns:
        The new trial's number.
    """
    return store.add_trial(
        proposal.params,
        proposal.distributions,
        state=TrialState.RUNNING,
        attrs=new_trial_attrs(
            space.hyperparameters(proposal.params),
            seed=trial_seed(store.record.config, proposal.number),
            origin=origin,
        ),
        system_attrs=proposal.system_attrs,
    )


def adopt_foreign(store: StudyStore, space: SearchSpace, trial: TrialRecord) -> None:
    """Complete a trial that plain Optuna or its dashboard put in line.

    Args:
        store: The study.
        space: The stored space, resolved.
        trial: A WAITING trial without hyperparameters.

    Raises:
        ConfigError: What was fixed is not a configuration of the space.
        ValueError: It was added with distributions that are not those of the space.
    """
    params = space.complete({**trial.fixed_params, **trial.params})
    attrs = new_trial_attrs(
        space.hyperparameters(params),
        seed=trial_seed(store.record.config, trial.number),
        origin="user",
    )
    store.set_params(trial.number, params, stored_distributions(space), attrs)


def trial_spec(trial: TrialRecord, config: StudyConfig, folder: StudyFolder) -> TrialSpec:
    """Return what a worker needs to run a stored trial.

    Args:
        trial: The trial.
        config: The study.
        folder: The study's folder.

    Returns:
        The spec.
    """
    seed = trial.seed if trial.seed is not None else trial_seed(config, trial.number)
    return TrialSpec(
        number=trial.number,
        hyperparameters=trial.hyperparameters,
        seed=seed,
        folder=str(folder.trial(trial.number)),
    )


def shadow_trials(trials: Sequence[TrialRecord]) -> list[ShadowTrial]:
    """Return what samplers and pruners see of the stored trials.

    Args:
        trials: All trials of a study.

    Returns:
        One shadow for each.
    """
    return [
        ShadowTrial(
            number=trial.number,
            params=_known(trial),
            state=trial.state,
            value=trial.value,
            intermediate_values=trial.intermediate_values,
            system_attrs=trial.system_attrs,
        )
        for trial in trials
    ]


def _known(trial: TrialRecord) -> dict[str, Any]:
    return {**trial.hyperparameters, **trial.params}


def invalid_message(error: ConfigError | ValueError) -> str:
    """Say in one line why a configuration that was put in line cannot run.

    Args:
        error: What is wrong with it.

    Returns:
        One line.
    """
    if isinstance(error, ConfigError):
        return "; ".join(str(problem) for problem in error.problems)
    return " ".join(str(error).split())
