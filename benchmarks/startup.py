"""How long does one wait: for `automl-ft --help`, the first step of the first trial, of the tenth?

`--help` is set against an interpreter that does nothing, the steps against the same search with
Trainer.hyperparameter_search in a process of its own. Sides alternate. The last line is JSON.

    python benchmarks/startup.py --quick --data-set r8
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
import yaml
from measuring import first_step
from measuring.arguments import make_parser, print_json, settle, sizes_of, write_large_model
from measuring.figures import compare_seconds, show_ratio
from measuring.machine import describe_machine
from measuring.rows import MissingDataError, write_rows

COMMANDS = {
    "ours": [sys.executable, "-m", "automl_ft.cli.main", "--help"],
    "theirs": [sys.executable, "-c", "pass"],
}
TENTH = 9
"""Its number, counted from 0."""


def main() -> None:
    """Measure both, print ratios and the line of JSON."""
    options = parse(sys.argv[1:])
    settle(options, (64, 32, 1))
    with tempfile.TemporaryDirectory() as folder:
        try:
            figures = measure(Path(folder), options)
        except MissingDataError as error:
            sys.exit(f"skipped: {error}")
    print("ours against an empty interpreter (help), against the Trainer (steps):")
    for name, comparison in figures.items():
        print("  " + show_ratio(name, comparison))
    machine = describe_machine(options.device)
    print_json({"machine": machine, "sizes": sizes_of(options), "ratios": figures})


def parse(arguments: Sequence[str]) -> argparse.Namespace:
    """Read the options.

    Args:
        arguments: The command line without the script.

    Returns:
        The options.
    """
    parser = make_parser(__doc__)
    parser.set_defaults(train_rows=160, validation_rows=80, epochs=1)
    parser.add_argument("--data-set", default="r8", help="r8, sst2, trec6, or another folder")
    return parser.parse_args(arguments)


def measure(folder: Path, options: argparse.Namespace) -> dict[str, Any]:
    """Measure in turn.

    Args:
        folder: For rows and studies.
        options: The command line.

    Returns:
        Comparisons by `help`, `first_trial` and `tenth_trial`.

    Raises:
        MissingDataError: The data set is not here.
    """
    sizes = (options.train_rows, options.validation_rows)
    data = write_rows(options.data_set, folder, sizes, options.data_folder, options.wheel)
    model = write_large_model(options.model, folder)
    names = ("help", "first_trial", "tenth_trial")
    seconds: dict[str, dict[str, list[float]]] = {n: {"ours": [], "theirs": []} for n in names}
    for repeat in range(options.repeats):
        order = ("ours", "theirs") if repeat % 2 == 0 else ("theirs", "ours")
        for side in order:
            seconds["help"][side].append(time_command(COMMANDS[side]))
        for side in order:
            place = folder / f"{side}-{repeat}"
            file = write_study(place, model, (data.train, data.validation), options)
            first, tenth = time_search({"theirs": "trainer"}.get(side, side), file)
            seconds["first_trial"][side].append(first)
            seconds["tenth_trial"][side].append(tenth)
        print(f"repeat {repeat + 1} of {options.repeats} is done", flush=True)
    return {name: compare_seconds(**seconds[name]) for name in names}


def write_study(
    folder: Path, model: str, files: tuple[Path, Path], options: argparse.Namespace
) -> Path:
    """Write a study of ten short trials of full fine-tuning.

    Args:
        folder: A new folder, for everything of this study.
        model: Bundled name or folder of the model.
        files: Training and validation rows.
        options: The command line.

    Returns:
        The study file, which both sides read.
    """
    folder.mkdir()
    study = {
        "name": "startup",
        "model": model,
        "data": {
            "train": str(files[0]),
            "validation": str(files[1]),
            "test": None,
            "max_length": options.max_length,
        },
        "space": {
            "learning_rate": {"low": 1e-5, "high": 1e-4, "log": True, "default": 5e-5},
            "batch_size": 16,
            "epochs": options.epochs,
        },
        "sampler": "random",
        "pruner": "none",
        "budget": {"trials": TENTH + 1},
        "training": {"precision": options.precision, "threads": options.threads},
        "device": options.device,
        "storage": f"sqlite:///{folder}/studies.db",
        "output": str(folder / "files"),
    }
    file = folder / "study.yaml"
    file.write_text(yaml.safe_dump(study), encoding="utf-8")
    return file


def time_command(command: Sequence[str]) -> float:
    """Time a process.

    Args:
        command: What to run.

    Returns:
        Seconds from its start to its end.
    """
    began = time.perf_counter()
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    return time.perf_counter() - began


def time_search(side: str, file: Path) -> tuple[float, float]:
    """Run a search in a process of its own.

    Args:
        side: `ours` or `trainer`.
        file: The study file.

    Returns:
        Seconds from the start of the process to the first step of the first trial, and from the
        start of the tenth trial to its first step.

    Raises:
        RuntimeError: The search failed.
    """
    command = [sys.executable, str(Path(first_step.__file__)), side, str(file)]
    times: dict[tuple[str, int], float] = {}
    began = time.perf_counter()
    log = file.with_suffix(".log")
    threads = {"OMP_NUM_THREADS": str(torch.get_num_threads())}
    with (
        log.open("w", encoding="utf-8") as errors,
        subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=errors, text=True, env={**os.environ, **threads}
        ) as process,
    ):
        assert process.stdout is not None
        for line in process.stdout:
            what, _, number = line.partition(" ")
            if what in ("start", "step"):
                times[what, int(number)] = time.perf_counter()
    if ("step", TENTH) not in times:
        raise RuntimeError(f"The search failed:\n{log.read_text(encoding='utf-8')[-3000:]}")
    return times["step", 0] - began, times["step", TENTH] - times["start", TENTH]


if __name__ == "__main__":
    main()
