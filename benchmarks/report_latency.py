"""What does one intermediate-value report cost, here and with Optuna's default settings?

Both write to SQLite files of their own in the same folder, in blocks that alternate, so that a
machine that slows down or a disk that is busy hits both alike. The last line is JSON.

    python benchmarks/report_latency.py --quick
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from collections.abc import Callable
from contextlib import closing
from datetime import UTC, datetime
from pathlib import Path

import optuna
from optuna.trial import TrialState

from automl_ft.config.study import DataConfig, ModelConfig, StudyConfig
from automl_ft.specs.facts import DataFacts, StudyFacts
from automl_ft.storage.records import StudyRecord
from automl_ft.storage.studies import open_database

Report = Callable[[int, float], None]


def main() -> None:
    """Measure, print both medians and their ratio, and the same as JSON."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--folder", type=Path, help="where the files lie; default: a temporary one")
    parser.add_argument("--blocks", type=int, default=20, help="blocks of each (default 20)")
    parser.add_argument("--reports", type=int, default=50, help="reports in a block (default 50)")
    parser.add_argument("--quick", action="store_true", help="5 blocks of 10 reports")
    options = parser.parse_args()
    if options.quick:
        options.blocks, options.reports = 5, 10
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    with tempfile.TemporaryDirectory(dir=options.folder) as folder:
        print_result(measure(Path(folder), options.blocks, options.reports))


def measure(folder: Path, blocks: int, reports: int) -> dict[str, list[float]]:
    """Time blocks of reports, ours and Optuna's in turn.

    Args:
        folder: Where the files lie.
        blocks: Blocks of each.
        reports: Reports in a block.

    Returns:
        Median milliseconds of each block, by `automl_ft` and `optuna_default`.
    """
    medians: dict[str, list[float]] = {"automl_ft": [], "optuna_default": []}
    with closing(open_database(f"sqlite:///{folder}/ours.db", create=True)) as database:
        store = database.create(a_record())
        number = store.add_trial({}, {}, state=TrialState.RUNNING)
        study = optuna.create_study(storage=f"sqlite:///{folder}/default.db")
        trial = study.ask()
        reporters: dict[str, Report] = {
            "automl_ft": lambda step, value: store.report(number, step, value),
            "optuna_default": lambda step, value: trial.report(value, step),
        }
        for block in range(blocks + 1):
            for name, report in reporters.items():
                median = time_block(report, block * reports, reports)
                if block > 0:  # the first one warms up
                    medians[name].append(median)
    return medians


def time_block(report: Report, first_step: int, reports: int) -> float:
    """Time reports one by one.

    Args:
        report: What to time.
        first_step: Step of the first one.
        reports: How many.

    Returns:
        Their median in milliseconds.
    """
    times = []
    for step in range(first_step, first_step + reports):
        start = time.perf_counter()
        report(step, step / 1000)
        times.append(time.perf_counter() - start)
    return statistics.median(times) * 1000


def a_record() -> StudyRecord:
    """Return a study as small as can be."""
    data = DataFacts(
        labels=(), num_examples={}, class_counts={}, fingerprint="", split_fingerprints={}
    )
    return StudyRecord(
        name="latency",
        config=StudyConfig(model=ModelConfig(checkpoint="none"), data=DataConfig(path="none")),
        facts=StudyFacts(data=data, checkpoints=(), device="cpu", versions={}),
        space={},
        objective="f1_macro",
        created_at=datetime.now(UTC),
    )


def print_result(medians: dict[str, list[float]]) -> None:
    """Print medians over blocks, the ratio block by block, and all of it as JSON.

    Args:
        medians: What `measure` returns.
    """
    ratios = sorted(
        default / ours
        for ours, default in zip(medians["automl_ft"], medians["optuna_default"], strict=True)
    )
    result = {f"{name}_ms": round(statistics.median(times), 3) for name, times in medians.items()}
    result |= {
        "ratio": round(statistics.median(ratios), 1),
        "ratio_low": round(ratios[0], 1),
        "ratio_high": round(ratios[-1], 1),
    }
    print(f"automl-ft:       {result['automl_ft_ms']:.3f} ms a report (median)")
    print(f"Optuna defaults: {result['optuna_default_ms']:.3f} ms a report (median)")
    print(
        f"ratio:           {result['ratio']:.1f} times"
        f" (blocks: {result['ratio_low']:.1f} to {result['ratio_high']:.1f})"
    )
    print(json.dumps(result))


if __name__ == "__main__":
    main()
