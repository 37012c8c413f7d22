"""How is one value written for people: a number, a parameter, a state, a curve?"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from automl_ft.config.duration import format_duration

if TYPE_CHECKING:
    from automl_ft.storage.records import TrialRecord

__all__ = [
    "STATE_WORDS",
    "curve",
    "difference",
    "duration",
    "memory",
    "number",
    "param",
    "params_line",
    "plural",
    "score",
    "size",
    "state_word",
]

STATE_WORDS: Mapping[str, str] = {
    "COMPLETE": "complete",
    "PRUNED": "pruned",
    "FAIL": "failed",
    "RUNNING": "running",
    "WAITING": "waiting",
}
"""Optuna's states in the words that are shown."""

_BARS = "\u2581\u2582\u2583\u2584\u2585\u2586\u2587\u2588"
_ASCII_BARS = "_.-~=+*#"
_NOTHING = "-"


def score(value: float | None) -> str:
    """Write the value of an objective.

    Args:
        value: The value, or None where there is none.

    Returns:
        Four digits after the point, or a dash.
    """
    return _NOTHING if value is None or math.isnan(value) else f"{value:.4f}"


def difference(value: float) -> str:
    """Write a difference of two values of an objective.

    Args:
        value: The difference.

    Returns:
        Four digits after the point, always with a sign.
    """
    return f"{value:+.4f}"


def duration(seconds: float | None) -> str:
    """Write a time.

    Args:
        seconds: Seconds, or None where it is unknown.

    Returns:
        Such as `3m 05s`, or a dash.
    """
    return _NOTHING if seconds is None else format_duration(seconds)


def number(value: float | None) -> str:
    """Write a count with its thousands apart.

    Args:
        value: The count, or None where it is unknown.

    Returns:
        Such as `12,345`, or a dash.
    """
    return _NOTHING if value is None else f"{value:,.0f}"


def memory(mib: float | None) -> str:
    """Write an amount of memory.

    Args:
        mib: Mebibytes, or None where it is unknown.

    Returns:
        Such as `812 MiB`, `12.3 GiB`, or a dash.
    """
    return _NOTHING if mib is None else size(mib * 2**20)


def size(num_bytes: float) -> str:
    """Write a number of bytes.

    Args:
        num_bytes: Bytes, 0 or more.

    Returns:
        Such as `812 MiB` or `12.3 GiB`.
    """
    for unit in ("B", "KiB", "MiB", "GiB"):
        if num_bytes < 1000:
            return (
                f"{num_bytes:.0f} {unit}"
                if num_bytes >= 10 or unit == "B"
                else f"{num_bytes:.1f} {unit}"
            )
        num_bytes /= 1024
    return f"{num_bytes:.1f} TiB"


def param(value: Any) -> str:
    """Write the value of a hyperparameter.

    Args:
        value: The value.

    Returns:
        Numbers with three significant digits, a dash for None, other values as they are.
    """
    if value is None:
        return _NOTHING
    if isinstance(value, float):
        return f"{value:.3g}"
    return str(value)


def params_line(params: Mapping[str, Any]) -> str:
    """Write hyperparameters on one line.

    Args:
        params: Values by name.

    Returns:
        Such as `learning_rate=3.1e-05 epochs=3`: the form that `enqueue` reads.
    """
    return " ".join(f"{name}={param(value)}" for name, value in params.items())


def plural(count: int, noun: str) -> str:
    """Write a count with its noun.

    Args:
        count: How many.
        noun: The noun in the singular; its plural must end in a plain s.

    Returns:
        Such as `1 trial` or `1,200 trials`.
    """
    return f"{count:,} {noun}" + ("" if count == 1 else "s")


def state_word(trial: TrialRecord) -> str:
    """Name the state of a trial.

    Args:
        trial: The trial.

    Returns:
        `complete`, `pruned`, `failed`, `running`, `waiting`, or `paused` for a waiting trial
        with a checkpoint.
    """
    return "paused" if trial.is_paused else STATE_WORDS[trial.state.name]


def curve(values: Sequence[float], *, width: int = 20, is_ascii: bool = False) -> str:
    """Draw a curve as a sparkline, from its lowest to its highest value.

    Args:
        values: The values in order; what is not finite shows as a blank.
        width: Characters at most; longer curves are thinned out, the last value is kept.
        is_ascii: Whether to do without block characters.

    Returns:
        One character for each value, at most `width`; empty without values.
    """
    if len(values) > width:
        last = len(values) - 1
        values = [values[round(i * last / max(1, width - 1))] for i in range(width)]
    bars = _ASCII_BARS if is_ascii else _BARS
    finite = [value for value in values if math.isfinite(value)]
    if not finite:
        return " " * len(values)
    low, high = min(finite), max(finite)
    return "".join(_bar(value, low, high, bars) for value in values)


def _bar(value: float, low: float, high: float, bars: str) -> str:
    if not math.isfinite(value):
        return " "
    share = (value - low) / (high - low) if high > low else 0.5
    return bars[min(len(bars) - 1, int(share * len(bars)))]
