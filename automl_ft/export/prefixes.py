"""How are many parameter names said in few words, for a person to read in a script? A leaf."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import TypeVar

__all__ = ["group_by_prefix", "prefixes_of"]

V = TypeVar("V")


def prefixes_of(chosen: Collection[str], everything: Collection[str]) -> list[str]:
    """Say which names are chosen by the shortest prefixes that only they start with.

    Args:
        chosen: Some dotted names.
        everything: All dotted names.

    Returns:
        Prefixes that end with a dot, or whole names, in the order of `everything`.
    """
    groups = group_by_prefix({name: name in chosen for name in everything})
    return [prefix for prefix, is_chosen in groups.items() if is_chosen]


def group_by_prefix(values: Mapping[str, V]) -> dict[str, V]:
    """Say which name has which value by the shortest prefixes whose names all have the same.

    Args:
        values: A value for each dotted name.

    Returns:
        A value for each prefix; a prefix ends with a dot, or is a whole name. Every name starts
        with exactly one of them, where none of the names is a prefix of another.
    """
    return dict(_groups(values, ""))


def _groups(values: Mapping[str, V], prefix: str) -> list[tuple[str, V]]:
    below: dict[str, dict[str, V]] = {}
    for name, value in values.items():
        head, dot, _ = name[len(prefix) :].partition(".")
        below.setdefault(prefix + head + dot, {})[name] = value
    groups: list[tuple[str, V]] = []
    for start, inside in below.items():
        first = next(iter(inside.values()))
        if all(value == first for value in inside.values()):
            groups.append((start, first))
        else:
            groups.extend(_groups(inside, start))
    return groups
