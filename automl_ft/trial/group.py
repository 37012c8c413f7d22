"""How are several trials run that one worker was given together?"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import replace

from automl_ft.specs.decision import Reporter
from automl_ft.specs.trial import Outcome, TrialCost, TrialResult, TrialSpec
from automl_ft.trial.heads import HeadGroup, UnstackableError, build_heads
from automl_ft.trial.memory import reset_peak_memory
from automl_ft.trial.prepare import PreparedStudy
from automl_ft.trial.runner import release, result_of, run_trial
from automl_ft.trial.stacked import Unfinished, train_heads

__all__ = ["run_group"]

_log = logging.getLogger(__name__)


def run_group(
    specs: Sequence[TrialSpec],
    study: PreparedStudy,
    reporter_for: Callable[[int], Reporter],
    emit: Callable[[TrialResult], None],
    *,
    is_pausing: Callable[[], bool],
) -> None:
    """Run trials that may be trained together (`specs.grouping.stack_key`).

    Trials that cannot be trained as one, from the start or from some step on, run one by one; the
    log says why.

    Args:
        specs: The trials; none of them has a checkpoint.
        study: The prepared study.
        reporter_for: Returns by a trial's number what is told of its progress and decides.
        emit: Takes each result as soon as it is there.
        is_pausing: Whether a pause was asked for: a trial whose turn has not come then ends as
            PAUSED without any work.

    Raises:
        DiskError: The disk takes no more checkpoints; the trials without a result did not end.
        DeviceLostError: The device was lost while heads were trained as one; the same holds.
    """
    unfinished = tuple(Unfinished(spec=spec) for spec in specs)
    if len(specs) > 1 and not is_pausing():
        unfinished = _run_stacked(unfinished, study, reporter_for, emit)
    for trial in unfinished:
        if is_pausing():
            result = _paused(trial, study)
        else:
            result = run_trial(trial.spec, study, reporter_for(trial.spec.number))
        emit(_counted(result, trial.num_out_of_memory))


def _run_stacked(
    trials: tuple[Unfinished, ...],
    study: PreparedStudy,
    reporter_for: Callable[[int], Reporter],
    emit: Callable[[TrialResult], None],
) -> tuple[Unfinished, ...]:
    """Train the heads of trials in one computation; return those that must go on alone."""
    reset_peak_memory(study.device)
    group = _built([trial.spec for trial in trials], study, reporter_for)
    try:
        return trials if group is None else train_heads(group, study, emit)
    finally:
        group = None  # frees the features before the next trial
        release(study)


def _built(
    specs: Sequence[TrialSpec], study: PreparedStudy, reporter_for: Callable[[int], Reporter]
) -> HeadGroup | None:
    numbers = ", ".join(str(spec.number) for spec in specs)
    try:
        return build_heads(specs, study, reporter_for)
    except UnstackableError as error:
        _log.warning("Trials %s run one by one, not as a group: %s.", numbers, error)
    except Exception:
        # What goes wrong here goes wrong again in each trial, which then says so as its own result;
        # what does not would be lost.
        _log.warning("Trials %s run one by one, not as a group.", numbers, exc_info=True)
    return None


def _paused(trial: Unfinished, study: PreparedStudy) -> TrialResult:
    if trial.state is not None:
        return result_of(trial.spec, study, trial.state, Outcome.PAUSED, None)
    return TrialResult(
        number=trial.spec.number,
        outcome=Outcome.PAUSED,
        value=None,
        best_step=None,
        metrics={},
        evaluations=(),
        cost=TrialCost(seconds=0.0, examples=0, peak_memory_mib=0.0),
    )


def _counted(result: TrialResult, num_out_of_memory: int) -> TrialResult:
    """Add to a result how often memory ran out before its run."""
    memory = result.memory
    if memory is None or num_out_of_memory == 0:
        return result
    total = memory.num_out_of_memory + num_out_of_memory
    return replace(result, memory=replace(memory, num_out_of_memory=total))
