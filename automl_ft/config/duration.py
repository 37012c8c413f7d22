"""Durations as people write them: `90`, `90s`, `30m`, `1h30m`, `2d`. A leaf."""

from __future__ import annotations

import re

__all__ = ["format_duration", "parse_duration"]

_UNITS = {"d": 86400.0, "h": 3600.0, "m": 60.0, "s": 1.0}
_PATTERN = re.compile(
    r"(?:(\d+(?:\.\d+)?)d)?(?:(\d+(?:\.\d+)?)h)?(?:(\d+(?:\.\d+)?)m)?(?:(\d+(?:\.\d+)?)s)?"
)


def parse_duration(text: str | float) -> float:
    """Read a duration.

    Args:
        text: A number of seconds, or numbers with the units d, h, m and s in that order.

    Returns:
        Seconds.

    Raises:
        ValueError: The text is no duration.
    """
    if isinstance(text, bool):
        raise ValueError(f"`{text}` is no duration.")
    if isinstance(text, (int, float)):
        return float(text)
    compact = text.strip().lower().replace(" ", "")
    try:
        return float(compact)
    except ValueError:
        match = _PATTERN.fullmatch(compact)
    if not compact or match is None:
        raise ValueError(f"`{text}` is no duration.")
    parts = zip(match.groups(), _UNITS.values(), strict=True)
    return sum(float(number) * unit for number, unit in parts if number)


def format_duration(seconds: float) -> str:
    """Write a duration for people.

    Args:
        seconds: Seconds, 0 or more.

    Returns:
        Such as `0.4s`, `41s`, `3m 05s`, `2h 10m`, `1d 4h`.
    """
    if seconds < 9.95:
        return f"{seconds:.1f}s"
    whole = round(seconds)
    days, hours, minutes = whole // 86400, whole // 3600 % 24, whole // 60 % 60
    if days:
        return f"{days}d {hours}h"
    if hours:
        return f"{hours}h {minutes:02d}m"
    return f"{minutes}m {whole % 60:02d}s" if minutes else f"{whole}s"
