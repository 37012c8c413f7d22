"""How do plain values become config dataclasses, with every problem reported together?"""

from __future__ import annotations

import dataclasses
import types
import typing
from collections.abc import Mapping
from typing import Any, Union, get_args, get_origin

from automl_ft.config.checks import FieldError, shown_value
from automl_ft.errors import Problem, did_you_mean

__all__ = ["build"]

_NAMES = {int: "a whole number", float: "a number", str: "text", bool: "true or false"}


class _MisfitError(Exception):
    """A value does not fit an annotation."""


def build(kind: type, plain: Any, where: str, problems: list[Problem]) -> Any:
    """Build a config dataclass from plain values.

    Args:
        kind: The dataclass.
        plain: A mapping of its fields, as YAML gives it.
        where: Place of the mapping for messages: a file, with `: key` where it is nested.
        problems: Problems found are appended here.

    Returns:
        An instance of `kind`, or None if it could not be built; then `problems` has grown.
    """
    if not isinstance(plain, Mapping):
        accepted = ", ".join(field.name for field in dataclasses.fields(kind))
        problems.append(
            Problem(
                place=where,
                message=f"`{_shown(plain)}` is not accepted; accepted is a mapping of {accepted}.",
            )
        )
        return None
    hints = typing.get_type_hints(kind)
    values: dict[str, Any] = {}
    broken: set[str] = set()
    for key, value in plain.items():
        if key not in hints:
            hint = did_you_mean(str(key), hints)
            problems.append(Problem(place=_join(where, key), message=f"unknown key. {hint}"))
            continue
        before = len(problems)
        values[key] = _field(kind, key, hints[key], value, _join(where, key), problems)
        if len(problems) > before:
            broken.add(key)
    for name in sorted(_required(kind) - values.keys()):
        problems.append(Problem(place=_join(where, name), message="missing; a value is needed."))
        broken.add(name)
    return _construct(kind, values, broken, where, problems)


def _construct(
    kind: type, values: dict[str, Any], broken: set[str], where: str, problems: list[Problem]
) -> Any:
    """Build the dataclass, dropping one refused field after the other to find them all."""
    required, hints = _required(kind), typing.get_type_hints(kind)
    good = {key: value for key, value in values.items() if key not in broken}
    # A config checks its own fields only, so None may stand for a nested one that has problems.
    good.update({name: None for name in required & broken if _is_config(hints[name])})
    if required - good.keys():
        return None
    start = len(problems)
    while True:
        try:
            built = kind(**good)
        except FieldError as error:
            if error.name in broken:
                return None
            problems.append(Problem(place=_join(where, error.name), message=error.message))
            if error.name not in good or error.name in required:
                return None
            broken.add(error.name)
            del good[error.name]
        else:
            return built if len(problems) == start and not broken else None


def _required(kind: type) -> set[str]:
    return {
        field.name
        for field in dataclasses.fields(kind)
        if field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING
    }


def _is_config(hint: Any) -> bool:
    return dataclasses.is_dataclass(hint) and isinstance(hint, type)


def _field(
    kind: type, name: str, hint: Any, value: Any, place: str, problems: list[Problem]
) -> Any:
    if _is_config(hint):
        return build(hint, value, place, problems)
    try:
        return _fit(hint, value)
    except _MisfitError:
        accepted = _describe(hint)
        message = f"`{_shown(value)}` is not accepted; accepted is {accepted}."
        if hint is str or str in get_args(hint):
            message = _own_words(kind, name, value) or message
        problems.append(Problem(place=place, message=message))
        return None


def _own_words(kind: type, name: str, value: Any) -> str | None:
    """Return what the config itself says of a value that is no text: it may know choices."""
    try:
        kind(**{name: value})
    except FieldError as error:
        return error.message if error.name == name else None
    except (TypeError, ValueError, AttributeError):
        pass  # it asks for more than one field, or takes the value for text
    return None


def _fit(hint: Any, value: Any) -> Any:
    """Return the value as the annotation wants it; ints may stand for floats, lists for tuples."""
    origin, args = get_origin(hint), get_args(hint)
    if origin in (Union, types.UnionType):
        for arg in args:
            try:
                return _fit(arg, value)
            except _MisfitError:
                continue
        raise _MisfitError
    if origin is tuple:
        items = [value] if isinstance(value, str) else value
        if not isinstance(items, (list, tuple)):
            raise _MisfitError
        return tuple(_fit(args[0], item) for item in items)
    if hint is type(None):
        if value is None:
            return None
        raise _MisfitError
    if hint is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    expected = Mapping if origin is not None else hint
    if not isinstance(value, expected) or (isinstance(value, bool) and hint is not bool):
        raise _MisfitError
    return value


def _shown(value: Any) -> str:
    """Return a value as YAML writes it."""
    return "null" if value is None else shown_value(value)


def _describe(hint: Any) -> str:
    origin, args = get_origin(hint), get_args(hint)
    if origin in (Union, types.UnionType):
        return " or ".join(_describe(arg) for arg in args if arg is not type(None))
    if origin is tuple:
        return "a list of names"
    return "a mapping" if origin is not None else _NAMES.get(hint, str(hint))


def _join(where: str, key: object) -> str:
    return f"{where}.{key}" if ": " in where else f"{where}: {key}"
