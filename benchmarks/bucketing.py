"""Does F1 suffer where the rows of a training batch are of similar length?

Architectures that do not take packed rows train on bucketed batches: rows of similar length share
one, which changes what a step sees. Each repeat trains the same configurations from the same seed
once on such batches and once on batches in random order, padded in both cases. The last line is
JSON.

    python benchmarks/bucketing.py --quick --data-set r8
"""

from __future__ import annotations

import argparse
import dataclasses
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from measuring.arguments import make_parser, print_json, settle, sizes_of, write_large_model
from measuring.engine import Silent, final_f1, open_here, setting_of
from measuring.figures import compare_f1
from measuring.machine import describe_machine
from measuring.recipes import LIST
from measuring.rows import MissingDataError, write_rows

from automl_ft.trial.prepare import PreparedStudy

CONFIGURATIONS = [found for found in LIST if found.part == "full"]
"""Full fine-tuning, in which batches matter most."""


def main() -> None:
    """Train on every data set, print the differences and the line of JSON."""
    options = parse(sys.argv[1:])
    settle(options, (160, 80, 1))
    results: list[dict[str, Any]] = []
    for name in options.data_set:
        with tempfile.TemporaryDirectory() as folder:
            try:
                f1 = compare(name, Path(folder), options)
            except MissingDataError as error:
                print(f"skipped: {error}", flush=True)
                continue
        results.append({"data_set": name, "f1": f1})
        print(
            f"{name}: F1 of bucketed less that of random batches {f1['difference']:+.4f},", end=" "
        )
        print(f"95 % interval {f1['interval_95']}, spread between seeds {f1['seed_spread']}")
    machine = describe_machine(options.device)
    print_json({"machine": machine, "sizes": sizes_of(options), "results": results})


def parse(arguments: Sequence[str]) -> argparse.Namespace:
    """Read the options.

    Args:
        arguments: The command line without the script.

    Returns:
        The options.
    """
    parser = make_parser(__doc__)
    parser.set_defaults(train_rows=500, validation_rows=500, repeats=8)
    add = parser.add_argument
    add("--data-set", nargs="+", default=["r8"], help="r8, sst2, trec6, or another folder")
    return parser.parse_args(arguments)


def compare(name: str, folder: Path, options: argparse.Namespace) -> dict[str, Any]:
    """Train on both kinds of batches.

    Args:
        name: The data set.
        folder: For rows, the study and its trials.
        options: The command line.

    Returns:
        `compare_f1` of bucketed batches (ours) with those in random order (theirs).

    Raises:
        MissingDataError: The data set is not here.
    """
    sizes = (options.train_rows, options.validation_rows)
    data = write_rows(name, folder, sizes, options.data_folder, options.wheel)
    model = write_large_model(options.model, folder)
    study = open_here(setting_of(options, model, data), folder / "study")
    found: dict[bool, list[list[float]]] = {True: [], False: []}
    for seed in range(options.repeats):
        for is_bucketed in (True, False):
            of_seed = scores(study, seed, options.epochs, folder, is_bucketed=is_bucketed)
            found[is_bucketed].append(of_seed)
        print(f"{name}: repeat {seed + 1} of {options.repeats} is done", flush=True)
    return compare_f1(found[True], found[False])


def scores(
    study: PreparedStudy, seed: int, epochs: int, folder: Path, *, is_bucketed: bool
) -> list[float]:
    """Run the configurations.

    Args:
        study: The open study.
        seed: Of each trial.
        epochs: Passes over the training rows.
        folder: For the trials.
        is_bucketed: Whether the rows of a batch are of similar length.

    Returns:
        Macro F1 of each.

    Raises:
        RuntimeError: A trial failed.
    """
    from automl_ft.trial.runner import run_trial
    from automl_ft.trial.techniques import ALL

    techniques = dataclasses.replace(ALL, packed=False, bucketed=is_bucketed)
    num_layers = study.checkpoint(None).facts.num_layers
    found = []
    for number, configuration in enumerate(CONFIGURATIONS):
        place = folder / "trials" / f"{seed}-{number}-{is_bucketed}"
        spec = configuration.spec(number, num_layers, epochs=epochs, seed=seed, folder=place)
        result = run_trial(spec, study, Silent(), techniques)
        if result.failure is not None:
            raise RuntimeError(f"A trial failed: {result.failure}")
        found.append(final_f1(result))
    return found


if __name__ == "__main__":
    main()
