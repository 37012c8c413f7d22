"""How are the parts of one trial put together, from a spec and a prepared study?"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
from transformers import PreTrainedModel

from automl_ft.data.augmentation import Augmentation
from automl_ft.models.capabilities import Capabilities
from automl_ft.models.dropout import DropoutStream, use_stream
from automl_ft.models.freezing import FreezingPlan, plan_freezing
from automl_ft.models.layers import decay_exempt, layer_depths, reinit_top_blocks
from automl_ft.models.load import LoadedModel
from automl_ft.models.packed_model import PackedModel
from automl_ft.models.padded_model import PaddedModel
from automl_ft.models.vocabulary import CutEmbedding, UnusedRows, compact
from automl_ft.specs.hyperparameters import complete
from automl_ft.specs.trial import TrialSpec
from automl_ft.trial.activations import ActivationSource, cache_versions
from automl_ft.trial.assets import CheckpointAssets, assets_of
from automl_ft.trial.batches import TrainingBatches
from automl_ft.trial.batching import BUCKETED, PACKED
from automl_ft.trial.budget import memory_budget
from automl_ft.trial.compute import ComputeModel, compute_model
from automl_ft.trial.forward import Forward
from automl_ft.trial.graphs import RecordedSteps, Recorder, recorder_for
from automl_ft.trial.guard import MemoryGuard
from automl_ft.trial.inputs import InputMaker
from automl_ft.trial.loop import Job
from automl_ft.trial.losses import LossLog
from automl_ft.trial.optimizer import OptimizerSettings, build_optimizer
from automl_ft.trial.precision import num_sharing
from automl_ft.trial.prefix_cache import CacheKey
from automl_ft.trial.prepare import OpenCheckpoint, PreparedStudy
from automl_ft.trial.recipe import Recipe
from automl_ft.trial.schedule import build_schedule, validation_steps
from automl_ft.trial.screening import Screening
from automl_ft.trial.seeding import random_states, seed_everything
from automl_ft.trial.sizing import SizedParts, Wishes, guard_memory
from automl_ft.trial.step import StepRunner
from automl_ft.trial.techniques import ALL, Techniques

__all__ = ["build_job"]


def build_job(spec: TrialSpec, study: PreparedStudy, techniques: Techniques = ALL) -> Job:
    """Build the parts of a trial, at its first step.

    Args:
        spec: The trial.
        study: The prepared study.
        techniques: Which ways to be fast it may use.

    Returns:
        The job; generators are seeded.

    Raises:
        ModelError: The recipe does not fit the model.
    """
    return _Builder(spec, study, techniques).job()


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class _Model:
    """The model of a trial and what belongs to it."""

    loaded: LoadedModel
    assets: CheckpointAssets
    plan: FreezingPlan
    cut: CutEmbedding | None


class _Builder:
    """Puts one trial together; used once."""

    def __init__(self, spec: TrialSpec, study: PreparedStudy, techniques: Techniques) -> None:
        self._spec = spec
        self._study = study
        self._techniques = techniques
        self._recipe = Recipe.of(spec.hyperparameters)
        self._opened = study.checkpoint(self._recipe.model)
        self._precision = study.precision_of(self._opened) if techniques.bf16 else "fp32"
        self._recorder: Recorder | None = None
        config = study.config
        sharing = num_sharing(config.device, study.device, config.num_workers)
        self._budget = memory_budget(
            study.device,
            sharing,
            config.training.memory_gib,
            study.memory.most_free_mib,
            mapped_mib=sum(weights.size_mib for weights in study.weights.values()),
        )

    def job(self) -> Job:
        """Return the job."""
        spec, study, recipe = self._spec, self._study, self._recipe
        training = study.config.training
        model = self._model()
        self._recorder = self._make_recorder(model.assets.capabilities)
        optimizer = self._optimizer(model)
        compute = compute_model(model.loaded.model, model.plan, self._precision)
        batches = self._batches()
        parameters = tuple(p for group in optimizer.param_groups for p in group["params"])
        seed_everything(spec.seed)
        stepper = self._stepper(model, compute)
        validation = self._validation(model, compute)
        return Job(
            recipe=recipe,
            model=model.loaded.model,
            compute=compute,
            plan=model.plan,
            optimizer=optimizer,
            parameters=parameters,
            schedule=build_schedule(
                recipe.lr_schedule,
                optimizer,
                recipe.warmup_ratio,
                recipe.epochs * batches.num_batches,
            ),
            batches=batches,
            stepper=stepper,
            losses=LossLog(study.device),
            validation=validation,
            memory=self._memory(model.plan, compute, stepper, validation, parameters),
            score=lambda logits: study.metrics(self._opened.splits["validation"].labels, logits),
            objective=study.config.objective,
            validations=partial(
                validation_steps,
                batches.num_examples,
                recipe.batch_size,
                study.validations_per_epoch,
                epochs=recipe.epochs,
            ),
            cut=model.cut,
            patience=training.early_stopping_patience,
            num_labels=len(study.facts.data.labels),
            device=study.device,
            folder=Path(spec.folder),
            random_states=partial(random_states, study.device),
        )

    def _model(self) -> _Model:
        spec, study, recipe = self._spec, self._study, self._recipe
        weights = study.weights_of(self._opened)
        loaded = study.load_model(
            self._opened, dropout=recipe.dropout, seed=spec.seed, weights=weights
        )
        loaded.model.to(study.device)  # type: ignore[arg-type]  # transformers wraps `to`
        assets = assets_of(study, self._opened, loaded)
        plan = plan_freezing(loaded.layer_map, complete(spec.hyperparameters))
        cut = self._cut(loaded.model, assets)  # copies the rows in use
        weights.own_parameters(loaded.model, plan.ever_trainable() | loaded.layer_map.constants)
        if recipe.reinit_layers:  # of blocks that are never frozen
            reinit_top_blocks(
                loaded.model, loaded.layer_map, num_layers=recipe.reinit_layers, seed=spec.seed
            )
        return _Model(loaded=loaded, assets=assets, plan=plan, cut=cut)

    def _cut(self, model: PreTrainedModel, assets: CheckpointAssets) -> CutEmbedding | None:
        if assets.vocabulary is None or not self._techniques.compact_vocabulary:
            return None
        if self._packed(assets.capabilities) is None:
            return None  # models look at token ids where rows are padded
        name = compact(model, assets.vocabulary)
        return CutEmbedding(
            name=name,
            parameter=dict(model.named_parameters())[name],
            vocabulary=assets.vocabulary,
            unused=UnusedRows(),
        )

    def _packed(self, capabilities: Capabilities) -> object:
        may_pack = self._techniques.packed and self._opened.facts.batching == PACKED
        return capabilities.packed if may_pack else None

    def _make_recorder(self, capabilities: Capabilities) -> Recorder | None:
        """Return what records steps, where that is wanted and can be had."""
        is_wanted = self._study.wants_graphs(self._opened)
        # What mixup draws is no tensor.
        can_have = self._packed(capabilities) is not None and self._recipe.mixup == 0
        if not (is_wanted and can_have and self._techniques.cuda_graphs):
            return None
        return recorder_for(self._study.device)

    def _optimizer(self, model: _Model) -> torch.optim.AdamW:
        recipe, loaded = self._recipe, model.loaded
        return build_optimizer(
            loaded.model,
            model.plan.ever_trainable(),
            layer_depths(loaded.layer_map),
            decay_exempt(loaded.model),
            OptimizerSettings(
                learning_rate=recipe.learning_rate,
                weight_decay=recipe.weight_decay,
                layerwise_lr_decay=recipe.layerwise_lr_decay,
            ),
            is_fused=self._techniques.fused_optimizer,
        )

    def _batches(self) -> TrainingBatches:
        # The study's facts decide, not what this process can do: all its trials see alike batches.
        techniques = self._techniques
        is_bucketed = self._opened.facts.batching == BUCKETED or not techniques.packed
        return TrainingBatches(
            split=self._opened.splits["train"],
            batch_size=self._recipe.batch_size,
            seed=self._spec.seed,
            is_bucketed=is_bucketed and techniques.bucketed,
        )

    def _stepper(self, model: _Model, compute: ComputeModel) -> StepRunner:
        study, recipe = self._study, self._recipe
        stream = None
        if self._techniques.cheap_dropout and study.device.type == "cpu":
            stream = DropoutStream(self._spec.seed)
            use_stream(compute.model, stream)
        train = self._opened.splits["train"]
        num_labels = len(study.facts.data.labels)
        augmentation = _augmentation(recipe, self._opened)
        return StepRunner(
            forward=self._forward(
                model,
                compute.model,
                "train",
                stream=stream,
                is_cached=not augmentation.is_active,
                precision=self._precision,
            ),
            compute=compute,
            loss=study.task.loss(study.config, train, num_labels, recipe.label_smoothing),
            augmentation=augmentation if augmentation.is_active else None,
            mixup=recipe.mixup,
            micro_batch_size=recipe.batch_size,
            seed=self._spec.seed,
            stream=stream,
            precision=self._precision,
            graphs=None if self._recorder is None else RecordedSteps(self._recorder, compute),
        )

    def _validation(self, model: _Model, compute: ComputeModel) -> Screening:
        exact = self._forward(model, model.loaded.model, "validation")
        if compute.model is compute.master or not self._techniques.screening:
            return Screening(exact=exact)
        return Screening(
            exact=exact,
            rough=self._forward(model, compute.model, "validation", precision=self._precision),
            fp32_passes=model.assets.fp32_passes,
        )

    def _memory(
        self,
        plan: FreezingPlan,
        compute: ComputeModel,
        stepper: StepRunner,
        validation: Screening,
        parameters: tuple[torch.Tensor, ...],
    ) -> MemoryGuard:
        study, recipe, facts = self._study, self._recipe, self._opened.facts
        training = study.config.training
        is_large = self._techniques.large_validation
        dropout = recipe.dropout if recipe.dropout is None else recipe.dropout > 0
        validation_key = (facts.checkpoint, self._techniques, facts.batching)
        sizes = tuple(parameter.numel() for parameter in parameters)
        return guard_memory(
            SizedParts(
                stepper=stepper,
                validation=validation.exact,
                filling=tuple(
                    forward
                    for forward in (stepper.forward, validation.exact, validation.rough)
                    if forward is not None
                ),
                compute=compute,
                plan=plan,
                parameters=parameters,
                device=study.device,
                max_length=facts.max_length,
                key=(
                    validation_key,
                    compute.model.dtype,
                    dropout,
                    sizes,
                    self._recorder is not None,
                ),
                validation_key=validation_key,
            ),
            Wishes(
                batch_size=recipe.batch_size,
                micro_batch_size=training.micro_batch_size,
                eval_batch_size=training.eval_batch_size if is_large else recipe.batch_size,
            ),
            self._budget,
            study.memory,
        )

    def _forward(
        self,
        model: _Model,
        computing: PreTrainedModel,
        split: str,
        *,
        stream: DropoutStream | None = None,
        is_cached: bool = True,
        precision: str = "fp32",
    ) -> Forward:
        capabilities, layer_map = model.assets.capabilities, model.loaded.layer_map
        is_packed = self._packed(capabilities) is not None
        view: PackedModel | PaddedModel
        if is_packed:
            view = capabilities.packed_model(
                computing,
                layer_map,
                stream=stream,
                use_read_block=self._techniques.last_block,
                by_rows=self._techniques.row_attention,
            )
        else:
            view = capabilities.padded_model(computing, layer_map)
        maker = InputMaker(
            split=self._opened.splits[split],
            padding=self._opened.padding,
            is_packed=is_packed,
            vocabulary=None if model.cut is None else model.cut.vocabulary,
            device=self._study.device,
            in_few_shapes=split == "train" and self._recorder is not None,
        )
        return Forward(
            view=view,
            maker=maker,
            source=self._source(split, maker, model.assets, precision) if is_cached else None,
            precision=precision,
            deepest_prefix=capabilities.deepest_prefix,
            is_sorted=self._techniques.large_validation,
        )

    def _source(
        self, split: str, maker: InputMaker, assets: CheckpointAssets, precision: str
    ) -> ActivationSource | None:
        cache = self._study.cache
        if cache is None or not self._techniques.prefix_cache:
            return None
        return ActivationSource(
            cache=cache,
            split=maker.split,
            key=partial(_key, self._opened, self._study, split),
            maker=maker,
            widths=assets.widths,
            precision=precision,
        )


def _key(
    opened: OpenCheckpoint,
    study: PreparedStudy,
    split: str,
    num_blocks: int,
    dtype: str,
    kind: str,
) -> CacheKey:
    return CacheKey(
        weights_hash=opened.facts.weights_hash + opened.facts.files_hash,
        split_fingerprint=study.facts.data.split_fingerprints[split],
        max_length=opened.facts.max_length,
        num_blocks=num_blocks,
        dtype=dtype,
        kind=kind,
        versions=cache_versions(study.device),
    )


def _augmentation(recipe: Recipe, opened: OpenCheckpoint) -> Augmentation:
    return Augmentation(
        token_dropout=recipe.token_dropout,
        word_swap=recipe.word_swap,
        word_deletion=recipe.word_deletion,
        replacement_token_id=opened.replacement_token_id,
    )
