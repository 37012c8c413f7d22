"""How are values written as Python source that a formatter leaves alone? A leaf."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

__all__ = ["assignment"]

_LINE = 88
"""Line length of the formatters' defaults."""


def assignment(name: str, value: Any, ending: str = "") -> str:
    """Write `name = value` (or `name=value`, for an argument), on one line where it fits.

    Args:
        name: What comes before the value, its equals sign included, indented as it shall be.
        value: Strings, numbers, booleans, None, and tuples, lists and mappings of them.
        ending: What follows the value, such as a comma.

    Returns:
        Source without a line end.
    """
    indent = len(name) - len(name.lstrip())
    line = f"{name}{_flat(value)}{ending}"
    if len(line) <= _LINE or not isinstance(value, (tuple, list, Mapping)):
        return line
    return f"{name}{_tall(value, indent)}{ending}"


def _flat(value: Any) -> str:
    if isinstance(value, str):
        return json.dumps(value, ensure_ascii=False)
    if isinstance(value, Mapping):
        return "{" + ", ".join(f"{_flat(k)}: {_flat(v)}" for k, v in value.items()) + "}"
    if isinstance(value, tuple):
        comma = "," if len(value) == 1 else ""
        return "(" + ", ".join(map(_flat, value)) + comma + ")"
    if isinstance(value, list):
        return "[" + ", ".join(map(_flat, value)) + "]"
    return repr(value)


def _tall(value: Any, indent: int) -> str:
    """Write one item a line; items that are long themselves are broken too."""
    inner = " " * (indent + 4)
    if isinstance(value, Mapping):
        lines = [assignment(f"{inner}{_flat(k)}: ", v, ",") for k, v in value.items()]
        opening, closing = "{", "}"
    else:
        lines = [assignment(inner, item, ",") for item in value]
        opening, closing = "()" if isinstance(value, tuple) else "[]"
    return "\n".join([opening, *lines, " " * indent + closing])
