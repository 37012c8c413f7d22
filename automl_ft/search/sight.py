"""What do samplers and pruners see of one record? What follows from it alone, worked out once.

A shadow (`search.shadow`) is built anew for every question, from records that are mostly the same
as before.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from datetime import datetime
from typing import Any

from optuna.trial import FrozenTrial, TrialState

from automl_ft.space.spec import SearchSpace
from automl_ft.space.suggest import coordinates, exploration
from automl_ft.specs.trial import ParamValue

__all__ = ["ShadowTrial", "Sight", "bare_trial", "identity"]

_WHENEVER = datetime(2000, 1, 1)
_LEARN_FROM_COMPLETE_ONLY = ("gp", "cmaes")


@dataclass(frozen=True, kw_only=True, slots=True)
class ShadowTrial:
    """What the shadow needs to know of a stored trial."""

    number: int
    """The trial's number in the stored study."""
    params: Mapping[str, ParamValue]
    """Every hyperparameter that it runs with; what is missing counts as what the space sets."""
    state: TrialState
    """Its state in the stored study."""
    value: float | None = None
    """The objective, higher is better, where the trial is COMPLETE."""
    intermediate_values: Mapping[int, float] = field(default_factory=dict)
    """Objective by step."""
    system_attrs: Mapping[str, Any] = field(default_factory=dict)
    """The stored trial's system attributes: what proposals and prune decisions handed back."""

    @property
    def is_paused(self) -> bool:
        """Whether the trial stopped with a checkpoint after at least one report."""
        return self.state == TrialState.WAITING and bool(self.intermediate_values)


class _SharedTrial(FrozenTrial):
    """A trial that several shadows share.

    Optuna's in-memory storage copies what it is given in all its depth, which takes most of the
    time. It never changes what a trial holds, but replaces it, so the surface is enough.
    """

    def __deepcopy__(self, memo: dict[int, Any]) -> FrozenTrial:
        # What `copy.copy` does, in a quarter of the time.
        shallow = object.__new__(FrozenTrial)
        shallow.__dict__.update(self.__dict__)
        return shallow


class Sight:
    """What follows from one record alone."""

    def __init__(self, record: ShadowTrial, space: SearchSpace) -> None:
        """Look at a record.

        Args:
            record: The record.
            space: What is searched now.
        """
        self.record = record
        """The record."""
        self.identity = identity(space, record.params)
        """Equal for trials of one recipe."""
        self.progress = _progress(record)
        """How far it came, in ascending order."""
        self.judged = bare_trial(record, record.state)
        """The trial that a pruner sees."""
        self._space = space
        self._explored: dict[tuple[str, bool], FrozenTrial | None] = {}

    def explored(self, sampler: str, *, is_grid: bool) -> FrozenTrial | None:
        """Return the trial that a sampler sees.

        Args:
            sampler: One of `config.study.SAMPLERS`.
            is_grid: Whether coordinates are those of the grid.

        Returns:
            A trial in the coordinates of the space; None where the record lies outside of it.
        """
        key = (sampler, is_grid)
        if key not in self._explored:
            self._explored[key] = self._explore(sampler, is_grid)
        return self._explored[key]

    def _explore(self, sampler: str, is_grid: bool) -> FrozenTrial | None:
        place = coordinates(self.record.params, self._space, is_grid=is_grid)
        if place is None:
            return None
        distributions = exploration(self._space, is_grid=is_grid)
        trial = _seen_by(sampler, self.record)
        trial.params = place
        trial.distributions = {name: distributions[name] for name in place}
        trial.system_attrs = {}
        return trial


def identity(space: SearchSpace, params: Mapping[str, ParamValue]) -> object:
    """Return what two trials of one recipe have in common: every hyperparameter.

    Args:
        space: What is searched now; sets what a trial does not say. Fixed hyperparameters count
            too: what they are set to may have changed since an earlier trial.
        params: Those of a trial.

    Returns:
        Equal for trials of one recipe.
    """
    recipe = {**space.hyperparameters({}), **params}.items()
    return tuple((n, f"{v:.12g}" if isinstance(v, int | float) else v) for n, v in recipe)


def _progress(record: ShadowTrial) -> tuple[int, int, int]:
    """Say how far a trial came: full ones, then by step, then the older ones."""
    ranks = {TrialState.COMPLETE: 3, TrialState.PRUNED: 2, TrialState.RUNNING: 1}
    rank = ranks.get(_state(record), 0)
    return rank, max(record.intermediate_values, default=0), -record.number


def _state(record: ShadowTrial) -> TrialState:
    if record.is_paused:
        return TrialState.PRUNED
    if record.state == TrialState.WAITING:
        return TrialState.RUNNING
    has_value = record.value is not None and math.isfinite(record.value)
    if record.state == TrialState.COMPLETE and not has_value:
        return TrialState.FAIL
    return record.state


def _seen_by(sampler: str, record: ShadowTrial) -> FrozenTrial:
    """Build Optuna's trial of a record in the state that the sampler learns most from.

    GP and CMA-ES learn from COMPLETE trials only and would propose what was pruned over and over,
    so there a pruned or paused trial is complete, at its best validation. QMC does not learn; it
    takes its parameters from the first trial that is PRUNED or COMPLETE, so all are.
    """
    state = _state(record)
    if sampler == "qmc":
        return bare_trial(record, TrialState.PRUNED)
    values = [value for value in record.intermediate_values.values() if math.isfinite(value)]
    if sampler in _LEARN_FROM_COMPLETE_ONLY and state == TrialState.PRUNED and values:
        return bare_trial(replace(record, value=max(values)), TrialState.COMPLETE)
    return bare_trial(record, state)


def bare_trial(record: ShadowTrial, state: TrialState) -> FrozenTrial:
    """Build Optuna's trial of a record, without parameters.

    Args:
        record: The record.
        state: The trial's state.

    Returns:
        A trial that several shadows may share.
    """
    return _SharedTrial(
        number=record.number,
        trial_id=record.number,
        state=state,
        value=record.value if state == TrialState.COMPLETE else None,
        datetime_start=_WHENEVER,
        datetime_complete=_WHENEVER if state.is_finished() else None,
        params={},
        distributions={},
        user_attrs={},
        system_attrs=dict(record.system_attrs),
        intermediate_values=dict(record.intermediate_values),
    )
