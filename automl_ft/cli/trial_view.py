"""How is one trial shown: parameters, curve, metrics, cost, failure?"""

from __future__ import annotations

import csv
import math
import sys
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

from automl_ft.cli.ranking_table import trial_row
from automl_ft.cli.render import (
    Column,
    Table,
    console,
    labelled,
    print_lines,
    print_table,
    write_json,
)
from automl_ft.cli.values import curve, duration, memory, number, param, score, state_word
from automl_ft.specs.codec import to_plain

if TYPE_CHECKING:
    from rich.console import Console

    from automl_ft.search.ranking import RankedTrial
    from automl_ft.specs.trial import TrialMemory
    from automl_ft.storage.records import StudyRecord, TrialRecord

__all__ = ["write_trial"]

_PREFIX = "validation_"
_POINTS = 12
"""Points of the curve that are written out as numbers."""


def write_trial(ranked: RankedTrial, record: StudyRecord, format_: str) -> None:
    """Print one trial on stdout.

    Args:
        ranked: The trial and its place.
        record: Its study.
        format_: `table`, `json` or `csv`.
    """
    if format_ == "table":
        _print(ranked, record, console())
        return
    details = _details(ranked)
    if format_ == "json":
        write_json(details)
        return
    writer = csv.writer(sys.stdout, lineterminator="\n")
    writer.writerow(("name", "value"))
    writer.writerows(_flat(details))


def _details(ranked: RankedTrial) -> dict[str, Any]:
    trial = ranked.trial
    failure = trial.failure
    return {
        "rank": ranked.rank,
        **trial_row(trial),
        "seed": trial.seed,
        "rerun_of": trial.rerun_of,
        "best_step": trial.best_step,
        "seconds_validating": trial.seconds_validating,
        "forecast_mib": trial.forecast_mib,
        "memory": None if trial.memory is None else to_plain(trial.memory),
        "started": None if trial.started is None else trial.started.isoformat(),
        "ended": None if trial.ended is None else trial.ended.isoformat(),
        "hyperparameters": dict(trial.hyperparameters),
        "curve": {str(step): value for step, value in sorted(trial.intermediate_values.items())},
        "metrics": dict(trial.metrics),
        "failure_message": None if failure is None else failure.message,
        "failure_traceback": None if failure is None else failure.traceback,
    }


def _flat(details: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for name, value in details.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", value


def _print(ranked: RankedTrial, record: StudyRecord, target: Console) -> None:
    trial = ranked.trial
    print_lines(labelled(_summary(ranked, record)), target)
    print("", file=target.file)
    print_table(_hyperparameters(trial), target)
    overall, by_class = _metrics(trial)
    if overall:
        print("", file=target.file)
        print_table(Table(columns=_columns("metric", "value"), rows=overall), target)
    if by_class:
        print("", file=target.file)
        print_table(
            Table(columns=_columns("class", "precision", "recall", "f1"), rows=by_class), target
        )
    if trial.failure is not None and trial.failure.traceback:
        print(f"\n{trial.failure.traceback.rstrip()}", file=target.file)


def _summary(ranked: RankedTrial, record: StudyRecord) -> list[tuple[str, str]]:
    trial = ranked.trial
    place = "" if ranked.rank is None else f", rank {ranked.rank}"
    value = trial_row(trial)["value"]
    at = "" if trial.best_step is None else f" at {number(trial.best_step)} examples"
    rows = [
        ("trial", f"{trial.number} of study {record.name}: {state_word(trial)}{place}"),
        ("from", _origin(trial)),
        (record.objective, "not validated" if value is None else f"{score(value)}{at}"),
    ]
    if trial.intermediate_values:
        rows.append(("curve", _curve(trial)))
    rows.append(("cost", _cost(trial)))
    if trial.memory is not None:
        rows.append(("memory", _memory(trial.memory)))
    if trial.started is not None:
        rows.append(("time", _times(trial)))
    if trial.failure is not None:
        kind = trial.failure.kind.value.replace("_", " ")
        rows.append(("failure", f"{kind}: {trial.failure.message}"))
    return rows


def _origin(trial: TrialRecord) -> str:
    origin = {"default": "the default recipe", "user": "put in line by the user"}
    text = origin.get(trial.origin or "", "the sampler")
    rerun = "" if trial.rerun_of is None else f", a rerun of trial {trial.rerun_of}"
    return f"{text}{rerun}" + ("" if trial.seed is None else f"; seed {trial.seed}")


def _curve(trial: TrialRecord) -> str:
    values = [value for _, value in sorted(trial.intermediate_values.items())]
    is_ascii = not (sys.stdout.encoding or "utf-8").lower().startswith("utf")
    drawn = curve(values, width=40, is_ascii=is_ascii)
    written = " ".join(score(value) for value in values[-_POINTS:])
    return f"{drawn}  {'... ' if len(values) > _POINTS else ''}{written}"


def _cost(trial: TrialRecord) -> str:
    validating = ""
    share = (trial.seconds_validating or math.nan) / (trial.seconds or math.nan)
    if math.isfinite(share):
        validating = f" ({100 * share:.0f} % in validation)"
    return (
        f"{duration(trial.seconds)}{validating}, {number(trial.examples)} examples,"
        f" {memory(trial.peak_memory_mib)} at most"
        + ("" if trial.forecast_mib is None else f", {memory(trial.forecast_mib)} forecast")
    )


def _memory(fit: TrialMemory) -> str:
    rows = "1 row" if fit.micro_batch_size == 1 else f"{fit.micro_batch_size} rows"
    parts = [f"{rows} at once, {fit.eval_batch_size} in validation"]
    if fit.is_checkpointing:
        parts.append("with gradient checkpointing")
    if fit.num_out_of_memory:
        times = "once" if fit.num_out_of_memory == 1 else f"{fit.num_out_of_memory} times"
        parts.append(f"after running out of memory {times}")
    if fit.correction != 1:
        parts.append(f"forecasts corrected by {fit.correction:.2g}")
    return "; ".join(parts)


def _times(trial: TrialRecord) -> str:
    assert trial.started is not None
    ended = "" if trial.ended is None else f", ended {trial.ended:%Y-%m-%d %H:%M:%S}"
    return f"started {trial.started:%Y-%m-%d %H:%M:%S}{ended}"


def _hyperparameters(trial: TrialRecord) -> Table:
    """List every hyperparameter; of a trial of plain Optuna only what was sampled."""
    columns = (
        Column(key="name", title="hyperparameter"),
        Column(key="value", title="value", align="right", show=param, style="bold"),
        Column(key="from", title="from"),
    )
    known = trial.hyperparameters or trial.params
    rows = [
        {"name": name, "value": value, "from": "sampled" if name in trial.params else "fixed"}
        for name, value in known.items()
    ]
    return Table(columns=columns, rows=sorted(rows, key=lambda row: row["from"] == "fixed"))


def _metrics(trial: TrialRecord) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Sort metrics into those of all rows and those of one class (`f1/LABEL`)."""
    overall: list[dict[str, Any]] = []
    by_class: dict[str, dict[str, Any]] = {}
    for key, value in trial.metrics.items():
        name, slash, label = key.removeprefix(_PREFIX).partition("/")
        if slash and key.startswith(_PREFIX):
            by_class.setdefault(label, {"class": label})[name] = value
        else:
            overall.append({"metric": key, "value": value})
    return overall, list(by_class.values())


def _columns(first: str, *numbers: str) -> list[Column]:
    values = [Column(key=name, title=name, align="right", show=score) for name in numbers]
    return [Column(key=first, title=first), *values]
