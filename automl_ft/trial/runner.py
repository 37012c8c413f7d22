"""One fine-tuning job, whole: a spec and a prepared study in, a result out.

Whatever goes wrong inside is a result with a failure kind; only interruption of the process ends
it otherwise.
"""

from __future__ import annotations

import dataclasses
import gc
import traceback
from pathlib import Path

import torch

from automl_ft.errors import DiskError
from automl_ft.specs.decision import Reporter
from automl_ft.specs.failure import FailureKind, TrialFailure
from automl_ft.specs.trial import Outcome, TrialCost, TrialResult, TrialSpec
from automl_ft.trial.build import build_job
from automl_ft.trial.checkpoint import load_last
from automl_ft.trial.loop import Job, fit
from automl_ft.trial.losses import DivergedError
from automl_ft.trial.memory import is_out_of_memory, peak_memory_mib, reset_peak_memory
from automl_ft.trial.prepare import PreparedStudy
from automl_ft.trial.seeding import restore_random_states
from automl_ft.trial.state import TrainingState
from automl_ft.trial.techniques import ALL, Techniques

__all__ = ["failure_of", "release", "restore", "result_of", "run_trial"]


def run_trial(
    spec: TrialSpec, study: PreparedStudy, reporter: Reporter, techniques: Techniques = ALL
) -> TrialResult:
    """Run a trial from its start or from its checkpoint.

    Args:
        spec: The trial.
        study: The prepared study.
        reporter: Told of progress and validations; decides.
        techniques: Which ways to be fast it may use.

    Returns:
        How this run ended; costs and validations are those of all runs.

    Raises:
        DiskError: The disk takes no more checkpoints.
    """
    state = TrainingState()
    job: Job | None = None
    reset_peak_memory(study.device)
    try:
        job = build_job(spec, study, techniques)
        state = restore(job, Path(spec.folder)) or state
        outcome = fit(job, state, reporter)
        failure = None
    except DiskError:
        raise  # not the fault of this trial, and the next one would meet it too
    except Exception as error:
        outcome, failure = Outcome.FAILED, failure_of(error)
    finally:
        if job is not None:
            state.memory, state.forecast_mib = job.memory.record, job.memory.forecast.total_mib
        job = None  # frees the model before the next trial
        release(study)
    return result_of(spec, study, state, outcome, failure)


def restore(job: Job, folder: Path) -> TrainingState | None:
    """Put a job where its checkpoint left off.

    Args:
        job: Freshly built; its tensors change in place.
        folder: The trial's folder.

    Returns:
        The state to go on from, or None if there is no checkpoint.
    """
    saved = load_last(folder, job.device)
    if saved is None:
        return None
    state = TrainingState.from_plain(saved["state"])
    if saved["optimizer"] is None:
        return state  # finished: a kill came before its result was stored
    parameters = dict(job.model.named_parameters())
    with torch.no_grad():
        for name, value in saved["parameters"].items():
            parameters[name].copy_(value)
    job.optimizer.load_state_dict(saved["optimizer"])
    job.schedule.load_state_dict(saved["schedule"])
    job.compute.reload()
    job.memory.resume(state.memory)
    if job.cut is not None:
        job.cut.unused.keep, job.cut.unused.loss = saved["unused_rows"]
    restore_random_states(saved["random"], job.device)
    return state


def failure_of(error: Exception) -> TrialFailure:
    """Say why a trial failed; call it where the exception is handled.

    Args:
        error: What it raised.

    Returns:
        The failure with its kind.
    """
    text = " ".join(str(error).split())[:500]
    message = f"{type(error).__name__}: {text}" if text else type(error).__name__
    trace = traceback.format_exc()
    if is_out_of_memory(error):
        return TrialFailure(kind=FailureKind.OUT_OF_MEMORY, message=message, traceback=trace)
    if isinstance(error, DivergedError):
        return TrialFailure(kind=FailureKind.DIVERGED, message=text)
    return TrialFailure(kind=FailureKind.ERROR, message=message, traceback=trace)


def release(study: PreparedStudy) -> None:
    """Give back what an ended trial no longer refers to.

    Args:
        study: The prepared study.
    """
    if study.cache is not None:
        study.cache.close()  # what no trial uses may make room for others
    gc.collect()
    if study.device.type == "cuda":
        torch.cuda.empty_cache()


def result_of(
    spec: TrialSpec,
    study: PreparedStudy,
    state: TrainingState,
    outcome: Outcome,
    failure: TrialFailure | None,
) -> TrialResult:
    """Return the result of a trial.

    Args:
        spec: The trial.
        study: The prepared study.
        state: Where it ended.
        outcome: How it ended; a trial is not complete without a value.
        failure: Why it failed; None if it did not.

    Returns:
        The result.
    """
    if outcome is Outcome.COMPLETE and state.best_value is None:
        outcome = Outcome.FAILED
        failure = TrialFailure(kind=FailureKind.DIVERGED, message="no validation gave a value")
    peak = max(state.peak_memory_mib, peak_memory_mib(study.device))
    if failure is not None:
        failure = dataclasses.replace(failure, traceback=failure.traceback[-4000:])
    return TrialResult(
        number=spec.number,
        outcome=outcome,
        value=state.best_value,
        best_step=state.best_step,
        metrics=state.best_metrics,
        evaluations=tuple(state.evaluations),
        cost=TrialCost(
            seconds=state.seconds,
            examples=state.examples_seen,
            peak_memory_mib=peak,
            forecast_mib=state.forecast_mib,
        ),
        failure=failure,
        memory=state.memory,
    )
