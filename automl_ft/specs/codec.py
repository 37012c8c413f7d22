"""Dataclasses to and from plain JSON values, by their type annotations. A leaf.

Results cross process borders and enter the database as JSON, never pickled.
"""

from __future__ import annotations

import dataclasses
import functools
import types
import typing
from collections.abc import Mapping, Sequence
from enum import Enum
from typing import Any, TypeVar, get_args, get_origin

__all__ = ["from_plain", "to_plain"]

T = TypeVar("T")


def to_plain(value: Any) -> Any:
    """Turn a value into what `json.dumps` takes.

    Args:
        value: Dataclasses, mappings, sequences, enums and JSON's own types, nested.

    Returns:
        The same as dicts, lists, strings, numbers, booleans and None.

    Raises:
        TypeError: A value of another type is met.
    """
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {f.name: to_plain(getattr(value, f.name)) for f in dataclasses.fields(value)}
    if isinstance(value, Enum):
        return value.value
    if isinstance(value, Mapping):
        return {str(key): to_plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [to_plain(item) for item in value]
    if value is None or isinstance(value, (str, int, float, bool)):
        return value
    raise TypeError(f"Cannot turn {value!r} of type {type(value).__name__} into JSON.")


def from_plain(kind: type[T], plain: Any) -> T:
    """Build a dataclass from what `to_plain` made of it.

    Unknown keys are ignored and missing ones take the field's default, so that records of older
    and newer versions can be read.

    Args:
        kind: The dataclass.
        plain: A mapping.

    Returns:
        An instance of `kind`.

    Raises:
        TypeError: A field without default is missing, or something else stands where a dataclass
            should.
        ValueError: A value is none of its enum.
    """
    return typing.cast(T, _build(kind, plain))


@functools.cache
def _hints(kind: type) -> dict[str, Any]:
    return typing.get_type_hints(kind)


def _build(kind: Any, plain: Any) -> Any:
    if dataclasses.is_dataclass(kind) and isinstance(kind, type):
        if not isinstance(plain, Mapping):
            raise TypeError(f"{kind.__name__} needs a mapping, not {plain!r}.")
        hints = _hints(kind)
        known = {f.name for f in dataclasses.fields(kind) if f.init}
        return kind(**{k: _build(hints[k], v) for k, v in plain.items() if k in known})
    origin, args = get_origin(kind), get_args(kind)
    if origin in (typing.Union, types.UnionType):
        return _build_union(args, plain)
    if isinstance(kind, type) and issubclass(kind, Enum):
        return kind(plain)
    if origin is tuple:
        return tuple(_build(args[0], item) for item in plain)
    if origin is not None and isinstance(origin, type) and issubclass(origin, Mapping):
        return {key: _build(args[1], item) for key, item in plain.items()}
    if origin is not None and isinstance(origin, type) and issubclass(origin, Sequence):
        return [_build(args[0], item) for item in plain]
    is_whole = isinstance(plain, int) and not isinstance(plain, bool)
    return float(plain) if kind is float and is_whole else plain


def _build_union(args: tuple[Any, ...], plain: Any) -> Any:
    if plain is None:
        return None
    for arg in args:
        origin = get_origin(arg)
        if isinstance(plain, Mapping) and (dataclasses.is_dataclass(arg) or origin is not None):
            return _build(arg, plain)
        if isinstance(plain, list) and origin in (tuple, list):
            return _build(arg, plain)
    return _build(float, plain) if float in args and int not in args else plain
