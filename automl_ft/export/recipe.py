"""What does a trial's recipe come to for one model, in names that plain transformers knows?

Everything that automl-ft derives from the module tree (what is frozen, which rate each part has)
is spelled out here, so that the training script needs none of it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from torch import nn
from transformers import AutoConfig, AutoTokenizer

from automl_ft.data.augmentation import replacement_token
from automl_ft.data.class_weights import balanced_class_weights
from automl_ft.data.saved import load_saved_splits
from automl_ft.export.job import ExportJob
from automl_ft.export.model import RebuiltModel
from automl_ft.export.prefixes import group_by_prefix, prefixes_of
from automl_ft.models.bundled import BUNDLED_MODELS
from automl_ft.models.dropout import dropout_overrides
from automl_ft.models.freezing import FreezingPlan, plan_freezing
from automl_ft.models.layers import layer_depths
from automl_ft.models.quiet import quiet
from automl_ft.specs.layout import rows_folder
from automl_ft.trial.recipe import Recipe

__all__ = ["ScriptFacts", "script_facts"]

_AUTO_LIMIT = 32
"""Rows at once in the script where the study chose by the memory that it found."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ScriptFacts:
    """Everything that a training script says."""

    job: ExportJob
    """The export."""
    recipe: Recipe
    """The trial's hyperparameters."""
    checkpoint: str
    """Hub id or local folder; empty for a bundled model."""
    package: tuple[str, str] | None
    """Package of a bundled model and the folder in it."""
    batch_size: int
    """Rows that pass through the model at once."""
    accumulation: int
    """Passes for one optimiser step."""
    data_files: Mapping[str, str]
    """The study's own copy of its rows by split."""
    class_weights: tuple[float, ...]
    """Weight by class; empty where rows weigh the same."""
    model_options: Mapping[str, float | int | bool]
    """Config keys that differ from the checkpoint's: dropout, padding."""
    pad_token: str | None
    """A pad token that the checkpoint's tokenizer lacks; None where it has one."""
    padding_side: str | None
    """Where to pad, if not as the checkpoint's tokenizer says."""
    replacement_token_id: int | None
    """What token dropout puts in."""
    frozen: tuple[str, ...]
    """Prefixes of what is frozen all the time."""
    frozen_parts: tuple[tuple[str, ...], ...]
    """With gradual unfreezing: prefixes of each part that is frozen at first, bottom first."""
    num_stages: int
    """Stages of gradual unfreezing; 1 without."""
    depths: Mapping[str, int]
    """Distance from the head by prefix, where rates depend on it."""
    reinitialised: tuple[str, ...]
    """Modules that start from fresh weights."""


def script_facts(job: ExportJob, rebuilt: RebuiltModel) -> ScriptFacts:
    """Spell out a trial's recipe.

    Args:
        job: The export.
        rebuilt: Its model.

    Returns:
        What the script says.

    Raises:
        DataError: The study's copy of the rows cannot be read.
        ModelError: The recipe does not fit the model.
    """
    recipe = Recipe.of(job.hyperparameters)
    plan = plan_freezing(rebuilt.loaded.layer_map, job.hyperparameters)
    is_gradual = plan.num_stages > 1
    splits = rows_folder(Path(job.folder).resolve())
    batch_size = _micro_batch(recipe.batch_size, job.config.training.micro_batch_size)
    options, pad_token, padding_side = _options(rebuilt, recipe)
    package = BUNDLED_MODELS.get(rebuilt.resolved.checkpoint)
    is_on_hub = bool(rebuilt.resolved.revision)
    place = rebuilt.resolved.checkpoint if is_on_hub else str(rebuilt.resolved.folder)
    return ScriptFacts(
        job=job,
        recipe=recipe,
        checkpoint="" if package else place,
        package=package,
        batch_size=batch_size,
        accumulation=recipe.batch_size // batch_size,
        data_files={name: str(splits / f"{name}.parquet") for name in ("train", "validation")},
        class_weights=_class_weights(job),
        model_options=options,
        pad_token=pad_token,
        padding_side=padding_side,
        replacement_token_id=replacement_token(rebuilt.tokenizer),
        frozen=() if is_gradual else _frozen(plan, rebuilt, _frozen_parts(plan)),
        frozen_parts=_parts(plan, rebuilt) if is_gradual else (),
        num_stages=plan.num_stages,
        depths=_depths(rebuilt) if recipe.layerwise_lr_decay != 1 else {},
        reinitialised=_reinitialised(plan, rebuilt),
    )


def _micro_batch(batch_size: int, setting: int | str) -> int:
    """Return the largest divisor of the effective batch size that fits through the model."""
    limit = setting if isinstance(setting, int) else _AUTO_LIMIT
    return next(size for size in range(min(batch_size, limit), 0, -1) if batch_size % size == 0)


def _options(
    rebuilt: RebuiltModel, recipe: Recipe
) -> tuple[dict[str, float | int | bool], str | None, str | None]:
    """Find what has to be told to plain transformers so that it loads the same model."""
    trust = rebuilt.config.trust_remote_code
    with quiet():
        tokenizer = AutoTokenizer.from_pretrained(rebuilt.resolved.folder, trust_remote_code=trust)
        config = AutoConfig.from_pretrained(rebuilt.resolved.folder, trust_remote_code=trust)
    options: dict[str, float | int | bool] = {}
    if recipe.dropout is not None:
        options |= dropout_overrides(config, recipe.dropout)
    pad_id = rebuilt.loaded.model.config.get_text_config().pad_token_id
    if config.get_text_config().pad_token_id != pad_id:
        options["pad_token_id"] = pad_id
    pad_token = None if tokenizer.pad_token is not None else str(rebuilt.tokenizer.pad_token)
    side = rebuilt.tokenizer.padding_side
    return options, pad_token, None if tokenizer.padding_side == side else side


def _class_weights(job: ExportJob) -> tuple[float, ...]:
    if job.config.data.class_weights is None:
        return ()
    splits = load_saved_splits(rows_folder(Path(job.folder)))
    weights = balanced_class_weights(
        np.asarray(splits.train.labels, dtype=np.int64), len(splits.labels)
    )
    return tuple(float(f"{weight:.6g}") for weight in weights)


def _frozen_parts(plan: FreezingPlan) -> int:
    """Return how many parts, from the embeddings up, are frozen in the first stage."""
    trainable = plan.trainable(0)
    parts = plan.layer_map.parts
    return next(index for index, part in enumerate(parts) if trainable & set(part))


def _parts(plan: FreezingPlan, rebuilt: RebuiltModel) -> tuple[tuple[str, ...], ...]:
    return tuple(
        _frozen(plan, rebuilt, part + 1, first=part) for part in range(_frozen_parts(plan))
    )


def _frozen(plan: FreezingPlan, rebuilt: RebuiltModel, end: int, first: int = 0) -> tuple[str, ...]:
    """Name the parameters of some parts, and the dropouts between them, by prefixes."""
    model = rebuilt.loaded.model
    chosen = {name for part in plan.layer_map.parts[first:end] for name in part}
    prefixes = prefixes_of(chosen, [name for name, _ in model.named_parameters()])
    modules = [name for part in plan.layer_map.modules[first:end] for name in part]
    dropouts = [
        f"{name}."
        for name in modules
        if isinstance(model.get_submodule(name), nn.Dropout)
        and not f"{name}.".startswith(tuple(prefixes))
    ]
    return (*prefixes, *dropouts)


def _depths(rebuilt: RebuiltModel) -> dict[str, int]:
    depths = layer_depths(rebuilt.loaded.layer_map)
    return group_by_prefix(
        {name: depths[name] for name, _ in rebuilt.loaded.model.named_parameters()}
    )


def _reinitialised(plan: FreezingPlan, rebuilt: RebuiltModel) -> tuple[str, ...]:
    """Name the top blocks and what follows them, as `models.layers.reinit_top_blocks` does."""
    layer_map = plan.layer_map
    if not plan.reinit_layers:
        return ()
    blocks = layer_map.block_modules[layer_map.num_layers - plan.reinit_layers :]
    after = dict.fromkeys(name.rpartition(".")[0] for name in layer_map.after)
    model = rebuilt.loaded.model
    fresh = [
        name for name in after if "norm" not in type(model.get_submodule(name)).__name__.lower()
    ]
    return (*blocks, *fresh)
