"""Checks of single config fields, each with one clear message. Raises `FieldError` only."""

from __future__ import annotations

import re
import reprlib
from collections.abc import Sequence

from automl_ft.errors import did_you_mean

__all__ = [
    "FieldError",
    "at_least",
    "auto_or_whole",
    "between",
    "device",
    "field_error",
    "fraction_or_name",
    "none_blank",
    "not_blank",
    "one_of",
    "shown_value",
    "study_name",
]

_SHOWN_WIDTH = 80


class FieldError(ValueError):
    """One field of a config holds a value that is not accepted."""

    def __init__(self, name: str, message: str) -> None:
        """Store where and what.

        Args:
            name: The field.
            message: What is wrong, what is accepted and what to do.
        """
        self.name = name
        self.message = message
        super().__init__(f"{name}: {message}")


def shown_value(value: object) -> str:
    """Write a value for a message: on one line, and cut where it is long.

    Args:
        value: Anything a user can give.

    Returns:
        The value, of about 80 characters at most.
    """
    if isinstance(value, bool):
        return str(value).lower()  # as YAML writes it
    # reprlib stops early: aliases make of a short file a huge value.
    text = reprlib.repr(value) if isinstance(value, (list, tuple, dict, set)) else str(value)
    text = text if text.isprintable() else "".join(c if c.isprintable() else " " for c in text)
    return text if len(text) <= _SHOWN_WIDTH else f"{text[:_SHOWN_WIDTH]}..."


def field_error(name: str, value: object, accepted: str, remedy: str = "") -> FieldError:
    """Build the error for one field.

    Args:
        name: The field.
        value: What it holds.
        accepted: What is accepted.
        remedy: What to do; may be empty.

    Returns:
        The error, to be raised by the caller.
    """
    shown = "nothing is given" if value is None else f"`{shown_value(value)}` is not accepted"
    tail = f" {remedy}." if remedy else ""
    return FieldError(name, f"{shown}; accepted is {accepted}.{tail}")


def not_blank(name: str, value: str) -> None:
    """Refuse empty text.

    Args:
        name: The field.
        value: Its value.

    Raises:
        FieldError: The value is blank.
    """
    if not value.strip():
        raise field_error(name, value, "text that is not blank")


def none_blank(name: str, value: str | Sequence[str] | None) -> None:
    """Refuse empty text, an empty list and a list with empty text; None is fine.

    Args:
        name: The field.
        value: Its value.

    Raises:
        FieldError: The value is blank.
    """
    if value is None:
        return
    items = [value] if isinstance(value, str) else value
    if not items:
        raise field_error(name, "[]", "one name or more")
    for item in items:
        not_blank(name, item)


def one_of(name: str, value: str | None, accepted: Sequence[str | None]) -> None:
    """Refuse what is not in a list.

    Args:
        name: The field.
        value: Its value.
        accepted: What is accepted.

    Raises:
        FieldError: The value is not in the list.
    """
    if value in accepted:
        return
    names = [str(item) for item in accepted if item is not None]
    hint = did_you_mean(str(value), names)
    remedy = f" {hint}" if hint.startswith("Did") else ""
    raise FieldError(
        name, f"`{shown_value(value)}` is not accepted; accepted: {', '.join(names)}.{remedy}"
    )


def auto_or_whole(name: str, value: object, low: int, high: int | None = None) -> None:
    """Refuse what is neither `auto` nor a whole number within bounds.

    Args:
        name: The field.
        value: Its value.
        low: The smallest accepted number.
        high: The largest one; None for no bound.

    Raises:
        FieldError: The value is something else.
    """
    is_whole = isinstance(value, int) and not isinstance(value, bool)
    if value == "auto" or (is_whole and low <= value and (high is None or value <= high)):  # type: ignore[operator]
        return
    span = f"from {low} up" if high is None else f"from {low} to {high}"
    hint = did_you_mean(str(value), ["auto"]) if isinstance(value, str) else ""
    remedy = f" {hint}" if hint.startswith("Did") else ""
    if isinstance(value, str) and value.isdigit():
        remedy = " Leave the quotes away."
    shown = shown_value(value)
    raise FieldError(
        name, f"`{shown}` is not accepted; accepted: auto, or a whole number {span}.{remedy}"
    )


def at_least(name: str, value: float, low: float) -> None:
    """Refuse what is below a bound, and NaN.

    Args:
        name: The field.
        value: Its value.
        low: The smallest accepted value.

    Raises:
        FieldError: The value is below the bound.
    """
    if not value >= low:
        raise field_error(name, value, f"{low} or more")


def between(name: str, value: int, low: int, high: int) -> None:
    """Refuse what is outside two bounds.

    Args:
        name: The field.
        value: Its value.
        low: The smallest accepted value.
        high: The largest accepted value.

    Raises:
        FieldError: The value is outside the bounds.
    """
    if not low <= value <= high:
        raise field_error(name, value, f"{low} to {high}")


def fraction_or_name(name: str, value: float | str, *, zero_allowed: bool = False) -> None:
    """Check a split: a fraction, a file or a split's name.

    Args:
        name: The field.
        value: Its value.
        zero_allowed: Whether 0 (no such split) is accepted.

    Raises:
        FieldError: The value is neither.
    """
    if isinstance(value, str):
        not_blank(name, value)
    elif not (0 < value < 1 or (zero_allowed and value == 0)):
        low = "from 0" if zero_allowed else "above 0"
        raise field_error(name, value, f"a fraction {low} and below 1, a file, or a split's name")


def study_name(name: str, value: str) -> None:
    """Refuse names that would not do as a folder.

    Args:
        name: The field.
        value: The study's name.

    Raises:
        FieldError: The name is blank, too long, hidden, or holds a path separator.
    """
    if not re.fullmatch(r"[^\W_][\w .+@-]{0,119}", value) or value != value.strip():
        raise field_error(
            name,
            value,
            "1 to 120 letters, digits, spaces or any of ._+@- with a letter or digit first,"
            " and no path separator",
        )


def device(name: str, value: str) -> None:
    """Refuse what is no device.

    Args:
        name: The field.
        value: The device.

    Raises:
        FieldError: It is neither `auto`, `cpu`, `mps`, `cuda` nor `cuda:N`.
    """
    if not re.fullmatch(r"auto|cpu|mps|cuda(:\d+)?", value):
        raise field_error(name, value, "auto, cpu, mps, cuda or cuda:N")
