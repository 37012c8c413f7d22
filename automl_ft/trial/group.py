"""How are several trials run that one worker was given together?"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import suppress

from automl_ft.specs.decision import Reporter
from automl_ft.specs.trial import Outcome, TrialCost, TrialResult, TrialSpec
from automl_ft.trial.heads import build_heads
from automl_ft.trial.memory import reset_peak_memory
from automl_ft.trial.prepare import PreparedStudy
from automl_ft.trial.runner import release, run_trial
from automl_ft.trial.stacked import UnstackableError, train_heads

__all__ = ["run_group"]


def run_group(
    specs: Sequence[TrialSpec],
    study: PreparedStudy,
    reporter_for: Callable[[int], Reporter],
    emit: Callable[[TrialResult], None],
    *,
    is_pausing: Callable[[], bool],
) -> None:
    """Run trials that may be trained together (`specs.grouping.stack_key`).

    Args:
        specs: The trials; none of them has a checkpoint.
        study: The prepared study.
        reporter_for: Returns by a trial's number what is told of its progress and decides.
        emit: Takes each result as soon as it is there.
        is_pausing: Whether a pause was asked for: a trial that has not begun then ends as PAUSED
            without any work.

    Raises:
        DiskError: The disk takes no more checkpoints; the trials without a result did not end.
    """
    if len(specs) > 1 and not is_pausing() and _run_stacked(specs, study, reporter_for, emit):
        return
    for spec in specs:
        result = (
            _unbegun(spec) if is_pausing() else run_trial(spec, study, reporter_for(spec.number))
        )
        emit(result)


def _run_stacked(
    specs: Sequence[TrialSpec],
    study: PreparedStudy,
    reporter_for: Callable[[int], Reporter],
    emit: Callable[[TrialResult], None],
) -> bool:
    """Train the heads of the trials in one computation, if that can be done."""
    reset_peak_memory(study.device)
    group = None
    try:
        # What goes wrong here goes wrong again in each trial, which then says so as its own result.
        with suppress(Exception):
            group = build_heads(specs, study, reporter_for)
        if group is None:
            return False
        train_heads(group, study, emit)
        return True
    except UnstackableError:
        return False
    finally:
        group = None  # frees the features before the next trial
        release(study)


def _unbegun(spec: TrialSpec) -> TrialResult:
    return TrialResult(
        number=spec.number,
        outcome=Outcome.PAUSED,
        value=None,
        best_step=None,
        metrics={},
        evaluations=(),
        cost=TrialCost(seconds=0.0, examples=0, peak_memory_mib=0.0),
    )
