"""How are head-only trials that share their features put together, to be trained as one?

One of them is built as if it ran alone: its model gives the features, its head the steps that all
heads have. Of the others only the head is made.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from automl_ft.models.head_chain import HeadChain, find_head_chain
from automl_ft.models.layers import decay_exempt, layer_depths
from automl_ft.models.siblings import dropouts_of, dropouts_with, head_with_seed
from automl_ft.specs.decision import Reporter
from automl_ft.specs.trial import TrialMemory, TrialSpec
from automl_ft.tasks.base import SoftTargetLoss
from automl_ft.trial.build import build_job
from automl_ft.trial.forward import Forward
from automl_ft.trial.guard import halved
from automl_ft.trial.loop import Job, enter_stage
from automl_ft.trial.losses import LossLog
from automl_ft.trial.masks import Masks, masks_of
from automl_ft.trial.memory import is_out_of_memory
from automl_ft.trial.optimizer import OptimizerSettings, build_optimizer
from automl_ft.trial.parts import TrialParts
from automl_ft.trial.prepare import PreparedStudy
from automl_ft.trial.recipe import Recipe
from automl_ft.trial.schedule import build_schedule, validation_steps
from automl_ft.trial.sizing import whole_micro_batch
from automl_ft.trial.state import TrainingState

__all__ = ["HeadGroup", "HeadTrial", "UnstackableError", "build_heads"]

_ROWS = 1024
"""Rows whose features are computed at once."""
_TRIED = 4
"""Rows on which the steps of the head are tried."""


class UnstackableError(Exception):
    """Trials cannot be trained as one; the message says why."""


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class HeadTrial:
    """One trial of a group."""

    spec: TrialSpec
    parts: TrialParts
    """Its parts; `model` holds the head only."""
    state: TrainingState
    reporter: Reporter
    loss: SoftTargetLoss
    """Its loss."""
    dropouts: Mapping[str, float]
    """The probability of each dropout layer."""
    masks: Masks
    """Where its dropout masks come from."""
    orders: dict[int, npt.NDArray[np.int64]] = field(default_factory=dict)
    """The order of the epoch that runs."""

    @property
    def parameters(self) -> dict[str, nn.Parameter]:
        """The head by name."""
        return dict(self.parts.model.named_parameters())

    def rows(self) -> npt.NDArray[np.int64]:
        """Return the rows of the next batch, shape (batch_size,); the last one may be smaller."""
        epoch = self.state.epoch
        if epoch not in self.orders:
            self.orders.clear()
            self.orders[epoch] = self.parts.batches.order(epoch)
        return self.parts.batches.rows(self.orders[epoch], self.state.batch)


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class HeadGroup:
    """Trials whose heads read the same features."""

    chain: HeadChain
    """The steps of their heads."""
    features: Tensor
    """What the first step reads, (training rows, width), in the precision of training."""
    labels: npt.NDArray[np.int64]
    """Class ids of the training rows."""
    num_labels: int
    """Number of classes."""
    trials: tuple[HeadTrial, ...]


def build_heads(
    specs: Sequence[TrialSpec], study: PreparedStudy, reporter_for: Callable[[int], Reporter]
) -> HeadGroup:
    """Put trials together.

    Args:
        specs: Head-only trials of one model without a checkpoint (`specs.grouping.stack_key`).
        study: The prepared study.
        reporter_for: Returns by a trial's number what is told of its progress and decides.

    Returns:
        The group, at its first step.

    Raises:
        UnstackableError: The trials must run one by one: the model does not allow pooled
            activations or has a head that is not understood, there is no room for the
            activations, or the device or the loss does not allow it.
    """
    began = time.perf_counter()
    # Dropout that is no module of its own shows only where its probability is not 0.
    pattern = max(specs, key=_dropout)
    _masks(pattern, study)
    job = build_job(pattern, study)
    enter_stage(job, TrainingState())
    if not (_is_pooled(job.stepper.forward) and _is_pooled(job.validation.exact)):
        raise UnstackableError("there are no kept activations for the states that the heads read")
    chain = _chain(job)
    if chain is None:
        raise UnstackableError("the steps of the model's head are not known")
    builder = _HeadBuilder(job, pattern, study, chain)
    group = builder.group([builder.trial(spec, reporter_for(spec.number)) for spec in specs])
    for trial in group.trials:
        trial.state.seconds = (time.perf_counter() - began) / len(specs)
        # One model is built for all of them; their heads are small beside it.
        trial.state.forecast_mib = job.memory.forecast.total_mib
    return group


def _masks(spec: TrialSpec, study: PreparedStudy) -> Masks:
    masks = masks_of(spec.seed, study.device)
    if masks is None:
        raise UnstackableError(f"heads are not trained as one on `{study.device}`")
    return masks


def _dropout(spec: TrialSpec) -> float:
    dropout = Recipe.of(spec.hyperparameters).dropout
    return 1.0 if dropout is None else dropout


def _is_pooled(forward: Forward) -> bool:
    """Tell whether the states that the head reads are there, one of each row."""
    return forward.activations is not None and forward.activations.offsets is None


def _chain(job: Job) -> HeadChain | None:
    frozen = {name for part in job.plan.layer_map.modules[:-1] for name in part}
    forward = job.validation.exact
    pooled = forward.activations.values[:_TRIED] if forward.activations is not None else None
    if pooled is None or len(pooled) < 2:
        return None
    trainable = job.plan.ever_trainable()
    return find_head_chain(job.model, frozen, trainable, _head_of(forward), pooled)


def _head_of(forward: Forward) -> Callable[[Tensor], Tensor]:
    """Return what gives scores from the states that the head reads."""
    inputs = forward.maker.make(np.zeros(1, dtype=np.int64))
    num_blocks = forward.view.layer_map.num_layers

    def run(pooled: Tensor) -> Tensor:
        with forward.view.scores(inputs, pooled, num_blocks) as scores:  # type: ignore[arg-type]
            return scores

    return run


class _HeadBuilder:
    """Makes the trials of one group; used once."""

    def __init__(
        self, job: Job, pattern: TrialSpec, study: PreparedStudy, chain: HeadChain
    ) -> None:
        self._job = job
        self._pattern = pattern
        self._study = study
        self._chain = chain
        self._names = [n for n, _ in job.model.named_parameters() if n in chain.parameters]
        self._exempt = decay_exempt(job.model)
        self._depths = layer_depths(job.plan.layer_map)
        self._features = {
            "train": self._folded(job.stepper.forward),
            "validation": self._folded(job.validation.exact),
        }

    def group(self, trials: Sequence[HeadTrial]) -> HeadGroup:
        """Return the group of some trials."""
        split = self._job.stepper.forward.maker.split
        return HeadGroup(
            chain=self._chain,
            features=self._features["train"],
            labels=np.asarray(split.labels, dtype=np.int64),
            num_labels=self._job.num_labels,
            trials=tuple(trials),
        )

    def trial(self, spec: TrialSpec, reporter: Reporter) -> HeadTrial:
        """Return one trial, unless its loss or its head is another one."""
        study, recipe = self._study, Recipe.of(spec.hyperparameters)
        split = self._job.stepper.forward.maker.split
        loss = study.task.loss(study.config, split, self._job.num_labels, recipe.label_smoothing)
        if not isinstance(loss, SoftTargetLoss):
            raise UnstackableError(f"the loss of trial {spec.number} knows no soft targets")
        masks = _masks(spec, study)
        tensors, dropouts = self._head(spec, recipe)
        # XLNet has no dropout layer where the probability is 0, so it may lack one in the chain.
        if not dropouts.keys() <= dropouts_of(self._job.model).keys():
            raise UnstackableError(f"trial {spec.number} has dropout where the others have none")
        return HeadTrial(
            spec=spec,
            parts=self._parts(spec, recipe, _tree(tensors), masks),
            state=TrainingState(),
            reporter=reporter,
            loss=loss,
            dropouts={name: dropouts.get(name, 0.0) for name in self._chain.dropouts},
            masks=masks,
        )

    def _folded(self, forward: Forward) -> Tensor:
        """Return what the first step of the head reads, for all rows of a split."""
        assert forward.activations is not None
        model, pooled = forward.view.model, forward.activations.values
        model.eval()  # type: ignore[no-untyped-call]
        run = _head_of(forward)
        parts = [self._chain.features(model, run, rows) for rows in torch.split(pooled, _ROWS)]
        if all(torch.equal(a, b) for a, b in zip(parts, torch.split(pooled, _ROWS), strict=True)):
            return pooled  # mapped, not in memory
        return torch.cat(parts)

    def _head(
        self, spec: TrialSpec, recipe: Recipe
    ) -> tuple[dict[str, Tensor], Mapping[str, float]]:
        """Return the parameters and dropouts that loading the trial's own model would give."""
        job, model = self._job, self._job.model
        dropouts = None
        if recipe.dropout == job.recipe.dropout:
            dropouts = dropouts_of(model)
        elif recipe.dropout is not None:
            dropouts = dropouts_with(model, recipe.dropout)
        drawn = head_with_seed(model, self._names, spec.seed, own_seed=self._pattern.seed)
        if drawn is None or dropouts is None:
            opened = self._study.checkpoint(recipe.model)
            loaded = self._study.load_model(
                opened,
                dropout=recipe.dropout,
                seed=spec.seed,
                weights=self._study.weights_of(opened),
            ).model
            drawn = {name: loaded.get_parameter(name).detach().clone() for name in self._names}
            dropouts = dropouts_of(loaded)
        return {name: drawn[name].to(self._study.device) for name in self._names}, dropouts

    def _parts(self, spec: TrialSpec, recipe: Recipe, head: nn.Module, masks: Masks) -> TrialParts:
        job, training = self._job, self._study.config.training
        batches = replace(job.batches, batch_size=recipe.batch_size, seed=spec.seed)
        optimizer = build_optimizer(
            head,
            self._names,
            self._depths,
            self._exempt,
            OptimizerSettings(
                learning_rate=recipe.learning_rate,
                weight_decay=recipe.weight_decay,
                layerwise_lr_decay=recipe.layerwise_lr_decay,
            ),
        )
        record = TrialMemory(
            micro_batch_size=whole_micro_batch(training.micro_batch_size, recipe.batch_size),
            eval_batch_size=job.memory.record.eval_batch_size,
            # While the activations that all share were computed.
            num_out_of_memory=job.memory.record.num_out_of_memory,
        )
        return TrialParts(
            recipe=recipe,
            model=head,
            plan=job.plan,
            optimizer=optimizer,
            schedule=build_schedule(
                recipe.lr_schedule,
                optimizer,
                recipe.warmup_ratio,
                recipe.epochs * batches.num_batches,
            ),
            batches=batches,
            losses=LossLog(job.device),
            validation=_HeadScorer(
                chain=self._chain, head=head, features=self._features["validation"]
            ),
            memory=_HeadRoom(record=record),
            score=job.score,
            objective=job.objective,
            validations=partial(
                validation_steps,
                batches.num_examples,
                recipe.batch_size,
                self._study.validations_per_epoch,
                epochs=recipe.epochs,
            ),
            cut=job.cut,
            patience=job.patience,
            num_labels=job.num_labels,
            device=job.device,
            folder=Path(spec.folder),
            random_states=masks.random_states,
        )


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class _HeadScorer:
    """Scores the validation rows by one head, from features in fp32."""

    chain: HeadChain
    head: nn.Module
    features: Tensor

    @torch.inference_mode()
    def all_scores(self, batch_size: int) -> npt.NDArray[np.float32]:
        """Compute the scores of all rows, shape (num_rows, num_labels)."""
        weights = {name: p[None] for name, p in self.head.named_parameters()}
        parts = torch.split(self.features, batch_size)
        scores = [self.chain.scores(rows[None], weights)[0].float().cpu() for rows in parts]
        found: npt.NDArray[np.float32] = torch.cat(scores).numpy()
        return found


@dataclass(kw_only=True, slots=True)
class _HeadRoom:
    """The memory of a head: features are so small that it hardly ever runs out."""

    record: TrialMemory
    rows: int = _ROWS
    """Validation rows at once."""

    def all_scores(self, scorer: Any) -> npt.NDArray[np.float32]:
        """Score a split; again with half as many rows at once where memory runs out."""
        while True:
            try:
                scores: npt.NDArray[np.float32] = scorer.all_scores(self.rows)
                return scores
            except Exception as error:
                if not is_out_of_memory(error) or self.rows == 1:
                    raise
            self.rows = halved(self.rows)
            self.record = replace(
                self.record,
                eval_batch_size=min(self.record.eval_batch_size, self.rows),
                num_out_of_memory=self.record.num_out_of_memory + 1,
            )


def _tree(tensors: Mapping[str, Tensor]) -> nn.Module:
    """Return a module that holds parameters under dotted names, and computes nothing."""
    root = nn.Module()
    for name, tensor in tensors.items():
        module = root
        *path, last = name.split(".")
        for key in path:
            if key not in module._modules:
                module.add_module(key, nn.Module())
            module = module.get_submodule(key)
        module.register_parameter(last, nn.Parameter(tensor))
    return root
