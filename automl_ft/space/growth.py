"""How may a search space change between two runs of a study?

The stored distribution of a parameter is the union of all spaces that the study was searched
with, so that every stored trial stays valid: choices are appended, never reordered or removed, and
ranges only widen. A space may shrink; then fewer values are proposed, and the stored distribution
stays. The type of a parameter, its `log` and its steps never change: there is no union of those.

A hyperparameter that is set, not searched, is in no distribution, so it may be set to anything
else, be searched from now on, or no longer: each trial stores its own complete hyperparameters.
Those of earlier trials that today's space cannot make are outside it (`suggest.coordinates`).
"""

from __future__ import annotations

from dataclasses import replace

from automl_ft.errors import Problem
from automl_ft.space.spec import (
    CategoricalParam,
    Fixed,
    FloatParam,
    IntParam,
    Parameter,
    Sampled,
    SearchSpace,
)

__all__ = ["growth_problems", "merge"]

_KINDS: dict[type[Sampled], str] = {FloatParam: "a float range", IntParam: "a whole-number range"}


def growth_problems(old: SearchSpace, new: SearchSpace) -> list[Problem]:
    """Say why a study of one space cannot go on with another.

    Args:
        old: The stored union, resolved.
        new: The space asked for, resolved.

    Returns:
        A problem for each parameter that both search whose type, `log` or steps differ; empty if
        it can go on.
    """
    problems = []
    for param in new.sampled:
        before = old.find(param.name)
        if before is None or isinstance(before, Fixed):
            continue
        changed = _change(before, param)
        if changed:
            message = (
                f"The study stores it as {changed[0]}, but the space now makes it {changed[1]}."
                " Change it back, or start a study with another name."
            )
            problems.append(Problem(place=f"{new.name}: {param.name}", message=message))
    return problems


def _change(old: Sampled, new: Sampled) -> tuple[str, str] | None:
    """Return what was and what is asked for, where no union of both exists."""
    before, after = (_KINDS.get(type(param), "choices") for param in (old, new))
    if isinstance(old, CategoricalParam) or isinstance(new, CategoricalParam) or before != after:
        return None if before == after else (before, after)
    if old.log != new.log:
        return f"`log: {str(old.log).lower()}`", f"`log: {str(new.log).lower()}`"
    return None if _is_aligned(old, new) else (_steps(old), _steps(new))


def _is_aligned(old: FloatParam | IntParam, new: FloatParam | IntParam) -> bool:
    """Whether both ranges have the same steps, counted from places a whole step apart."""
    if old.step != new.step or old.step is None:
        return old.step == new.step
    offset = (_low(old) - _low(new)) / old.step
    return abs(offset - round(offset)) < 1e-8


def _low(param: FloatParam | IntParam) -> float:
    return param.bounds[0] if isinstance(param, IntParam) else param.low


def _steps(param: FloatParam | IntParam) -> str:
    return f"a range from {_low(param):g} in steps of {param.step}"


def merge(old: SearchSpace, new: SearchSpace) -> SearchSpace:
    """Return the union of two spaces: what the study stores from now on.

    Args:
        old: The stored union, resolved.
        new: The space asked for, resolved, without `growth_problems`.

    Returns:
        The new space with every range and every list of choices widened to hold the old one's,
        and after it the parameters that only the old space searched.
    """
    merged = tuple(_union(old.find(param.name), param) for param in new.parameters)
    names = {param.name for param in new.parameters}
    dropped = tuple(param for param in old.sampled if param.name not in names)
    return replace(new, parameters=merged + dropped)


def _union(old: Parameter | None, new: Parameter) -> Parameter:
    if old is None or isinstance(old, Fixed):
        return new
    if isinstance(new, Fixed):
        return old
    if isinstance(old, CategoricalParam) and isinstance(new, CategoricalParam):
        added = tuple(choice for choice in new.choices if choice not in old.choices)
        return replace(new, choices=old.choices + added)
    if isinstance(old, IntParam) and isinstance(new, IntParam):
        (old_low, old_high), (low, high) = old.bounds, new.bounds
        return replace(new, low=min(old_low, low), high=max(old_high, high))
    assert isinstance(old, FloatParam)
    assert isinstance(new, FloatParam)
    return replace(new, low=min(old.low, new.low), high=max(old.high, new.high))
