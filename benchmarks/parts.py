"""What does each technique of the engine gain, on and off?

Every switch of `automl_ft.trial.techniques.Techniques` is turned off alone against all on, and on
alone against all off; and head-only trials are trained stacked and one by one. A first pass over
all of it warms up and is not counted, so the caches of frozen blocks are full. Each pass has
another order. The last line is JSON.

    python benchmarks/parts.py --quick --data-set r8
"""

from __future__ import annotations

import argparse
import dataclasses
import functools
import random
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from measuring.arguments import make_parser, print_json, settle, sizes_of, write_large_model
from measuring.engine import Silent, open_here, setting_of
from measuring.figures import compare_seconds, show_ratio
from measuring.machine import describe_machine
from measuring.recipes import Configuration, of_part
from measuring.rows import MissingDataError, write_rows

from automl_ft.specs.trial import Outcome, TrialResult, TrialSpec
from automl_ft.trial.prepare import PreparedStudy

PARTS = ("full", "half", "head")
STACKED = 8
"""Head-only trials in a group."""
NEEDS = {
    "screening": "bf16",
    **dict.fromkeys(["last_block", "compact_vocabulary", "row_attention", "cuda_graphs"], "packed"),
}
"""Techniques that do nothing by themselves, and what they add to."""


def main() -> None:
    """Measure all variants, print what each technique gains, and the line of JSON."""
    options = parse(sys.argv[1:])
    settle(options, (96, 48, 1))
    with tempfile.TemporaryDirectory() as folder:
        try:
            study = open_benchmark_study(Path(folder), options)
        except MissingDataError as error:
            sys.exit(f"skipped: {error}")
        bench = Bench(study, Path(folder) / "trials", options.epochs)
        seconds = measure(bench, options.part, options.repeats)
    figures = compare(seconds, options.part)
    print("medians and range of ratios: without the technique against with it")
    for name, comparison in figures.items():
        print("  " + show_ratio(name, comparison))
    print_json(
        {
            "machine": describe_machine(options.device),
            "sizes": sizes_of(options),
            "precision": study.facts.precision,
            "ratios": figures,
        }
    )


def parse(arguments: Sequence[str]) -> argparse.Namespace:
    """Read the options.

    Args:
        arguments: The command line without the script.

    Returns:
        The options.
    """
    parser = make_parser(__doc__)
    parser.set_defaults(train_rows=480, validation_rows=160, epochs=1)
    parser.add_argument("--data-set", default="r8", help="r8, sst2, trec6, or another folder")
    parser.add_argument("--part", nargs="+", choices=PARTS, default=PARTS, help="what is trained")
    return parser.parse_args(arguments)


def open_benchmark_study(folder: Path, options: argparse.Namespace) -> PreparedStudy:
    """Prepare a study in this process.

    Args:
        folder: For rows and the study.
        options: The command line.

    Returns:
        The open study.

    Raises:
        MissingDataError: The data set is not here.
    """
    sizes = (options.train_rows, options.validation_rows)
    data = write_rows(options.data_set, folder, sizes, options.data_folder, options.wheel)
    model = write_large_model(options.model, folder)
    return open_here(setting_of(options, model, data), folder / "study")


def variants(device: str) -> dict[str, Any]:
    """Return which techniques are on, for every variant.

    Args:
        device: The kind of device; what does nothing there is left out.

    Returns:
        `Techniques` by name: `all`, `none`, and `without NAME` and `only NAME` for each switch, the
        latter with what it needs.
    """
    from automl_ft.trial.techniques import Techniques

    elsewhere = {"cheap_dropout", "row_attention"} if device == "cuda" else {"cuda_graphs"}
    names = [f.name for f in dataclasses.fields(Techniques) if f.name not in elsewhere]
    every = Techniques(**dict.fromkeys(names, True))
    none = Techniques(**dict.fromkeys(names, False))
    return {
        "all": every,
        "none": none,
        **{f"without {name}": dataclasses.replace(every, **{name: False}) for name in names},
        **{
            f"only {name}": dataclasses.replace(
                none, **{on: True for on in (name, NEEDS.get(name)) if on is not None}
            )
            for name in names
        },
    }


class Bench:
    """Runs trials in this process, one after the other."""

    def __init__(self, study: PreparedStudy, folder: Path, epochs: int) -> None:
        """Store the parts.

        Args:
            study: The open study.
            folder: For the folders of trials.
            epochs: Passes over the training rows.
        """
        self._study = study
        self._folder = folder
        self._epochs = epochs
        self._next_number = 0

    @property
    def device(self) -> str:
        """The kind of device that trials run on."""
        return self._study.device.type

    def time_trial(self, part: str, techniques: Any) -> float:
        """Run one configuration.

        Args:
            part: `full`, `half` or `head`.
            techniques: What is on.

        Returns:
            Seconds.

        Raises:
            RuntimeError: The trial failed.
        """
        from automl_ft.trial.runner import run_trial

        spec = self._spec(of_part(part))
        began = time.perf_counter()
        result = run_trial(spec, self._study, Silent(), techniques)
        seconds = time.perf_counter() - began
        check(result, f"{part} with {techniques}")
        return seconds

    def time_heads(self, *, is_stacked: bool) -> float:
        """Run several head-only trials that differ in their rates.

        Args:
            is_stacked: Whether they are one group, or follow one another.

        Returns:
            Seconds of all together.
        """
        from automl_ft.trial.group import run_group

        head = of_part("head")
        rates = [head.learning_rate * (index + 1) / STACKED for index in range(STACKED)]
        specs = [self._spec(dataclasses.replace(head, learning_rate=rate)) for rate in rates]
        groups = [specs] if is_stacked else [[spec] for spec in specs]
        began = time.perf_counter()
        for group in groups:
            run_group(group, self._study, lambda number: Silent(), check, is_pausing=lambda: False)
        return time.perf_counter() - began

    def _spec(self, configuration: Configuration) -> TrialSpec:
        number = self._next_number
        self._next_number += 1
        num_layers = self._study.checkpoint(None).facts.num_layers
        place = self._folder / str(number)
        return configuration.spec(number, num_layers, epochs=self._epochs, seed=0, folder=place)


def measure(bench: Bench, parts: Sequence[str], repeats: int) -> dict[str, list[float]]:
    """Time every variant in passes over all of them.

    Args:
        bench: Runs trials.
        parts: What is trained: of `PARTS`.
        repeats: Passes that count.

    Returns:
        Seconds of each pass, by `PART VARIANT`, `heads stacked` and `heads one by one`.
    """
    jobs: dict[str, Callable[[], float]] = {
        "heads stacked": functools.partial(bench.time_heads, is_stacked=True),
        "heads one by one": functools.partial(bench.time_heads, is_stacked=False),
    }
    for part in parts:
        for name, techniques in variants(bench.device).items():
            jobs[f"{part} {name}"] = functools.partial(bench.time_trial, part, techniques)
    seconds: dict[str, list[float]] = {name: [] for name in jobs}
    chance = random.Random(0)
    for repeat in range(repeats + 1):
        for name in chance.sample(sorted(jobs), len(jobs)):
            taken = jobs[name]()
            if repeat > 0:  # the first pass warms up and fills the caches
                seconds[name].append(taken)
        print(f"pass {repeat} of {repeats} is done", flush=True)
    return seconds


def compare(seconds: dict[str, list[float]], parts: Sequence[str]) -> dict[str, Any]:
    """Set each variant against the one that differs from it in one technique.

    Args:
        seconds: From `measure`.
        parts: What was trained.

    Returns:
        Comparisons, by part and technique: how many times longer it takes without it.
    """
    figures = {"stacked": compare_seconds(seconds["heads stacked"], seconds["heads one by one"])}
    for part in parts:
        every, none = seconds[f"{part} all"], seconds[f"{part} none"]
        figures[f"{part}: all"] = compare_seconds(every, none)
        for name, times in seconds.items():
            if name.startswith(f"{part} without "):
                technique = name.removeprefix(f"{part} without ")
                only = seconds[f"{part} only {technique}"]
                needed = NEEDS.get(technique)
                before = none if needed is None else seconds[f"{part} only {needed}"]
                figures[f"{part}: {technique}"] = compare_seconds(every, times)
                figures[f"{part}: {technique} alone"] = compare_seconds(only, before)
    return figures


def check(result: TrialResult, name: str = "a group") -> None:
    """Refuse a trial that failed.

    Args:
        result: How it ended.
        name: What was run.

    Raises:
        RuntimeError: It is not complete.
    """
    if result.outcome is not Outcome.COMPLETE:
        raise RuntimeError(f"A trial of {name} ended as {result.outcome}: {result.failure}")


if __name__ == "__main__":
    main()
