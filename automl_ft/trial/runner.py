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

from automl_ft.data.augmentation import Augmentation
from automl_ft.errors import DiskError
from automl_ft.models.freezing import FreezingPlan, plan_freezing
from automl_ft.models.layers import decay_exempt, layer_depths, reinit_top_blocks
from automl_ft.models.load import LoadedModel
from automl_ft.specs.decision import Reporter
from automl_ft.specs.failure import FailureKind, TrialFailure
from automl_ft.specs.hyperparameters import complete
from automl_ft.specs.trial import Outcome, TrialCost, TrialResult, TrialSpec
from automl_ft.trial.batches import TrainingBatches
from automl_ft.trial.checkpoint import load_last
from automl_ft.trial.evaluation import predict_logits
from automl_ft.trial.loop import DivergedError, Job, fit
from automl_ft.trial.memory import is_out_of_memory, peak_memory_mib, reset_peak_memory
from automl_ft.trial.optimizer import OptimizerSettings, build_optimizer
from automl_ft.trial.precision import resolve_precision
from automl_ft.trial.prepare import OpenCheckpoint, PreparedStudy
from automl_ft.trial.recipe import Recipe
from automl_ft.trial.schedule import build_schedule, validation_steps
from automl_ft.trial.seeding import restore_random_states, seed_everything
from automl_ft.trial.state import TrainingState
from automl_ft.trial.step import StepRunner

__all__ = ["build_job", "restore", "run_trial"]


def run_trial(spec: TrialSpec, study: PreparedStudy, reporter: Reporter) -> TrialResult:
    """Run a trial from its start or from its checkpoint.

    Args:
        spec: The trial.
        study: The prepared study.
        reporter: Told of progress and validations; decides.

    Returns:
        How this run ended; costs and validations are those of all runs.

    Raises:
        DiskError: The disk takes no more checkpoints.
    """
    state = TrainingState()
    reset_peak_memory(study.device)
    try:
        job = build_job(spec, study)
        state = restore(job, Path(spec.folder)) or state
        outcome = fit(job, state, reporter)
        if outcome is Outcome.COMPLETE and state.best_value is None:
            raise DivergedError("no validation gave a value")
        failure = None
    except DiskError:
        raise  # not the fault of this trial, and the next one would meet it too
    except Exception as error:
        outcome, failure = Outcome.FAILED, _failure(error)
    finally:
        job = None  # type: ignore[assignment]  # frees the model before the next trial
        _free(study.device)
    return _result(spec, study, state, outcome, failure)


def build_job(spec: TrialSpec, study: PreparedStudy) -> Job:
    """Build the parts of a trial, at its first step.

    Args:
        spec: The trial.
        study: The prepared study.

    Returns:
        The job; generators are seeded.

    Raises:
        ModelError: The recipe does not fit the model.
    """
    recipe = Recipe.of(spec.hyperparameters)
    training = study.config.training
    opened = study.checkpoint(recipe.model)
    loaded = study.load_model(opened, dropout=recipe.dropout, seed=spec.seed)
    loaded.model.to(study.device)  # type: ignore[arg-type]  # transformers wraps `to`
    if recipe.reinit_layers:
        reinit_top_blocks(
            loaded.model, loaded.layer_map, num_layers=recipe.reinit_layers, seed=spec.seed
        )
    plan = plan_freezing(loaded.layer_map, complete(spec.hyperparameters))
    batches = TrainingBatches(
        split=opened.splits["train"],
        batch_size=recipe.batch_size,
        seed=spec.seed,
        augmentation=_augmentation(recipe, opened),
        padding=opened.padding,
    )
    optimizer = _optimizer(recipe, loaded, plan)
    total_steps = recipe.epochs * batches.num_batches
    seed_everything(spec.seed, study.device)
    return Job(
        recipe=recipe,
        model=loaded.model,
        plan=plan,
        optimizer=optimizer,
        schedule=build_schedule(recipe.lr_schedule, optimizer, recipe.warmup_ratio, total_steps),
        batches=batches,
        stepper=_stepper(recipe, study, batches),
        evaluate=lambda model: predict_logits(
            model,
            opened.splits["validation"],
            opened.padding,
            training.eval_batch_size,
            study.device,
        ),
        score=lambda logits: study.metrics(opened.splits["validation"].labels, logits),
        objective=study.config.objective,
        validations=validation_steps(
            batches.num_examples, recipe.batch_size, training.validations_per_epoch
        ),
        patience=training.early_stopping_patience,
        num_labels=len(study.facts.data.labels),
        device=study.device,
        folder=Path(spec.folder),
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
    parameters = dict(job.model.named_parameters())
    with torch.no_grad():
        for name, value in saved["parameters"].items():
            parameters[name].copy_(value)
    job.optimizer.load_state_dict(saved["optimizer"])
    job.schedule.load_state_dict(saved["schedule"])
    restore_random_states(saved["random"], job.device)
    return TrainingState.from_plain(saved["state"])


def _augmentation(recipe: Recipe, opened: OpenCheckpoint) -> Augmentation:
    return Augmentation(
        token_dropout=recipe.token_dropout,
        word_swap=recipe.word_swap,
        word_deletion=recipe.word_deletion,
        replacement_token_id=opened.replacement_token_id,
    )


def _optimizer(recipe: Recipe, loaded: LoadedModel, plan: FreezingPlan) -> torch.optim.AdamW:
    return build_optimizer(
        loaded.model,
        plan.ever_trainable(),
        layer_depths(loaded.layer_map),
        decay_exempt(loaded.model),
        OptimizerSettings(
            learning_rate=recipe.learning_rate,
            weight_decay=recipe.weight_decay,
            layerwise_lr_decay=recipe.layerwise_lr_decay,
        ),
    )


def _stepper(recipe: Recipe, study: PreparedStudy, batches: TrainingBatches) -> StepRunner:
    num_labels = len(study.facts.data.labels)
    return StepRunner(
        batches=batches,
        loss=study.task.loss(study.config, batches.split, num_labels, recipe.label_smoothing),
        mixup=recipe.mixup,
        micro_batch_size=study.config.training.micro_batch_size,
        precision=resolve_precision(study.config.training.precision, study.device),
        device=study.device,
    )


def _failure(error: Exception) -> TrialFailure:
    text = " ".join(str(error).split())[:500]
    message = f"{type(error).__name__}: {text}" if text else type(error).__name__
    trace = traceback.format_exc()
    if is_out_of_memory(error):
        return TrialFailure(kind=FailureKind.OUT_OF_MEMORY, message=message, traceback=trace)
    if isinstance(error, DivergedError):
        return TrialFailure(kind=FailureKind.DIVERGED, message=text)
    return TrialFailure(kind=FailureKind.ERROR, message=message, traceback=trace)


def _free(device: torch.device) -> None:
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()


def _result(
    spec: TrialSpec,
    study: PreparedStudy,
    state: TrainingState,
    outcome: Outcome,
    failure: TrialFailure | None,
) -> TrialResult:
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
        cost=TrialCost(seconds=state.seconds, examples=state.examples_seen, peak_memory_mib=peak),
        failure=failure,
    )
