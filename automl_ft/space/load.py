"""How does a search-space file become a `SearchSpace`, with all its mistakes in one message?

A space is a mapping with one entry per hyperparameter, besides `name` and `description`. It comes
from a shipped file, a file of the user's, or stands inside a study file.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from automl_ft.config.yaml_file import read_yaml
from automl_ft.errors import ConfigError, Problem, did_you_mean
from automl_ft.files.shipped import shipped_file, shipped_names
from automl_ft.space.entries import parse_entry
from automl_ft.space.spec import (
    CategoricalParam,
    Condition,
    Fixed,
    FloatParam,
    IntParam,
    Parameter,
    SearchSpace,
)
from automl_ft.specs.hyperparameters import HYPERPARAMETERS
from automl_ft.specs.trial import ParamValue

__all__ = ["list_spaces", "load_space"]

_TEXTS = ("name", "description")


def list_spaces() -> tuple[str, ...]:
    """Return the names of the search spaces that ship with automl-ft.

    Returns:
        Names that `load_space` takes, sorted.
    """
    return shipped_names("search_spaces")


def load_space(
    source: str | Mapping[str, Any], *, folder: Path | None = None, place: str = "space"
) -> SearchSpace:
    """Load a search space.

    Args:
        source: The name of a shipped space, a path to a file, or the space itself.
        folder: What a relative path starts from; the working directory if none is given.
        place: Where `source` came from, such as `studies/demo.yaml: space`.

    Returns:
        The space; bounds may still name facts of the model (see `space.resolve`).

    Raises:
        ConfigError: With every problem of the space.
    """
    content: Mapping[str, Any]
    problems: list[Problem]
    if isinstance(source, str):
        path = _find(source, folder or Path(), place)
        content, problems = read_yaml(path)
        if problems and not content:
            raise ConfigError(problems)
        place, name, separator = str(path), path.stem, ": "
    else:
        content, problems, name, separator = source, [], "inline", "."
    space, more = _build(content, name, f"{place}{separator}")
    if space is None or problems or more:
        raise ConfigError([*problems, *more])
    return space


def _find(source: str, folder: Path, place: str) -> Path:
    shipped = shipped_file("search_spaces", source)
    if shipped is not None:
        return shipped
    path = folder / source
    if path.is_file():
        return path
    if "/" in source or "\\" in source or source.endswith((".yaml", ".yml")):
        message = f"There is no file `{path}`. Give the path of a search space, or one of the names"
        message = f"{message} {', '.join(list_spaces())}."
    else:
        hint = did_you_mean(source, list_spaces())
        message = f"`{source}` is no search space that ships, and no file. {hint}"
    raise ConfigError([Problem(place=place, message=message)])


def _build(
    content: Mapping[str, Any], name: str, prefix: str
) -> tuple[SearchSpace | None, list[Problem]]:
    problems = list(_text_problems(content, prefix))
    params: dict[str, Parameter] = {}
    for key, entry in content.items():
        if key in _TEXTS:
            continue
        if key not in HYPERPARAMETERS:
            hint = did_you_mean(str(key), HYPERPARAMETERS)
            message = f"There is no hyperparameter of this name. {hint}"
            problems.append(Problem(place=f"{prefix}{key}", message=message))
            continue
        param, found = parse_entry(key, entry, f"{prefix}{key}")
        problems.extend(found)
        if param is not None:
            params[key] = param
    if not set(content) - set(_TEXTS):
        message = "The space names no hyperparameter. Add at least one, for example learning_rate."
        problems.append(Problem(place=prefix.rstrip(": ."), message=message))
    problems.extend(_cross_problems(params, content, prefix))
    if problems:
        return None, problems
    parameters = tuple(_with_prior_default(param, params) for param in _parents_first(params))
    title, description = (str(content.get(key, "")) for key in _TEXTS)
    return SearchSpace(name=title or name, description=description, parameters=parameters), []


def _text_problems(content: Mapping[str, Any], prefix: str) -> Iterator[Problem]:
    for key in _TEXTS:
        if not isinstance(content.get(key, ""), str):
            message = f"`{content[key]}` is not accepted; accepted is text."
            yield Problem(place=f"{prefix}{key}", message=message)


def _cross_problems(
    params: Mapping[str, Parameter], content: Mapping[str, Any], prefix: str
) -> Iterator[Problem]:
    """Yield what is wrong between entries; entries with problems of their own are left alone."""
    for name, param in params.items():
        if isinstance(param, Fixed):
            continue
        for condition in param.when:
            if condition.name in params or condition.name not in content:
                place = f"{prefix}{name}.when.{condition.name}"
                message = _condition_problem(condition, params)
                if message:
                    yield Problem(place=place, message=message)
        if isinstance(param, FloatParam) and param.prior and _readable(param, params, content):
            yield from _prior_problems(param, params, f"{prefix}{name}")
    for name in _circular(params):
        message = f"The conditions of `{name}` lead back to itself. Remove one of them."
        yield Problem(place=f"{prefix}{name}.when", message=message)


def _condition_problem(condition: Condition, params: Mapping[str, Parameter]) -> str | None:
    other = params.get(condition.name)
    if other is None:
        return f"The space has no `{condition.name}`. {did_you_mean(condition.name, params)}"
    if isinstance(other, FloatParam):
        return f"`{other.name}` is a float range; a condition needs choices or whole numbers."
    for value in condition.values:
        problem = _unreachable(other, value)
        if problem:
            return f"`{value}` is no value of `{other.name}`; {problem}. Change one of them."
    return None


def _unreachable(other: Parameter, value: ParamValue) -> str | None:
    if isinstance(other, IntParam) and (isinstance(other.low, str) or isinstance(other.high, str)):
        return HYPERPARAMETERS[other.name].problem_with(value)
    if isinstance(other, Fixed):
        return HYPERPARAMETERS[other.name].problem_with(value)
    return other.problem_with(value)


def _readable(
    param: FloatParam, params: Mapping[str, Parameter], content: Mapping[str, Any]
) -> bool:
    assert param.prior is not None
    return param.prior.by in params or param.prior.by not in content


def _prior_problems(
    param: FloatParam, params: Mapping[str, Parameter], place: str
) -> Iterator[Problem]:
    prior = param.prior
    assert prior is not None
    by = params.get(prior.by)
    if not isinstance(by, (CategoricalParam, Fixed)) or HYPERPARAMETERS[by.name].kind is not str:
        message = f"`{prior.by}` is no parameter with text as choices in this space. Name one."
        yield Problem(place=f"{place}.prior.by", message=message)
        return
    choices = (by.value,) if isinstance(by, Fixed) else by.choices
    if isinstance(by, CategoricalParam) and by.when:
        message = f"`{by.name}` has conditions, so it may have no value. Remove them or the prior."
        yield Problem(place=f"{place}.prior.by", message=message)
    for choice in choices:
        if choice not in prior.centers:
            message = f"There is no centre for `{choice}`, a choice of `{by.name}`. Add one."
            yield Problem(place=f"{place}.prior.centers", message=message)
    for center in prior.centers:
        if HYPERPARAMETERS[by.name].problem_with(center):
            hint = did_you_mean(center, [str(choice) for choice in choices])
            message = f"`{center}` is no value of `{by.name}`. {hint}"
            yield Problem(place=f"{place}.prior.centers.{center}", message=message)


def _with_prior_default(param: Parameter, params: Mapping[str, Parameter]) -> Parameter:
    """Make the default of a parameter with a prior the centre of the default recipe."""
    if not isinstance(param, FloatParam) or param.prior is None:
        return param
    by = params[param.prior.by]
    choice = by.value if isinstance(by, Fixed) else by.default
    return replace(param, default=param.prior.centers[str(choice)])


def _parents(param: Parameter) -> list[str]:
    if isinstance(param, Fixed):
        return []
    names = [condition.name for condition in param.when]
    if isinstance(param, FloatParam) and param.prior is not None:
        names.append(param.prior.by)
    return names


def _parents_first(params: Mapping[str, Parameter]) -> list[Parameter]:
    """Order parameters so that what others depend on comes first; else as in the file."""
    done: dict[str, Parameter] = {}
    waiting = dict(params)
    while waiting:
        ready = [
            n for n, p in waiting.items() if all(o in done for o in _parents(p) if o in params)
        ]
        if not ready:
            break
        done.update((name, waiting.pop(name)) for name in ready)
    return list(done.values())


def _circular(params: Mapping[str, Parameter]) -> list[str]:
    ordered = {param.name for param in _parents_first(params)}
    return [name for name in params if name not in ordered]
