"""How is a trial exported from a process that must not import torch?

The supervising side picks and checks, writes `config.yaml`, and has a process of its own
(`export.main`) write the rest; only a whole export takes the target's place.
"""

from __future__ import annotations

import json
import subprocess
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from automl_ft import errors
from automl_ft.errors import AutomlFtError, ConfigError, UsageError
from automl_ft.export.best import best_first, checkpoint_file, is_exportable, pick_trial
from automl_ft.export.config import absolute_paths, write_config
from automl_ft.export.importances import hyperparameter_importances
from automl_ft.export.job import ExportJob, RankedRow, SearchSummary
from automl_ft.export.target import check_target, staged
from automl_ft.files.child import child_command, child_environment
from automl_ft.specs.codec import to_plain
from automl_ft.version import __version__

if TYPE_CHECKING:
    from automl_ft.storage.records import TrialRecord
    from automl_ft.storage.store import StudyStore

__all__ = ["export_trial"]

_WRITER = "automl_ft.export.main"
"""Named, not imported: it imports torch."""
_TOP = 10
"""Trials in the model card's table."""
_LAST_LINES = 20
"""Lines of a crashed writer's stderr that are shown."""


def export_trial(
    *,
    store: StudyStore,
    folder: Path,
    to: Path,
    number: int | None = None,
    force: bool = False,
    verdict_text: str | None = None,
) -> Path:
    """Export a trial: `config.yaml`, `model/`, `train.py` and `README.md`.

    Args:
        store: The study.
        folder: Its folder, with checkpoints and its own copy of the rows.
        to: Where the export goes: a new or empty folder.
        number: The trial; None takes the best complete one.
        force: Whether the files of an earlier export in `to` are replaced; others are kept.
        verdict_text: One sentence on whether the best trial beats the default recipe.

    Returns:
        The absolute path of the export.

    Raises:
        ExportError: There is nothing to export, the target is in the way, or the written model
            does not reach the trial's value.
        AutomlFtError: The pretrained model or the rows can no longer be read.
    """
    trials = store.trials()
    trial = pick_trial(store.record.name, trials, number)
    checkpoint_file(store.record.name, folder, trial.number)
    target = check_target(to, force=force, keep_out=folder)
    with staged(target) as staging:
        summary = _summarise(store, trials, verdict_text)
        job = _job(store, trial, folder=folder, staging=staging, search=summary)
        write_config(job, staging / "config.yaml")
        _run_writer(job)
    return target


def _job(
    store: StudyStore, trial: TrialRecord, *, folder: Path, staging: Path, search: SearchSummary
) -> ExportJob:
    record = store.record
    assert trial.value is not None  # `pick_trial` saw to it
    assert trial.seed is not None
    return ExportJob(
        study=record.name,
        config=absolute_paths(record.config),
        facts=record.facts,
        folder=str(folder.resolve()),
        target=str(staging),
        version=__version__,
        number=trial.number,
        hyperparameters=trial.hyperparameters,
        seed=trial.seed,
        value=trial.value,
        metrics=trial.metrics,
        seconds=trial.seconds or 0.0,
        examples=trial.examples or 0,
        search=search,
    )


def _summarise(
    store: StudyStore, trials: Sequence[TrialRecord], verdict_text: str | None
) -> SearchSummary:
    default = next((t for t in trials if t.origin == "default" and is_exportable(t)), None)
    importances, note = hyperparameter_importances(trials)
    return SearchSummary(
        top=tuple(_row(trial) for trial in best_first(trials)[:_TOP]),
        counts=Counter(trial.state.name.lower() for trial in trials),
        seconds=store.active_seconds(),
        default_number=None if default is None else default.number,
        default_value=None if default is None else default.value,
        verdict=verdict_text,
        importances=importances,
        importances_note=note,
    )


def _row(trial: TrialRecord) -> RankedRow:
    assert trial.value is not None
    return RankedRow(
        number=trial.number,
        value=trial.value,
        params=trial.params,
        seconds=trial.seconds or 0.0,
    )


def _run_writer(job: ExportJob) -> None:
    """Have a process of its own write the rest, and raise its error here."""
    finished = subprocess.run(
        child_command(_WRITER),
        input=json.dumps(to_plain(job)),
        capture_output=True,
        encoding="utf-8",
        env=child_environment(),
        check=False,
    )
    lines = finished.stdout.strip().splitlines()
    if finished.returncode == 0 and lines:
        return
    try:
        answer = json.loads(lines[-1])
        kind = getattr(errors, answer["error"])
        # A ConfigError is made of problems, not of a message.
        kind = UsageError if kind is ConfigError else kind
    except (IndexError, ValueError, KeyError, AttributeError):
        tail = "\n".join(finished.stderr.splitlines()[-_LAST_LINES:])
        raise AutomlFtError(
            f"Writing the export of trial {job.number} of study `{job.study}` broke off with exit"
            f" code {finished.returncode}; nothing was written. Its last output:\n{tail}"
        ) from None
    raise kind(answer["message"])
