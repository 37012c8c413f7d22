"""The training loop of one trial: fit -> run_epoch -> train_step, and validate.

    fit           epochs, until the end, a decision to stop, or early stopping
      run_epoch   batches in the epoch's order; validations at fixed fractions of an epoch
        train_step    micro-batches forward and backward, clip, step, schedule
        validate      metrics, best model, checkpoint, report -> Decision

The loop calls a `Reporter` and obeys; it knows nothing of studies. Every part that a faster engine
may replace is a field of `Job`.
"""

from __future__ import annotations

import math
import time
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import numpy.typing as npt
from torch import Tensor
from transformers import PreTrainedModel

from automl_ft.specs.decision import Decision, Evaluation, Progress, Reporter
from automl_ft.specs.trial import Outcome
from automl_ft.trial.checkpoint import save_best, save_last
from automl_ft.trial.compute import ComputeModel
from automl_ft.trial.guard import MemoryGuard
from automl_ft.trial.losses import DivergedError
from automl_ft.trial.memory import peak_memory_mib
from automl_ft.trial.optimizer import clipped_gradients, shrink_l1
from automl_ft.trial.parts import TrialParts
from automl_ft.trial.screening import Screening
from automl_ft.trial.state import TrainingState
from automl_ft.trial.step import Stepper

__all__ = ["Job", "after_step", "fit", "is_finished", "save_checkpoint"]


@dataclass(frozen=True, kw_only=True, slots=True)
class Job(TrialParts):
    """The parts of one trial that is trained by itself; built by `trial.build`."""

    model: PreTrainedModel
    """Holds the parameters, in fp32."""
    compute: ComputeModel
    """Computes, in the trial's precision."""
    parameters: tuple[Tensor, ...]
    """All that the optimiser trains at some time."""
    stepper: Stepper
    validation: Screening
    memory: MemoryGuard
    """Runs steps and validations in the memory that there is."""


def fit(job: Job, state: TrainingState, reporter: Reporter) -> Outcome:
    """Train until the end, a decision to stop, or early stopping.

    Args:
        job: The parts; its tensors and `state` change in place.
        state: Fresh, or restored from a checkpoint together with the tensors.
        reporter: Told of progress and validations; decides.

    Returns:
        COMPLETE, PRUNED or PAUSED.

    Raises:
        DivergedError: The loss or the gradients are not finite, or the loss exploded.
        TornStepError: Memory ran out while the parameters moved: they must be restored.
    """
    if state.evaluations and not is_finished(job, state):
        # A kill may have come between the checkpoint and its report: report once more.
        outcome = _obey(reporter.report(state.evaluations[-1]))
        if outcome is not None:
            return outcome
    while not is_finished(job, state):
        outcome = run_epoch(job, state, reporter)
        if outcome is not None:
            return outcome
        state.epoch, state.batch = state.epoch + 1, 0
    return Outcome.COMPLETE


def is_finished(job: TrialParts, state: TrainingState) -> bool:
    """Tell whether a trial has run its length, or is stopped early.

    Args:
        job: The parts.
        state: Where the trial stands.

    Returns:
        True if no step is left.
    """
    if job.patience is not None and state.validations_without_gain >= job.patience:
        return True
    last = state.epoch == job.recipe.epochs - 1 and state.batch == job.batches.num_batches
    return last or state.epoch >= job.recipe.epochs


def run_epoch(job: Job, state: TrainingState, reporter: Reporter) -> Outcome | None:
    """Train the rest of an epoch.

    Args:
        job: The parts.
        state: Where the epoch stands.
        reporter: Told of progress and validations; decides.

    Returns:
        How the trial ended, or None at the end of the epoch.

    Raises:
        DivergedError: The loss or the gradients are not finite, or the loss exploded.
    """
    order = job.batches.order(state.epoch)
    while state.batch < job.batches.num_batches:
        began = time.perf_counter()
        train_step(job, state, order)
        state.seconds += time.perf_counter() - began
        outcome = after_step(job, state, reporter)
        if outcome is not None:
            return outcome
    return None


def after_step(job: TrialParts, state: TrainingState, reporter: Reporter) -> Outcome | None:
    """Report a step, validate where it is time, save where the trial stops.

    Args:
        job: The parts.
        state: It counts the step.
        reporter: Told of progress and validations; decides.

    Returns:
        How the trial ended, or None if it goes on.

    Raises:
        DivergedError: A loss is not finite, or the training loss exploded.
    """
    decision = reporter.progress(_progress(job, state))
    if state.batch - 1 in job.validations(state.epoch):
        decision = validate(job, state, reporter)
        if is_finished(job, state):
            return Outcome.COMPLETE
    elif decision is not Decision.CONTINUE:
        save_checkpoint(job, state)
    return _obey(decision)


def train_step(job: Job, state: TrainingState, order: npt.NDArray[np.int64]) -> None:
    """Train one effective batch.

    Args:
        job: The parts.
        state: Counts it.
        order: Row numbers of the epoch.

    Raises:
        DivergedError: The loss or the gradient's norm is not finite; on a GPU it may be that of a
            step or two before.
        TornStepError: Memory ran out while the parameters moved: they must be restored.
    """
    enter_stage(job, state)
    rows = job.batches.rows(order, state.batch)
    loss = job.memory.backward(rows, state.epoch, state.step)
    job.memory.update(job.optimizer, partial(_update, job, loss, state.step + 1), len(rows))
    state.batch, state.step = state.batch + 1, state.step + 1
    state.examples_seen += len(rows)


def _update(job: Job, loss: Tensor, step: int) -> None:
    """Move the parameters by their gradients, and drop these."""
    with_gradient = [p for p in job.parameters if p.grad is not None]
    with clipped_gradients(job.optimizer, with_gradient, job.recipe.max_grad_norm) as norm:
        job.losses.add(loss, norm, step)
        job.optimizer.step()
    shrink_l1(job.optimizer, job.recipe.l1)
    if job.cut is not None:
        job.cut.step(job.optimizer, job.recipe.l1)
    job.compute.refresh()
    job.schedule.step()
    job.optimizer.zero_grad(set_to_none=True)


def enter_stage(job: Job, state: TrainingState) -> None:
    """Set what is trainable and what is in training mode now.

    Args:
        job: The parts.
        state: Its stage follows the share of training done.
    """
    stage = job.plan.stage(state.examples_seen / job.total_examples)
    if stage != state.stage or not job.compute.model.training:
        state.stage = stage
        job.compute.enter(job.plan, stage)
    share = job.recipe.epochs * job.plan.share(stage)
    job.stepper.forward.enter(job.plan, stage, num_passes=share)
    per_epoch = max(1, len(job.validations(state.epoch)))
    job.validation.enter(job.plan, stage, num_passes=share * per_epoch)


def validate(job: TrialParts, state: TrainingState, reporter: Reporter) -> Decision:
    """Validate, keep the best model, write the checkpoint, report.

    Args:
        job: The parts.
        state: Takes in the validation.
        reporter: Told of it; decides.

    Returns:
        The reporter's decision.

    Raises:
        DivergedError: The validation loss is not finite, or the training loss exploded.
    """
    began = time.perf_counter()
    job.losses.drain(state)  # on a GPU steps may still be running: that is training
    drained = time.perf_counter()
    train_loss = state.loss_sum / max(state.loss_steps, 1)
    job.model.eval()
    logits = job.memory.all_scores(job.validation)
    metrics = {f"validation_{name}": value for name, value in job.score(logits).items()}
    metrics["train_loss"] = train_loss
    _check_divergence(job, metrics, train_loss)
    nominal = state.epoch * job.batches.num_examples + job.validations(state.epoch)[state.batch - 1]
    value = metrics[f"validation_{job.objective}"]
    ended = time.perf_counter()
    state.seconds += ended - began
    state.seconds_validating += ended - drained
    evaluation = Evaluation(
        step=nominal,
        epoch=nominal / job.batches.num_examples,
        metrics=metrics,
        seconds=state.seconds,
    )
    began = time.perf_counter()
    if state.note_validation(evaluation, value):
        save_best(job.folder, best_parameters(job), logits)
    state.seconds += time.perf_counter() - began
    save_checkpoint(job, state)
    return reporter.report(evaluation)


def _check_divergence(job: TrialParts, metrics: Mapping[str, float], train_loss: float) -> None:
    """Refuse losses that no classifier should have.

    Guessing evenly costs log(num_labels) nats; a mean training loss of ten times that (or, for
    few classes, of 10 nats) is an explosion, not a bad recipe.
    """
    if not math.isfinite(metrics["validation_loss"]):
        raise DivergedError(f"validation loss is {metrics['validation_loss']}")
    limit = 10 * max(1.0, math.log(job.num_labels))
    if train_loss > limit:
        raise DivergedError(f"mean training loss {train_loss:.3g} exceeds {limit:.3g} nats")


def trained_parameters(job: TrialParts) -> dict[str, Tensor]:
    """Return the parameters that training may have changed.

    Args:
        job: The parts.

    Returns:
        Parameters by name.
    """
    wanted = job.plan.ever_trainable()
    return {name: p.detach() for name, p in job.model.named_parameters() if name in wanted}


def best_parameters(job: TrialParts) -> dict[str, Tensor]:
    """Return what the best model is written as: `models.vocabulary.expand_saved` reads it.

    Args:
        job: The parts.

    Returns:
        The parameters that training may have changed, and beside a cut embedding what makes it
        whole again.
    """
    parameters = trained_parameters(job)
    if job.cut is not None and job.cut.name in parameters:
        parameters.update(job.cut.saved())
    return parameters


def save_checkpoint(job: TrialParts, state: TrainingState) -> None:
    """Write everything that the next step depends on; of a finished trial only how it stands.

    Args:
        job: The parts.
        state: Where the trial stands.
    """
    job.losses.drain(state)
    state.peak_memory_mib = max(state.peak_memory_mib, peak_memory_mib(job.device))
    state.memory = job.memory.record
    tensors: dict[str, Any] = {"parameters": {}, "optimizer": None}
    if not is_finished(job, state):
        # Three times the model's size, which nobody would read once no step is left.
        tensors = {
            "parameters": trained_parameters(job),
            "optimizer": job.optimizer.state_dict(),
            "schedule": job.schedule.state_dict(),
            "random": job.random_states(),
            "unused_rows": None if job.cut is None else job.cut.unused.to_plain(),
        }
    save_last(job.folder, {**tensors, "state": state.to_plain()})


def _progress(job: TrialParts, state: TrainingState) -> Progress:
    return Progress(
        examples_seen=state.examples_seen,
        total_examples=job.total_examples,
        train_loss=job.losses.latest,
        seconds=state.seconds,
    )


def _obey(decision: Decision) -> Outcome | None:
    if decision is Decision.CONTINUE:
        return None
    return Outcome.PRUNED if decision is Decision.PRUNE else Outcome.PAUSED
