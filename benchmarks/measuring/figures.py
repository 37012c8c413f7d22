"""How do timings become ratios with their spread, and F1s a difference with an interval?"""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from typing import Any

from scipy import stats

__all__ = ["compare_f1", "compare_seconds", "rounded", "show_ratio", "spread"]


def spread(values: Sequence[float]) -> dict[str, float]:
    """Say where values lie.

    Args:
        values: One for each repeat, at least one.

    Returns:
        `median`, `low` and `high`.
    """
    return {"median": statistics.median(values), "low": min(values), "high": max(values)}


def compare_seconds(ours: Sequence[float], theirs: Sequence[float]) -> dict[str, Any]:
    """Compare two sides that ran in turn, repeat by repeat.

    Args:
        ours: Seconds of each repeat.
        theirs: Seconds of the other side in the same repeats.

    Returns:
        The seconds of both sides, and `ratio`: how many times longer the other side took.
    """
    ratios = [there / here for here, there in zip(ours, theirs, strict=True)]
    return {"ours_seconds": list(ours), "theirs_seconds": list(theirs), "ratio": spread(ratios)}


def compare_f1(
    ours: Sequence[Sequence[float]], theirs: Sequence[Sequence[float]]
) -> dict[str, Any]:
    """Compare the scores of two sides over the same configurations.

    Seeds of the two sides are independent draws, so the variance of a side's mean is that of its
    seeds within each configuration; all cells are pooled. Source: the interval for a contrast of
    cell means in a two-way layout, Montgomery, Design and Analysis of Experiments, chapter 3.

    Args:
        ours: F1 in [0, 1], higher is better, by seed, then by configuration.
        theirs: The same of the other side.

    Returns:
        Means, their difference (ours minus theirs), `interval_95` of it (None with one seed),
        and `seed_spread`: the pooled standard deviation between seeds within a configuration.
    """
    cells = [*zip(*ours, strict=True), *zip(*theirs, strict=True)]
    num_configurations = len(ours[0])
    means = [statistics.mean(statistics.mean(seed) for seed in side) for side in (ours, theirs)]
    result: dict[str, Any] = {
        "ours": means[0],
        "theirs": means[1],
        "difference": means[0] - means[1],
        "seed_spread": None,
        "interval_95": None,
    }
    freedom = sum(len(cell) - 1 for cell in cells)
    if freedom == 0 or min(len(cell) for cell in cells) < 2:
        return result
    squares = sum((len(cell) - 1) * statistics.variance(cell) for cell in cells)
    deviation = math.sqrt(squares / freedom)
    error = deviation / num_configurations * math.sqrt(sum(1 / len(cell) for cell in cells))
    half = float(stats.t.ppf(0.975, freedom)) * error
    interval = [result["difference"] - half, result["difference"] + half]
    return result | {"seed_spread": deviation, "interval_95": interval}


def show_ratio(name: str, comparison: dict[str, Any]) -> str:
    """Write one comparison as a line.

    Args:
        name: What was compared.
        comparison: From `compare_seconds`.

    Returns:
        Such as `full          12.1 s against  51.3 s:   4.2 times (4.0 to 4.5)`.
    """
    here = statistics.median(comparison["ours_seconds"])
    there = statistics.median(comparison["theirs_seconds"])
    ratio = comparison["ratio"]
    return (
        f"{name:24} {here:8.2f} s against {there:8.2f} s: {ratio['median']:6.2f} times"
        f" ({ratio['low']:.2f} to {ratio['high']:.2f})"
    )


def rounded(value: Any) -> Any:
    """Round every number of a plain value to five significant digits, for JSON.

    Args:
        value: Dicts, lists and scalars.

    Returns:
        The same with rounded numbers.
    """
    if isinstance(value, dict):
        return {key: rounded(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [rounded(item) for item in value]
    return float(f"{value:.5g}") if isinstance(value, float) else value
