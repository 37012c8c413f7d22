"""What is a search space for one model, once the model's facts are known?

Bounds such as `num_layers - 1` become numbers. Where that leaves a conditional parameter without
any value, the choice that it depends on is impossible for the model and drops out: ALBERT shares
one block among its layers, so `frozen_layers` from 1 to `num_layers - 1` is empty and
`bottom_layers` is no choice of `freezing` in that study. A default that names facts, or whose
bounds do, is moved into the range.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace

from automl_ft.errors import ConfigError, Problem
from automl_ft.space.bounds import evaluate_bound
from automl_ft.space.spec import (
    CategoricalParam,
    Condition,
    Fixed,
    IntParam,
    Parameter,
    Sampled,
    SearchSpace,
)
from automl_ft.specs.trial import ParamValue

__all__ = ["resolve"]


def resolve(space: SearchSpace, facts: Mapping[str, int]) -> SearchSpace:
    """Put the facts of the model into a space.

    Args:
        space: The space as it was loaded.
        facts: Facts of the model by name, such as `num_layers`; where the space searches the
            model, what holds for every one of them.

    Returns:
        A space whose bounds are numbers. Choices that are impossible for the model are gone, and
        so are the parameters that applied only to them.

    Raises:
        ConfigError: A parameter has no value for this model and no choice can drop out instead.
    """
    parameters = tuple(_with_numbers(param, facts) for param in space.parameters)
    while (empty := next(filter(_is_empty, parameters), None)) is not None:
        parameters = _without(empty, parameters, space.name, facts)
    return replace(space, parameters=parameters)


def _with_numbers(param: Parameter, facts: Mapping[str, int]) -> Parameter:
    if not isinstance(param, IntParam):
        return param
    low, high = _number(param.low, facts), _number(param.high, facts)
    default = _number(param.default, facts)
    if low > high:
        return replace(param, low=low, high=high, default=default)
    if any(isinstance(bound, str) for bound in (param.low, param.high, param.default)):
        high = low + (high - low) // param.step * param.step
        default = min(max(default, low), high)
        default = low + (default - low) // param.step * param.step
    grid = tuple(value for value in param.grid if low <= value <= high)
    return replace(param, low=low, high=high, default=default, grid=grid)


def _number(bound: int | str, facts: Mapping[str, int]) -> int:
    return evaluate_bound(bound, facts) if isinstance(bound, str) else bound


def _is_empty(param: Parameter) -> bool:
    return isinstance(param, IntParam) and param.bounds[0] > param.bounds[1]


def _without(
    empty: Parameter, parameters: tuple[Parameter, ...], place: str, facts: Mapping[str, int]
) -> tuple[Parameter, ...]:
    """Drop an empty parameter and the choice that it belongs to."""
    assert isinstance(empty, IntParam)
    condition = empty.when[0] if len(empty.when) == 1 else None
    parent = next((p for p in parameters if condition and p.name == condition.name), None)
    if isinstance(parent, Fixed) and condition and parent.value not in condition.values:
        return tuple(param for param in parameters if param is not empty)
    left = _choices_left(parent, condition)
    if not isinstance(parent, CategoricalParam) or not left or parent.default not in left:
        raise ConfigError([_impossible(empty, place, facts)])
    shrunk = replace(parent, choices=left)
    kept = (shrunk if param is parent else param for param in parameters if param is not empty)
    return tuple(_drop_unreachable(kept, shrunk))


def _choices_left(parent: Parameter | None, condition: Condition | None) -> tuple[ParamValue, ...]:
    if not isinstance(parent, CategoricalParam) or condition is None:
        return ()
    return tuple(choice for choice in parent.choices if choice not in condition.values)


def _drop_unreachable(
    parameters: Iterable[Parameter], parent: CategoricalParam
) -> Iterable[Parameter]:
    """Leave out what applied only to choices that are gone, and what depended on that."""
    gone: set[str] = set()
    for param in parameters:
        conditions = () if isinstance(param, Fixed) else param.when
        unreachable = any(
            condition.name in gone
            or (condition.name == parent.name and not set(condition.values) & set(parent.choices))
            for condition in conditions
        )
        if unreachable:
            gone.add(param.name)
        else:
            yield param


def _impossible(param: Sampled, place: str, facts: Mapping[str, int]) -> Problem:
    assert isinstance(param, IntParam)
    known = ", ".join(f"{name} = {value}" for name, value in facts.items())
    message = (
        f"The range from {param.low} to {param.high} is empty for this model ({known})."
        " Change the range, or make it depend on one choice, other than the default one, that can"
        " drop out."
    )
    return Problem(place=f"{place}: {param.name}", message=message)
