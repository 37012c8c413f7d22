"""How are several trials run that one worker was given together?"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from automl_ft.specs.decision import Reporter
from automl_ft.specs.trial import Outcome, TrialCost, TrialResult, TrialSpec
from automl_ft.trial.prepare import PreparedStudy
from automl_ft.trial.runner import run_trial

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
    for spec in specs:
        result = (
            _unbegun(spec) if is_pausing() else run_trial(spec, study, reporter_for(spec.number))
        )
        emit(result)


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
