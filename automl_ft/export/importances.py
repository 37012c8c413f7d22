"""Which hyperparameters made the difference in a search?

Optuna's default evaluator, PED-ANOVA: how much the distribution of a hyperparameter among the
best tenth of the trials differs from that among all (Watanabe et al. 2023, arXiv 2304.10255).
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from automl_ft.storage.records import TrialRecord

__all__ = ["hyperparameter_importances"]

_MIN_TRIALS = 10
"""Below this the best tenth is a single trial and its importances are chance."""
_FEW_TRIALS = 50
"""Optuna's documentation asks for five trials in the best tenth."""


def hyperparameter_importances(trials: Sequence[TrialRecord]) -> tuple[dict[str, float], str]:
    """Compute how much each searched hyperparameter mattered.

    Args:
        trials: All trials of one study; those that are not complete do not count.

    Returns:
        Shares that sum to 1, largest first, and a sentence on how far they can be trusted; no
        shares and the reason where there is nothing to compute them from.
    """
    complete = [trial for trial in trials if trial.state.name == "COMPLETE" and trial.params]
    values = {trial.value for trial in complete if trial.value is not None}
    if len(complete) < _MIN_TRIALS:
        return {}, (
            f"Too few trials ran to the end ({len(complete)}; at least {_MIN_TRIALS} are needed) to"
            " say which hyperparameters mattered."
        )
    if len(values) < 2:
        return {}, "All complete trials have the same value, so no hyperparameter mattered."
    shares = _ped_anova(complete)
    note = f"Computed with Optuna's PED-ANOVA from {len(complete)} complete trials"
    if len(complete) < _FEW_TRIALS:
        note += f"; with fewer than {_FEW_TRIALS} they are a rough hint"
    return shares, f"{note}."


def _ped_anova(trials: Sequence[TrialRecord]) -> dict[str, float]:
    import optuna

    from automl_ft.search.shadow import quiet_optuna

    with quiet_optuna():
        study = optuna.create_study(
            storage=optuna.storages.InMemoryStorage(),
            direction="maximize",
            sampler=optuna.samplers.RandomSampler(seed=0),
        )
    study.add_trials(
        optuna.trial.create_trial(
            value=trial.value, params=dict(trial.params), distributions=dict(trial.distributions)
        )
        for trial in trials
    )
    with warnings.catch_warnings():
        # Optuna warns where conditions leave few trials to a range; the note says as much.
        warnings.simplefilter("ignore")
        return dict(optuna.importance.get_param_importances(study))
