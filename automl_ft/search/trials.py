"""Between the stored trials and the rest of the engine: new trials, specs, shadows, results."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
from optuna.distributions import BaseDistribution
from optuna.exceptions import UpdateFinishedTrialError
from optuna.trial import TrialState

from automl_ft.config.study import BudgetConfig, StudyConfig
from automl_ft.errors import ConfigError
from automl_ft.search.folder import StudyFolder
from automl_ft.search.shadow import Proposal
from automl_ft.search.sight import ShadowTrial
from automl_ft.search.stopping import num_configurations
from automl_ft.space.spec import SearchSpace
from automl_ft.space.suggest import stored_distributions
from automl_ft.specs.failure import TrialFailure
from automl_ft.specs.hyperparameters import complete
from automl_ft.specs.trial import Outcome, ParamValue, TrialCost, TrialResult, TrialSpec
from automl_ft.storage.records import TrialRecord, new_trial_attrs
from automl_ft.storage.store import StudyStore

__all__ = [
    "Shadows",
    "add_configuration",
    "add_proposal",
    "add_rerun",
    "adopt_foreign",
    "failed_result",
    "invalid_message",
    "may_start",
    "put_default_recipe",
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
    store: StudyStore, space: SearchSpace, params: Mapping[str, ParamValue]
) -> int:
    """Put a configuration of the user's in line.

    Args:
        store: The study.
        space: The space that it was last searched with, resolved.
        params: A complete configuration of it (see `SearchSpace.complete`).

    Returns:
        The new trial's number.
    """
    number = len(store.trials())
    attrs = new_trial_attrs(
        space.hyperparameters(params),
        seed=trial_seed(store.record.config, number),
        origin="user",
    )
    return store.add_trial(params, _stored(store, params), state=TrialState.WAITING, attrs=attrs)


def add_rerun(store: StudyStore, trial: TrialRecord) -> int:
    """Put a trial in line once more, exactly as it was but for the seed.

    Args:
        store: The study.
        trial: One of its trials, with hyperparameters; today's space may no longer make them.

    Returns:
        The new trial's number.
    """
    number = len(store.trials())
    attrs = new_trial_attrs(
        trial.hyperparameters,
        seed=trial_seed(store.record.config, number),
        origin="user",
        rerun_of=trial.number if trial.rerun_of is None else trial.rerun_of,
    )
    return store.add_trial(trial.params, trial.distributions, state=TrialState.WAITING, attrs=attrs)


def put_default_recipe(store: StudyStore) -> None:
    """See to it that the default recipe is in line: trial 0, added when a study is created.

    As long as it has not begun it follows the space that the study is searched with.

    Args:
        store: The study; nobody else searches it.
    """
    space = SearchSpace.from_plain(store.record.space)
    params = space.default_params()
    distributions = _stored(store, params)
    trials = store.trials()
    known = next((trial for trial in trials if trial.origin == "default"), None)
    number = len(trials) if known is None else known.number
    seed = trial_seed(store.record.config, number)
    attrs = new_trial_attrs(space.hyperparameters(params), seed=seed, origin="default")
    if known is None:
        store.add_trial(params, distributions, state=TrialState.WAITING, attrs=attrs)
    elif known.state is TrialState.WAITING and known.started is None:
        with contextlib.suppress(UpdateFinishedTrialError):  # the user may end it this moment
            store.set_params(number, params, distributions, attrs)


def may_start(trial: TrialRecord, trials: Sequence[TrialRecord], budget: BudgetConfig) -> bool:
    """Tell whether a waiting trial may run.

    Args:
        trial: A waiting trial.
        trials: All trials of the study, by number.
        budget: The budget.

    Returns:
        True for what was begun and what the user put in line: the budget never holds them up. The
        default recipe starts only if the budget reaches to it: with no trials at all, a study is
        prepared and nothing is run.
    """
    if trial.origin != "default" or trial.is_paused:
        return True
    return num_configurations(trials[: trial.number]) < budget.trials


def add_proposal(store: StudyStore, space: SearchSpace, proposal: Proposal) -> int:
    """Put what a sampler proposed in line.

    Args:
        store: The study.
        space: The space it was proposed from, resolved.
        proposal: The proposal.

    Returns:
        The new trial's number.
    """
    return store.add_trial(
        proposal.params,
        proposal.distributions,
        state=TrialState.WAITING,
        attrs=new_trial_attrs(
            space.hyperparameters(proposal.params),
            seed=trial_seed(store.record.config, proposal.number),
            origin="sampler",
        ),
        system_attrs=proposal.system_attrs,
    )


def adopt_foreign(store: StudyStore, space: SearchSpace, trial: TrialRecord) -> None:
    """Complete a trial that plain Optuna or its dashboard put in line.

    Args:
        store: The study.
        space: The space that it was last searched with, resolved.
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
    store.set_params(trial.number, params, _stored(store, params), attrs)


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


class Shadows:
    """What samplers and pruners see of the stored trials; the same record has the same shadow."""

    def __init__(self) -> None:
        """Begin without any."""
        self._known: dict[int, tuple[TrialRecord, ShadowTrial]] = {}

    def of(self, trials: Sequence[TrialRecord]) -> list[ShadowTrial]:
        """Return the shadows of trials.

        Args:
            trials: All trials of a study.

        Returns:
            One shadow for each.
        """
        return [self._shadow(trial) for trial in trials]

    def _shadow(self, trial: TrialRecord) -> ShadowTrial:
        known = self._known.get(trial.number)
        if known is None or known[0] is not trial:
            known = self._known[trial.number] = (trial, _shadow(trial))
        return known[1]


def _shadow(trial: TrialRecord) -> ShadowTrial:
    return ShadowTrial(
        number=trial.number,
        params=_known(trial),
        state=trial.state,
        value=trial.value,
        intermediate_values=trial.intermediate_values,
        system_attrs=trial.system_attrs,
    )


def failed_result(number: int, failure: TrialFailure, cost: TrialCost | None = None) -> TrialResult:
    """Return the result of a trial that failed without a word of its own.

    Args:
        number: The trial.
        failure: Why.
        cost: What it has cost; None where it never ran.

    Returns:
        The result.
    """
    return TrialResult(
        number=number,
        outcome=Outcome.FAILED,
        value=None,
        best_step=None,
        metrics={},
        evaluations=(),
        cost=cost or TrialCost(seconds=0.0, examples=0, peak_memory_mib=0.0),
        failure=failure,
    )


def _known(trial: TrialRecord) -> dict[str, Any]:
    # A trial of an older version ran with the neutral default of what that did not know yet.
    neutral = complete({}) if trial.hyperparameters else {}
    return {**neutral, **trial.hyperparameters, **trial.params}


def _stored(store: StudyStore, names: Iterable[str]) -> dict[str, BaseDistribution]:
    """Return the distributions that the study stores for parameters of its space."""
    stored = stored_distributions(SearchSpace.from_plain(store.record.stored_space))
    return {name: stored[name] for name in names}


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
