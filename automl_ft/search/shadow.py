"""Which configuration is tried next, and is a trial given up? Asked of an in-memory study.

The stored study is the record, never the sampler's input: it holds paused trials as WAITING and a
rerun of a configuration as one more trial, which samplers would misread. For every question a
*shadow* is built from the records, at the trials' own numbers:

    COMPLETE -> COMPLETE        RUNNING, or WAITING without a report -> RUNNING (constant liar)
    PRUNED -> PRUNED            WAITING with reports (paused) -> PRUNED, ranked by what it reached
                                (for GP and CMA-ES both are COMPLETE, at their best validation)
    FAIL -> FAIL                a configuration's second trial, or one outside the space -> a
                                placeholder in state WAITING, which every sampler ignores

Nothing of a shadow is kept but what a sampler or pruner wrote to its trial, which is handed back
to be stored. So the same records and seed give the same answer, in any process. What follows from
one record alone, such as its coordinates, is worked out once for as long as the record is the same.
"""

from __future__ import annotations

import copy
import hashlib
import logging
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import optuna
from optuna.distributions import BaseDistribution, FloatDistribution
from optuna.pruners import BasePruner, NopPruner
from optuna.samplers import BaseSampler, RandomSampler
from optuna.search_space import intersection_search_space
from optuna.storages import InMemoryStorage
from optuna.trial import FrozenTrial, TrialState

from automl_ft.search.samplers import SamplerSettings, make_sampler
from automl_ft.search.sight import ShadowTrial, Sight, bare_trial, identity
from automl_ft.space.spec import SearchSpace
from automl_ft.space.suggest import exploration, stored_distributions, suggest
from automl_ft.specs.trial import ParamValue

__all__ = ["Proposal", "PruneDecision", "ShadowStudy", "quiet_optuna"]

_ATTEMPTS = 10
_SPACE_KEY = "automl_ft:shadow_space"
_QMC_PREFIX = "qmc:"
_CMA_PREFIX = "cma:"
_NOISE: Mapping[str, tuple[str, ...]] = {
    "optuna.storages._in_memory": ("A new study created in memory",),
    "optuna._gp.batched_lbfgsb": ("The 'greenlet' package is unavailable",),
    "optuna._gp.optim_mixed": ("local_search_mixed", "Study already converged"),
}
"""By logger, how those lines begin that are about the shadow or Optuna's inner workings."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Proposal:
    """A configuration to be tried; `create_new_trial(template_trial=...)` takes its parts."""

    number: int
    """The number that the trial will have."""
    params: Mapping[str, ParamValue]
    """A value for every searched parameter that applies."""
    distributions: Mapping[str, BaseDistribution]
    """The stored study's distributions of these parameters."""
    system_attrs: Mapping[str, Any]
    """What the sampler wants to find in the stored trial when it proposes the next one."""


@dataclass(frozen=True, kw_only=True, slots=True)
class PruneDecision:
    """What a pruner says of a running trial."""

    is_pruned: bool
    """Whether the trial is to be given up."""
    system_attrs: Mapping[str, Any]
    """What the pruner wants to find in the stored trial: the rungs that it completed."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ShadowStudy:
    """Proposes configurations and judges trials, from records only; one thread at a time."""

    space: SearchSpace
    """What is proposed; resolved."""
    stored_space: SearchSpace
    """What the study stores: `space` itself, or its union with earlier ones; resolved."""
    sampler: str = "tpe"
    """One of `config.study.SAMPLERS`."""
    seed: int = 0
    """The study's seed."""
    study_name: str
    """The study's name; Hyperband assigns brackets by it."""
    n_startup_trials: int = 10
    """See `search.samplers.startup_trials`."""
    _sights: dict[int, Sight] = field(default_factory=dict, init=False, repr=False, compare=False)
    """By number what was last seen there; right for as long as the record is the same object."""

    def propose(self, records: Sequence[ShadowTrial]) -> Proposal | None:
        """Propose the next configuration.

        Putting the default recipe first is the engine's part; the sampler knows no such rule.

        Args:
            records: Every trial of the stored study, whatever its state.

        Returns:
            A configuration that no record has, or None where there is none left: the grid, or a
            space that has only so many configurations, is exhausted.
        """
        tried = {self._sight(record).identity for record in records}
        with quiet_optuna():
            if self.sampler == "grid":
                return self._enumerate(records, tried, is_grid=True)
            proposal = self._sample(records, tried, self.sampler)
            if proposal is not None:
                return proposal
            # The sampler insists on what was tried: take what is left, or any other.
            if _is_finite(exploration(self.space)):
                return self._enumerate(records, tried, is_grid=False)
            return self._sample(records, tried, "random")

    def should_prune(
        self, pruner: BasePruner, records: Sequence[ShadowTrial], number: int
    ) -> PruneDecision:
        """Ask a pruner about a trial that has just reported.

        Every record takes part with its reports and attributes, reruns too.

        Args:
            pruner: The pruner, from `search.pruners`.
            records: Every trial of the stored study, with the new report.
            number: The trial in question.

        Returns:
            The decision, and what is to be stored with the trial.

        Raises:
            KeyError: No record has that number.
        """
        judged = {record.number: record for record in records}[number]
        if isinstance(pruner, NopPruner):
            return PruneDecision(is_pruned=False, system_attrs={})
        others = (record for record in records if record.number != number)
        frozen = [self._sight(record).judged for record in others]
        frozen.append(bare_trial(judged, TrialState.RUNNING))
        with quiet_optuna():
            study = self._study(_numbered(frozen, _next_number(records)), RandomSampler())
        is_pruned = pruner.prune(study, study.get_trials(deepcopy=False)[number])
        attrs = study.get_trials(deepcopy=False)[number].system_attrs
        new = {key: value for key, value in attrs.items() if key not in judged.system_attrs}
        return PruneDecision(is_pruned=is_pruned, system_attrs=new)

    def _sight(self, record: ShadowTrial) -> Sight:
        known = self._sights.get(record.number)
        if known is None or known.record is not record:
            known = self._sights[record.number] = Sight(record, self.space)
        return known

    def _sample(
        self, records: Sequence[ShadowTrial], tried: set[object], sampler: str
    ) -> Proposal | None:
        """Ask a sampler until it comes up with something new, a few times at most.

        What it repeats stays RUNNING in the shadow, which turns TPE and GP away from there.
        """
        study = self._exploring(records, sampler, is_grid=False)
        for _ in range(_ATTEMPTS):
            trial = _new_trial(study)
            params = suggest(trial, self.space)
            if identity(self.space, params) not in tried:
                return self._proposal(study, trial, params, _next_number(records))
        return None

    def _enumerate(
        self, records: Sequence[ShadowTrial], tried: set[object], *, is_grid: bool
    ) -> Proposal | None:
        """Ask the exhaustive sampler; it repeats itself only when nothing is left."""
        study = self._exploring(records, "grid", is_grid=is_grid)
        known = study.get_trials(deepcopy=False)
        places = {_place(trial.params) for trial in known if trial.state != TrialState.WAITING}
        while True:
            trial = _new_trial(study)
            params = suggest(trial, self.space, is_grid=is_grid)
            if identity(self.space, params) not in tried:
                return self._proposal(study, trial, params, _next_number(records))
            if _place(trial.params) in places:
                return None
            places.add(_place(trial.params))

    def _exploring(
        self, records: Sequence[ShadowTrial], sampler: str, *, is_grid: bool
    ) -> optuna.Study:
        """Build the shadow that a sampler explores, in the coordinates of the space."""
        number = _next_number(records)
        frozen = list(self._explored(records, sampler, is_grid=is_grid))
        if sampler == "cmaes":
            signature = _signature(frozen)
            by_number = {record.number: record for record in records}
            frozen = [
                _with_system_attrs(trial, _cma_attrs(by_number[trial.number], signature))
                for trial in frozen
            ]
        settings = SamplerSettings(
            study_seed=self.seed,
            trial_seed=int(np.random.SeedSequence([self.seed, number]).generate_state(1)[0]),
            n_startup_trials=self.n_startup_trials,
        )
        study = self._study(_numbered(frozen, number), make_sampler(sampler, settings))
        for key, value in _qmc_positions(records).items():
            study._storage.set_study_system_attr(study._study_id, key, value)
        return study

    def _explored(
        self, records: Sequence[ShadowTrial], sampler: str, *, is_grid: bool
    ) -> Iterator[FrozenTrial]:
        """Yield each configuration of the space once, at its furthest comparable value."""
        furthest: dict[object, Sight] = {}
        sights = (self._sight(record) for record in records)
        for sight in sorted(sights, key=lambda sight: sight.progress, reverse=True):
            furthest.setdefault(sight.identity, sight)
        for sight in furthest.values():
            trial = sight.explored(sampler, is_grid=is_grid)
            if trial is not None:
                yield trial

    def _study(self, trials: Sequence[FrozenTrial], sampler: BaseSampler) -> optuna.Study:
        storage = InMemoryStorage()
        study = optuna.create_study(
            storage=storage,
            study_name=self.study_name,
            direction="maximize",
            sampler=sampler,
            pruner=NopPruner(),
        )
        for trial in trials:
            storage.create_new_trial(study._study_id, template_trial=trial)
        return study

    def _proposal(
        self,
        study: optuna.Study,
        trial: optuna.Trial,
        params: Mapping[str, ParamValue],
        number: int,
    ) -> Proposal:
        stored = stored_distributions(self.stored_space)
        attrs = {
            key: value
            for key, value in _written(study, trial).items()
            if key.startswith((_CMA_PREFIX, _QMC_PREFIX))
        }
        if any(key.startswith(_CMA_PREFIX) for key in attrs):
            attrs[_SPACE_KEY] = _signature(study.get_trials(deepcopy=False))
        return Proposal(
            number=number,
            params=params,
            distributions={name: stored[name] for name in params},
            system_attrs=attrs,
        )


def _next_number(records: Sequence[ShadowTrial]) -> int:
    return max((record.number for record in records), default=-1) + 1


def _place(coordinates: Mapping[str, ParamValue]) -> object:
    return tuple(coordinates.items())


def _with_system_attrs(trial: FrozenTrial, attrs: dict[str, Any]) -> FrozenTrial:
    changed = copy.copy(trial)
    changed.system_attrs = attrs
    return changed


def _numbered(trials: Iterable[FrozenTrial], number: int) -> list[FrozenTrial]:
    """Put trials at their own numbers and placeholders, which no sampler reads, between them."""
    by_number = {trial.number: trial for trial in trials}
    waiting = TrialState.WAITING
    return [
        by_number.get(n) or bare_trial(ShadowTrial(number=n, params={}, state=waiting), waiting)
        for n in range(number)
    ]


def _new_trial(study: optuna.Study) -> optuna.Trial:
    """Begin a trial. `study.ask()` would take a placeholder, which is WAITING, instead."""
    return optuna.Trial(study, study._storage.create_new_trial(study._study_id))


def _written(study: optuna.Study, trial: optuna.Trial) -> Mapping[str, Any]:
    """Return what the sampler wrote to the trial and to the study."""
    storage = study._storage
    of_trial = storage.get_trial(trial._trial_id).system_attrs
    return {**of_trial, **storage.get_study_system_attrs(study._study_id)}


def _is_finite(distributions: Mapping[str, BaseDistribution]) -> bool:
    return all(
        not isinstance(distribution, FloatDistribution)
        or distribution.step is not None
        or distribution.single()
        for distribution in distributions.values()
    )


def _qmc_positions(records: Sequence[ShadowTrial]) -> dict[str, int]:
    """Return how far along its sequences QMC is; Optuna keeps that with the study."""
    positions: dict[str, int] = {}
    for record in records:
        for key, value in record.system_attrs.items():
            if key.startswith(_QMC_PREFIX):
                positions[key] = max(value, positions.get(key, -1))
    return positions


def _signature(trials: Sequence[FrozenTrial]) -> str:
    """Identify the parameters that CMA-ES models: those of every complete trial."""
    text = repr(sorted(intersection_search_space(list(trials)).items()))
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def _cma_attrs(record: ShadowTrial, signature: str) -> dict[str, Any]:
    """Return CMA-ES's state in a record, unless it is about other parameters or ranges.

    Optuna would find an optimizer of another dimension, and never use CMA-ES again.
    """
    if record.system_attrs.get(_SPACE_KEY) != signature:
        return {}
    attrs = record.system_attrs.items()
    return {key: value for key, value in attrs if key.startswith(_CMA_PREFIX)}


@contextmanager
def quiet_optuna() -> Iterator[None]:
    """Silence the lines of Optuna's log in `_NOISE` and no others; a context manager."""

    def is_news(entry: logging.LogRecord) -> bool:
        return not entry.getMessage().startswith(_NOISE[entry.name])

    loggers = [logging.getLogger(name) for name in _NOISE]
    for logger in loggers:
        logger.addFilter(is_news)
    try:
        yield
    finally:
        for logger in loggers:
            logger.removeFilter(is_news)
