"""Which Optuna sampler proposes configurations, and with which settings?

A sampler lives for one proposal: it is built anew on a shadow study (`search.shadow`), so all that
it knows comes from the records, and a resumed search proposes what an uninterrupted one would.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass

from optuna.exceptions import ExperimentalWarning
from optuna.samplers import (
    BaseSampler,
    BruteForceSampler,
    CmaEsSampler,
    GPSampler,
    QMCSampler,
    RandomSampler,
    TPESampler,
)

__all__ = ["SamplerSettings", "accept_experimental", "make_sampler", "startup_trials"]


@dataclass(frozen=True, kw_only=True, slots=True)
class SamplerSettings:
    """What a sampler is built from."""

    study_seed: int
    """The study's seed, the same for every proposal: the sequence that QMC walks along."""
    trial_seed: int
    """Seed of this one proposal."""
    n_startup_trials: int = 10
    """Finished or paused configurations before a model replaces chance. Source: Optuna's default
    for TPE and GP."""


@contextmanager
def accept_experimental() -> Iterator[None]:
    """Silence Optuna's notice that a class or argument is experimental, and nothing else.

    The notice is about Optuna's interface, which `constraints.txt` pins; users cannot act on it.
    Only for constructing a sampler or pruner: not thread-safe, like all filters of warnings.

    Yields:
        Nothing.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ExperimentalWarning)
        yield


def startup_trials(num_trials: int) -> int:
    """Return how many configurations are drawn by chance before a model learns from them.

    Args:
        num_trials: Configurations that the budget allows in total.

    Returns:
        A quarter of the budget, from 4 to 10. Source: Optuna's default is 10; fine-tuning budgets
        are often 20 trials, half of which would then be random.
    """
    return min(max(num_trials // 4, 4), 10)


def make_sampler(name: str, settings: SamplerSettings) -> BaseSampler:
    """Build a sampler.

    Args:
        name: One of `config.study.SAMPLERS`.
        settings: Seeds and the length of the start-up phase.

    Returns:
        A sampler that writes no warnings.

    Raises:
        KeyError: The name is unknown.
    """
    with accept_experimental():
        return _FACTORIES[name](settings)


def _tpe(settings: SamplerSettings) -> TPESampler:
    """Build TPE, multivariate within each group of parameters that apply together.

    Without `group`, parameters that do not apply in every trial, such as `frozen_layers`, would be
    sampled one by one. The constant liar (Optuna's default) keeps running trials apart. Source:
    Watanabe 2023, arXiv 2304.11127, recommends the multivariate kernel.
    """
    return TPESampler(
        seed=settings.trial_seed,
        n_startup_trials=settings.n_startup_trials,
        multivariate=True,
        group=True,
    )


def _independent(settings: SamplerSettings) -> TPESampler:
    """Build what fills in the parameters that GP and CMA-ES cannot model: better than chance."""
    return TPESampler(seed=settings.trial_seed, n_startup_trials=settings.n_startup_trials)


def _gp(settings: SamplerSettings) -> GPSampler:
    """Build a Gaussian process. NOTE: Optuna's imports torch into the proposing process."""
    return GPSampler(
        seed=settings.trial_seed,
        n_startup_trials=settings.n_startup_trials,
        independent_sampler=_independent(settings),
        warn_independent_sampling=False,
    )


def _random(settings: SamplerSettings) -> RandomSampler:
    return RandomSampler(seed=settings.trial_seed)


def _qmc(settings: SamplerSettings) -> QMCSampler:
    """Build a scrambled Sobol' sequence; unscrambled, it would begin at every range's low end."""
    return QMCSampler(
        seed=settings.study_seed,
        scramble=True,
        independent_sampler=_random(settings),
        warn_independent_sampling=False,
    )


def _cmaes(settings: SamplerSettings) -> CmaEsSampler:
    """Build CMA-ES for the numbers that apply in every trial; TPE chooses the rest."""
    return CmaEsSampler(
        seed=settings.trial_seed,
        independent_sampler=_independent(settings),
        warn_independent_sampling=False,
    )


def _grid(settings: SamplerSettings) -> BruteForceSampler:
    """Build the exhaustive sampler: unlike `GridSampler` it knows conditions."""
    return BruteForceSampler(seed=settings.trial_seed)


_FACTORIES: Mapping[str, Callable[[SamplerSettings], BaseSampler]] = {
    "tpe": _tpe,
    "gp": _gp,
    "random": _random,
    "qmc": _qmc,
    "cmaes": _cmaes,
    "grid": _grid,
}
