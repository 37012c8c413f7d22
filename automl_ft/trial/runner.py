"""One fine-tuning job, whole: a spec and a prepared study in, a result out.

Whatever goes wrong inside is a result with a failure kind; only interruption of the process ends
it otherwise. Where memory runs out before the first step, or while parameters move, the trial is
built anew, smaller, from its last checkpoint.
"""

from __future__ import annotations

import dataclasses
import gc
import math
import traceback
from pathlib import Path

import torch

from automl_ft.errors import DiskError
from automl_ft.specs.decision import Reporter
from automl_ft.specs.failure import FailureKind, TrialFailure
from automl_ft.specs.trial import Outcome, TrialCost, TrialMemory, TrialResult, TrialSpec
from automl_ft.trial.build import build_job
from automl_ft.trial.checkpoint import load_last
from automl_ft.trial.device import empty_cache
from automl_ft.trial.guard import TornStepError, halved
from automl_ft.trial.loop import Job, fit
from automl_ft.trial.losses import DivergedError
from automl_ft.trial.memory import (
    is_out_of_memory,
    peak_memory_mib,
    reset_peak_memory,
    taken_memory_mib,
)
from automl_ft.trial.prepare import PreparedStudy
from automl_ft.trial.recipe import Recipe
from automl_ft.trial.seeding import restore_random_states
from automl_ft.trial.sizing import whole_eval_batch, whole_micro_batch
from automl_ft.trial.state import TrainingState
from automl_ft.trial.techniques import ALL, Techniques

__all__ = ["failure_of", "release", "restore", "result_of", "run_trial"]

_MOST_REBUILT = 3
"""Times that a run is built anew because memory ran out."""
_BUILDING_FACTOR = 1.1
"""The least correction: what building takes says little of what a batch takes."""


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
    reset_peak_memory(study.device)
    run = _Run(spec, study, techniques)
    failure = None
    try:
        outcome = run.outcome(reporter)
    except DiskError:
        raise  # not the fault of this trial, and the next one would meet it too
    except Exception as error:
        outcome, failure = Outcome.FAILED, failure_of(error)
    finally:
        run.drop()  # frees the model before the next trial
        release(study)
    return result_of(spec, study, run.state, outcome, failure)


class _Run:
    """One run of a trial; built more than once where memory runs out beyond what a step mends."""

    def __init__(self, spec: TrialSpec, study: PreparedStudy, techniques: Techniques) -> None:
        self.state = TrainingState()
        self._spec = spec
        self._study = study
        self._techniques = techniques
        self._job: Job | None = None
        self._record: TrialMemory | None = None
        self._was_built = False
        self._num_rebuilt = 0

    def outcome(self, reporter: Reporter) -> Outcome:
        """Build and train until the trial stops or cannot go on."""
        while True:
            try:
                self._job, self.state = self._begin()
                first = self.state.examples_seen
                outcome = fit(self._job, self.state, reporter)
            except Exception as error:
                is_building = self._job is None and is_out_of_memory(error)
                is_mendable = is_building or isinstance(error, TornStepError)
                if not is_mendable or self._num_rebuilt == _MOST_REBUILT:
                    raise
            else:
                stored = self._job.stepper.forward.activations
                if stored is None or not stored.is_pooled:  # else only a head was trained
                    self._study.memory.has_trained = True
                if self._num_rebuilt == 0 and _is_evidence(self._job, self.state, first):
                    self._job.memory.settle(taken_memory_mib(self._study.device))
                return outcome
            # Only here, where the exception no longer holds the tensors.
            self._shrink()

    def drop(self) -> None:
        """Let go of the job, and keep how it fitted."""
        if self._job is not None:
            self.state.memory = self._job.memory.record
            self.state.forecast_mib = self._job.memory.forecast.total_mib
        elif self._record is not None:
            self.state.memory = self._record
        self._job = None

    def _begin(self) -> tuple[Job, TrainingState]:
        job = build_job(self._spec, self._study, self._techniques)
        state = restore(job, Path(self._spec.folder)) or TrainingState()
        state.seconds = max(state.seconds, self.state.seconds)
        if self._record is not None:
            before = job.memory.record.num_out_of_memory
            # What a job counted began with what its checkpoint had counted.
            earlier = 0 if self._was_built else before
            counted = self._record.num_out_of_memory + earlier
            job.memory.resume(dataclasses.replace(self._record, num_out_of_memory=counted))
        self._was_built = True
        return job, state

    def _shrink(self) -> None:
        """Count that memory ran out, and free all that can be made anew."""
        self._num_rebuilt += 1
        if self._job is not None:
            self._job.memory.shrink(self._job.recipe.batch_size)
            self._record = self._job.memory.record
        else:
            self._record = _unbuilt(self._record, self._spec, self._study)
        self._job = None
        self._study.assets.clear()
        release(self._study)


def _unbuilt(record: TrialMemory | None, spec: TrialSpec, study: PreparedStudy) -> TrialMemory:
    """Return how a trial is to fit whose building took more memory than there was."""
    device = study.device.type
    if record is None:
        recipe, training = Recipe.of(spec.hyperparameters), study.config.training
        lengths = study.checkpoint(recipe.model).splits["validation"].lengths
        rows = whole_micro_batch(
            training.micro_batch_size, recipe.batch_size, is_mixing=recipe.mixup > 0
        )
        record = TrialMemory(
            micro_batch_size=min(rows, recipe.batch_size),
            eval_batch_size=whole_eval_batch(training.eval_batch_size, lengths, device),
        )
    size = record.micro_batch_size
    return dataclasses.replace(
        record,
        micro_batch_size=halved(size) if size > 1 else 1,
        num_out_of_memory=record.num_out_of_memory + 1,
        correction=study.memory.correct(device, _BUILDING_FACTOR),
    )


def _is_evidence(job: Job, state: TrainingState, first: int) -> bool:
    """Tell whether a run took as much memory as its trial ever does.

    It met every row, trained all that is ever trained, computed all blocks itself, and none that
    were to be stored.
    """
    forwards = (job.stepper.forward, job.validation.exact, job.validation.rough)
    if any(forward is not None and forward.has_filled for forward in forwards):
        return False
    return (
        state.examples_seen - first >= job.batches.num_examples
        and state.stage == job.plan.num_stages - 1
        and job.stepper.forward.activations is None
    )


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
    empty_cache(study.device)


def _known(seconds: float) -> float | None:
    return None if math.isnan(seconds) else seconds


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
            seconds_validating=_known(state.seconds_validating),
        ),
        failure=failure,
        memory=state.memory,
    )
