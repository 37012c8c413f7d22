"""Which trial is exported, and can it be?

No torch and no Optuna: a trial's state is known by its name.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from automl_ft.errors import ExportError
from automl_ft.specs.layout import BEST, trial_folder

if TYPE_CHECKING:
    from automl_ft.storage.records import TrialRecord

__all__ = ["best_first", "checkpoint_file", "is_exportable", "pick_trial"]

_SHOWN = 10
"""How many trial numbers a message names."""


def is_exportable(trial: TrialRecord) -> bool:
    """Tell whether a trial is complete and was run by automl-ft.

    Args:
        trial: Any trial; somebody may have added a finished one through Optuna.

    Returns:
        Whether it has a value, its hyperparameters and its seed.
    """
    is_complete = trial.state.name == "COMPLETE" and trial.value is not None
    return is_complete and bool(trial.hyperparameters) and trial.seed is not None


def best_first(trials: Sequence[TrialRecord]) -> list[TrialRecord]:
    """Order the trials that can be exported.

    Args:
        trials: Any trials of one study.

    Returns:
        Those that are complete, the highest value first; of equal ones the first comes first.
    """
    complete = [trial for trial in trials if is_exportable(trial)]
    return sorted(complete, key=lambda trial: (-(trial.value or 0.0), trial.number))


def pick_trial(study: str, trials: Sequence[TrialRecord], number: int | None = None) -> TrialRecord:
    """Pick the trial to export.

    Args:
        study: Name of the study, for messages.
        trials: All its trials.
        number: The trial that was asked for; None takes the best complete one.

    Returns:
        A complete trial with a value.

    Raises:
        ExportError: No trial is complete, there is none of that number, or it is not complete.
    """
    if number is None:
        complete = best_first(trials)
        if not complete:
            raise ExportError(
                f"Study `{study}` has no complete trial ({_counted(trials)}), so there is nothing"
                " to export. Let `automl-ft search` finish at least one trial first."
            )
        return complete[0]
    found = next((trial for trial in trials if trial.number == number), None)
    if found is None:
        raise ExportError(
            f"Study `{study}` has no trial {number}; accepted are {_complete_numbers(trials)}."
        )
    if not is_exportable(found):
        raise ExportError(
            f"Trial {number} of study `{study}` {_condition(found)}; only complete trials can be"
            f" exported: {_complete_numbers(trials)}. Leave out --trial for the best one."
        )
    return found


def checkpoint_file(study: str, folder: Path, number: int) -> Path:
    """Find the kept checkpoint of a trial.

    Args:
        study: Name of the study, for messages.
        folder: The study's folder.
        number: The trial.

    Returns:
        An existing file with the trial's trained parameters.

    Raises:
        ExportError: The checkpoint is no longer, or was never, on this disk.
    """
    path = trial_folder(folder, number) / BEST
    if not path.is_file():
        raise ExportError(
            f"The model of trial {number} of study `{study}` is not on disk (`{path}`): a study"
            " keeps only its best trials' models (`training.keep_checkpoints`). To train it again,"
            f" run `automl-ft enqueue {study} {number}`, then `automl-ft search` with the study's"
            " file, and export the new trial."
        )
    return path


def _condition(trial: TrialRecord) -> str:
    """Say in words why a trial is not complete."""
    state = trial.state.name
    if state == "FAIL" and trial.failure is not None:
        return f"failed ({trial.failure.kind}: {trial.failure.message.rstrip('.')})"
    if trial.is_paused:
        return "is paused; rerun `automl-ft search` to finish it"
    return {
        "FAIL": "failed",
        "PRUNED": "was pruned",
        "RUNNING": "is still running",
        "WAITING": "has not started",
    }.get(state, "was not run by automl-ft")


def _complete_numbers(trials: Sequence[TrialRecord]) -> str:
    """List the complete trials, best first."""
    complete = best_first(trials)
    if not complete:
        return "none yet"
    shown = ", ".join(str(trial.number) for trial in complete[:_SHOWN])
    return shown + (", ..." if len(complete) > _SHOWN else "")


def _counted(trials: Sequence[TrialRecord]) -> str:
    """Count trials by state, such as `2 pruned, 1 fail`."""
    states = [trial.state.name.lower() for trial in trials]
    counts = {state: states.count(state) for state in dict.fromkeys(states)}
    return ", ".join(f"{count} {state}" for state, count in counts.items()) or "no trials at all"
