"""What does a search itself cost per trial, besides training: proposal, reports, pruning, result?

Searches head-only trials on a worker that answers at once, and takes what the worker took off the
clock. Combinations of sampler and pruner run in turn. The last line is JSON.

    python benchmarks/supervisor.py --quick
"""

from __future__ import annotations

import argparse
import cProfile
import json
import statistics
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

import optuna
from measuring.instant_worker import InstantWorkers, search_of
from measuring.machine import describe_machine

from automl_ft.search.run import run_search

COMBINATIONS = (
    ("tpe", "successive_halving"),
    ("random", "successive_halving"),
    ("tpe", "none"),
)
"""Samplers and pruners that are measured."""
WINDOW = 40
"""Trials over which the cost at a place is averaged, at least: groups are counted whole."""


def main() -> None:
    """Measure, print milliseconds a trial by place, and the same as JSON."""
    options = parse(sys.argv[1:])
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    if options.profile is not None:
        with cProfile.Profile() as profile:
            search(COMBINATIONS[0], options.at[-1])
        profile.dump_stats(options.profile)
        return
    rows: dict[tuple[str, str], list[dict[str, float]]] = {pair: [] for pair in COMBINATIONS}
    for _ in range(options.repeats):
        for pair, found in rows.items():
            found.append(measure(pair, options.at))
    print_result(rows, options.at)


def parse(arguments: Sequence[str]) -> argparse.Namespace:
    """Read the options.

    Args:
        arguments: The command line without the script.

    Returns:
        The options; `at` ascending.
    """
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--at", type=int, nargs="+", default=[50, 200, 500], help="after how many trials"
    )
    parser.add_argument("--repeats", type=int, default=3, help="searches of each (default 3)")
    parser.add_argument("--quick", action="store_true", help="once each, after 20 and 50 trials")
    parser.add_argument("--profile", type=Path, help="write a profile of one search to a file")
    options = parser.parse_args(arguments)
    if options.quick:
        options.at, options.repeats = [20, 50], 1
    options.at.sort()
    return options


def search(pair: tuple[str, str], trials: int) -> InstantWorkers:
    """Run one search in a folder that is deleted afterwards.

    Args:
        pair: Sampler and pruner.
        trials: The budget.

    Returns:
        The workers, which have kept the time.
    """
    workers = InstantWorkers()
    with tempfile.TemporaryDirectory() as folder:
        run_search(search_of(Path(folder), *pair, trials=trials), factory=workers)
    return workers


def measure(pair: tuple[str, str], places: Sequence[int]) -> dict[str, float]:
    """Measure one combination once.

    Args:
        pair: Sampler and pruner.
        places: After how many trials.

    Returns:
        Milliseconds a trial by place, and `wait`: milliseconds from a worker's last result to its
        next trials, at the median.
    """
    workers = search(pair, places[-1])
    figures = {str(place): workers.milliseconds_at(place, WINDOW) for place in places}
    return {**figures, "wait": statistics.median(workers.waits) * 1000}


def print_result(
    rows: dict[tuple[str, str], list[dict[str, float]]], places: Sequence[int]
) -> None:
    """Print medians over repeats with their spread, and all of it as JSON.

    Args:
        rows: What `measure` returned, by combination.
        places: After how many trials.
    """
    result = {}
    print(f"milliseconds a trial, besides training, over {WINDOW} trials up to number ...")
    for (sampler, pruner), found in rows.items():
        figures = {}
        for key in (*map(str, places), "wait"):
            values = sorted(figure[key] for figure in found)
            figures[key] = {
                "ms": round(statistics.median(values), 2),
                "low": round(values[0], 2),
                "high": round(values[-1], 2),
            }
        result[f"{sampler}, {pruner}"] = figures
        shown = ", ".join(
            f"{key}: {f['ms']:.1f} ({f['low']:.1f} to {f['high']:.1f})"
            for key, f in figures.items()
        )
        print(f"{sampler}, {pruner}: {shown}")
    print(json.dumps({"machine": describe_machine("cpu"), "window": WINDOW, "ms": result}))


if __name__ == "__main__":
    main()
