"""Which Optuna pruner gives trials up, and with which settings?

Values are reported at nominal examples seen, the same steps for every batch size, because
Optuna's pruners compare values at equal steps only (optuna#2441, optuna#3290). Pruners keep no
state: what they need is in the trials (`search.shadow`).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from optuna.pruners import (
    BasePruner,
    HyperbandPruner,
    MedianPruner,
    NopPruner,
    PatientPruner,
    SuccessiveHalvingPruner,
)

from automl_ft.search.samplers import accept_experimental

__all__ = ["PrunerSettings", "make_pruner"]


@dataclass(frozen=True, kw_only=True, slots=True)
class PrunerSettings:
    """What a pruner needs to know about the steps at which a study's trials report."""

    min_resource: int
    """Step of the first validation, from 1 up: training examples between two validations."""
    max_resource: int
    """Step of the last validation of the longest trial that the space allows."""


def make_pruner(name: str, settings: PrunerSettings) -> BasePruner:
    """Build a pruner; the study's direction is always to maximise.

    Args:
        name: One of `config.study.PRUNERS`.
        settings: The steps at which trials report.

    Returns:
        A pruner that writes no warnings.

    Raises:
        KeyError: The name is unknown.
    """
    with accept_experimental():
        return _FACTORIES[name](settings)


def _successive_halving(settings: PrunerSettings) -> SuccessiveHalvingPruner:
    """Build asynchronous successive halving with rungs at validation 1, 2, 4, 8, ...

    A trial counts for a rung at its first validation at or after the rung's step, and all trials
    validate at the same steps, so they meet at equal steps. From the first validation on, because
    halving early beats halving late by far for fine-tuning (design, section 6). By 2 instead of
    Optuna's 4: with a few dozen trials a rung holds few values, a small validation split makes
    them noisy, and stopping is for good, so three lenient looks are better than one harsh one. No
    bootstrap: Optuna's prunes the first trials that reach a rung, and the first is the default
    recipe. Source: Li et al. 2020, MLSys, arXiv 1810.05934.
    """
    return SuccessiveHalvingPruner(min_resource=settings.min_resource, reduction_factor=2)


def _hyperband(settings: PrunerSettings) -> HyperbandPruner:
    """Build Hyperband: brackets of halving that begin at different rungs.

    By 3, as the paper has it. Source: Li et al. 2018, JMLR 18(185), section 3.6.
    """
    longest = max(settings.max_resource, settings.min_resource)
    return HyperbandPruner(
        min_resource=settings.min_resource, max_resource=longest, reduction_factor=3
    )


def _median(settings: PrunerSettings) -> MedianPruner:
    """Build the median rule, after five full trials and never at the first validation.

    The first validation may still be in the warm-up of the learning rate. A median of fewer than
    three values is none. Source: Golovin et al. 2017, KDD (Vizier); five is
    Optuna's default.
    """
    return MedianPruner(
        n_startup_trials=5, n_warmup_steps=settings.min_resource + 1, n_min_trials=3
    )


def _patient(settings: PrunerSettings) -> PatientPruner:
    """Build the median rule for trials whose last two validations brought nothing new."""
    return PatientPruner(_median(settings), patience=1)


def _none(settings: PrunerSettings) -> NopPruner:
    return NopPruner()


_FACTORIES: Mapping[str, Callable[[PrunerSettings], BasePruner]] = {
    "successive_halving": _successive_halving,
    "hyperband": _hyperband,
    "median": _median,
    "patient": _patient,
    "none": _none,
}
