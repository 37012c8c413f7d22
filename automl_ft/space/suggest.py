"""How does Optuna see a search space: as the study stores it, and as a sampler explores it?

The stored study has one distribution for each name, the union over all conditions: a range that
depends on another parameter would drop out of multivariate TPE and be sampled blindly. A sampler
explores *coordinates*: a parameter with a prior is expressed relative to its centre, so that what
one freezing strategy teaches about the learning rate helps the others, and its distribution is
the same for all of them. For the grid sampler every coordinate is a short list.
"""

from __future__ import annotations

import math
from collections.abc import Container, Mapping

from optuna import Trial
from optuna.distributions import (
    BaseDistribution,
    CategoricalDistribution,
    FloatDistribution,
    IntDistribution,
)

from automl_ft.space.spec import CategoricalParam, FloatParam, IntParam, Sampled, SearchSpace
from automl_ft.specs.hyperparameters import HYPERPARAMETERS
from automl_ft.specs.trial import ParamValue

__all__ = ["coordinates", "exploration", "stored_distributions", "suggest"]

_GRID_INTS = 5
_SAME = 1e-9


def stored_distributions(space: SearchSpace) -> dict[str, BaseDistribution]:
    """Return the distributions that the stored study holds.

    Args:
        space: A resolved space.

    Returns:
        A distribution for each searched parameter; fixed ones are not stored.

    Raises:
        ValueError: The space was not resolved for a model.
    """
    return {param.name: _distribution(param) for param in space.sampled}


def exploration(space: SearchSpace, *, is_grid: bool = False) -> dict[str, BaseDistribution]:
    """Return the distributions of the coordinates that a sampler explores.

    Args:
        space: A resolved space.
        is_grid: Whether every coordinate is a list: floats take their `grid` or low, default and
            high (with a prior a third of the way out on either side of the centre, in the
            logarithm), whole numbers their `grid` or up to five values, spread out.

    Returns:
        A distribution for each searched parameter.

    Raises:
        ValueError: The space was not resolved for a model.
    """
    if is_grid:
        return {param.name: CategoricalDistribution(_grid(param)) for param in space.sampled}
    return {param.name: _coordinate(param) for param in space.sampled}


def suggest(trial: Trial, space: SearchSpace, *, is_grid: bool = False) -> dict[str, ParamValue]:
    """Let a sampler choose a configuration, define-by-run: conditions first.

    Args:
        trial: A trial of a shadow study; afterwards it holds the coordinates.
        space: A resolved space.
        is_grid: Whether the coordinates are those of the grid.

    Returns:
        A value for every searched parameter that applies, and for no other, in order.

    Raises:
        ValueError: The space was not resolved for a model.
    """
    distributions = exploration(space, is_grid=is_grid)
    params: dict[str, ParamValue] = {}
    for param in space.sampled:
        if param.name in space.active(params):
            chosen = _suggest_one(trial, param.name, distributions[param.name])
            params[param.name] = _value(param, chosen, {**space.fixed, **params})
    return params


def coordinates(
    params: Mapping[str, ParamValue], space: SearchSpace, *, is_grid: bool = False
) -> dict[str, ParamValue] | None:
    """Express a configuration in the coordinates of a space: the inverse of `suggest`.

    Args:
        params: The configuration, best with every hyperparameter. One that it lacks counts as the
            neutral default where the space searches it, else as what the space sets it to.
        space: A resolved space.
        is_grid: Whether the coordinates are those of the grid.

    Returns:
        A coordinate for every searched parameter that applies, in order; None where the
        configuration lies outside the space or off the grid, or has another value for what the
        space does not search. A value within the range but outside the prior's is moved to the
        end of the prior's.

    Raises:
        ValueError: The space was not resolved for a model.
    """
    searched = {param.name for param in space.sampled}
    known = {name: value for name, value in params.items() if name in searched}
    found: dict[str, ParamValue] = {}
    for param in space.sampled:
        if param.name not in space.active(known):
            continue
        known.setdefault(param.name, HYPERPARAMETERS[param.name].default)
        if param.problem_with(known[param.name]):
            return None
        given = {**space.fixed, **known}
        place = _on_grid(param, given) if is_grid else (_relative(param, given),)
        if not place:
            return None
        found[param.name] = place[0]
    return None if _is_set_otherwise(params, space, found) else found


def _is_set_otherwise(
    params: Mapping[str, ParamValue], space: SearchSpace, searched: Container[str]
) -> bool:
    """Whether a configuration differs from a space in what the space does not search there."""
    values = space.hyperparameters({})
    return any(
        name in values and name not in searched and not _is_same(value, values[name])
        for name, value in params.items()
    )


def _distribution(param: Sampled) -> BaseDistribution:
    if isinstance(param, CategoricalParam):
        return CategoricalDistribution(param.choices)
    if isinstance(param, IntParam):
        low, high = param.bounds
        return IntDistribution(low, high, log=param.log, step=param.step)
    return FloatDistribution(param.low, param.high, log=param.log, step=param.step)


def _coordinate(param: Sampled) -> BaseDistribution:
    if isinstance(param, FloatParam) and param.prior is not None:
        return FloatDistribution(1 / param.prior.spread, param.prior.spread, log=True)
    return _distribution(param)


def _suggest_one(trial: Trial, name: str, distribution: BaseDistribution) -> ParamValue:
    if isinstance(distribution, FloatDistribution):
        low, high = distribution.low, distribution.high
        return trial.suggest_float(name, low, high, log=distribution.log, step=distribution.step)
    if isinstance(distribution, IntDistribution):
        low, high = distribution.low, distribution.high
        return trial.suggest_int(name, low, high, log=distribution.log, step=distribution.step)
    assert isinstance(distribution, CategoricalDistribution)
    return trial.suggest_categorical(name, distribution.choices)


def _value(param: Sampled, chosen: ParamValue, given: Mapping[str, ParamValue]) -> ParamValue:
    """Turn a coordinate into the parameter's value."""
    if isinstance(param, FloatParam) and param.prior is not None:
        assert isinstance(chosen, (int, float))
        return min(max(chosen * param.default_given(given), param.low), param.high)
    return chosen


def _relative(param: Sampled, given: Mapping[str, ParamValue]) -> ParamValue:
    """Turn a parameter's value into its coordinate."""
    value = given[param.name]
    if isinstance(param, FloatParam) and param.prior is not None:
        assert isinstance(value, (int, float))
        relative = value / param.default_given(given)
        return min(max(relative, 1 / param.prior.spread), param.prior.spread)
    return value


def _on_grid(param: Sampled, given: Mapping[str, ParamValue]) -> tuple[ParamValue, ...]:
    """Return the coordinate of the grid that has the parameter's value, if there is one."""
    value = given[param.name]
    return tuple(c for c in _grid(param) if _is_same(_value(param, c, given), value))[:1]


def _is_same(one: ParamValue, other: ParamValue) -> bool:
    if isinstance(one, float) and isinstance(other, (int, float)):
        return math.isclose(one, other, rel_tol=_SAME)
    return one == other


def _grid(param: Sampled) -> tuple[ParamValue, ...]:
    if isinstance(param, CategoricalParam):
        return param.choices
    if isinstance(param, IntParam):
        return param.grid or _spread_ints(param)
    if param.grid:
        return param.grid
    if param.prior is not None:
        third = param.prior.spread ** (1 / 3)
        return (1 / third, 1.0, third)
    return tuple(sorted({param.low, param.default, param.high}))


def _spread_ints(param: IntParam) -> tuple[int, ...]:
    low, high = param.bounds
    values = range(low, high + 1, param.step)
    if len(values) <= _GRID_INTS:
        return tuple(values)
    last = len(values) - 1
    picked = {values[round(i * last / (_GRID_INTS - 1))] for i in range(_GRID_INTS)}
    return tuple(sorted({*picked, param.default_given({})}))
