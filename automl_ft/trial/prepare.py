"""What is done once per study, before the first trial: data read and encoded, models looked at.

`prepare_study` writes nothing, so that bad input leaves no trace; `keep_study` writes the study's
own copy of its rows and the encoded rows; `open_study` maps them into memory in every worker.
"""

from __future__ import annotations

import dataclasses
import platform
from collections.abc import Mapping
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt
import torch

from automl_ft.config.study import ModelConfig, StudyConfig
from automl_ft.data.augmentation import replacement_token
from automl_ft.data.batches import Padding, padding_of
from automl_ft.data.bundled import BUNDLED
from automl_ft.data.encoding import EncodedSplit, encode_to_fit
from automl_ft.data.saved import load_saved_splits
from automl_ft.data.table import Splits
from automl_ft.errors import ModelError
from automl_ft.models.load import (
    LoadedModel,
    ResolvedCheckpoint,
    files_hash,
    load_tokenizer,
    read_weights,
    resolve,
    weights_hash,
)
from automl_ft.models.row_limit import longest_row
from automl_ft.models.token_ids import check_token_ids
from automl_ft.models.weights import PretrainedWeights
from automl_ft.specs.facts import CheckpointFacts, DataFacts, StudyFacts
from automl_ft.specs.layout import activations_folder, memory_file, rows_folder
from automl_ft.specs.validation import (
    assumed_cost,
    choose_validations_per_epoch,
    resolved_validations,
)
from automl_ft.tasks.base import Task
from automl_ft.tasks.registry import get_task
from automl_ft.trial.kept_rows import find_encoded, keep_encoded, keep_rows, load_encoded
from automl_ft.trial.look import LookedAt, look_at_model
from automl_ft.trial.precision import (
    describe_device,
    open_device,
    pick_device,
    resolve_precision,
)
from automl_ft.trial.prefix_cache import PrefixCache
from automl_ft.trial.study_memory import StudyMemory
from automl_ft.version import __version__

if TYPE_CHECKING:
    from automl_ft.trial.assets import CheckpointAssets

__all__ = [
    "OpenCheckpoint",
    "PreparedStudy",
    "keep_study",
    "open_study",
    "prepare_study",
]


@dataclass(frozen=True, kw_only=True, slots=True)
class OpenCheckpoint:
    """A pretrained checkpoint with the rows in its tokens."""

    config: ModelConfig
    """The model as the user asks for it."""
    resolved: ResolvedCheckpoint
    """Where its files are."""
    facts: CheckpointFacts
    """What is known of it."""
    splits: Mapping[str, EncodedSplit]
    """Encoded rows of `train` and `validation`."""
    padding: Padding
    """How its tokenizer pads."""
    replacement_token_id: int | None
    """What `token_dropout` puts in place of a token."""


@dataclass(frozen=True, kw_only=True, slots=True)
class PreparedStudy:
    """Everything that trials of a study share in one process."""

    config: StudyConfig
    """The study."""
    facts: StudyFacts
    """What is known of its data and models."""
    task: Task
    """Its task."""
    device: torch.device
    """Where its trials run."""
    checkpoints: Mapping[str, OpenCheckpoint]
    """The checkpoints that trials may use, by the user's name."""
    rows: Splits | None = None
    """The rows themselves, until they are kept."""
    cache: PrefixCache | None = None
    """Where activations of frozen blocks are kept; None before the study has a folder."""
    assets: dict[str, CheckpointAssets] = field(default_factory=dict)
    """What trials of this process found out about its checkpoints, by the user's name."""
    weights: dict[str, PretrainedWeights] = field(default_factory=dict)
    """Pretrained weights that this process has read, by the user's name."""
    memory: StudyMemory = field(default_factory=StudyMemory)
    """What trials learnt of memory; kept in the study's folder once it has one."""

    @property
    def precision(self) -> str:
        """In which trials compute, `fp32` or `bf16`; `auto` is what it came to at the start."""
        setting = self.config.training.precision
        return self.facts.precision if setting == "auto" else setting

    def precision_of(self, opened: OpenCheckpoint) -> str:
        """Return in which precision the trials of a checkpoint compute.

        Args:
            opened: The checkpoint.

        Returns:
            `fp32`, `tf32` or `bf16`.
        """
        facts = dataclasses.replace(self.facts, precision=self.precision)
        return facts.precision_of(opened.facts)

    def wants_graphs(self, opened: OpenCheckpoint) -> bool:
        """Tell whether steps of a checkpoint are to be recorded as CUDA graphs.

        Args:
            opened: The checkpoint.

        Returns:
            What `training.cuda_graphs` says, or what `auto` came to.
        """
        setting = self.config.training.cuda_graphs
        return opened.facts.cuda_graphs if setting == "auto" else setting == "always"

    @property
    def validations_per_epoch(self) -> float:
        """Validations in each epoch; a fraction 1/m is one in m epochs."""
        return resolved_validations(self.config.training.validations_per_epoch, self.facts)

    def checkpoint(self, name: str | None) -> OpenCheckpoint:
        """Return a checkpoint.

        Args:
            name: The `model` of a recipe; None for the study's own.

        Returns:
            The open checkpoint.
        """
        return self.checkpoints[self.config.model.checkpoint if name is None else name]

    def load_model(
        self,
        opened: OpenCheckpoint,
        dropout: float | None,
        seed: int,
        *,
        weights: PretrainedWeights | None = None,
    ) -> LoadedModel:
        """Load a fresh model with a head for the study's labels.

        Args:
            opened: Which checkpoint.
            dropout: Dropout probability; None keeps the checkpoint's own.
            seed: Seed of the head.
            weights: From `weights_of`: what of them is going to change must be made the model's own
                first. None reads them for this model alone.

        Returns:
            The model on the CPU.
        """
        return self.task.load_model(
            opened.resolved,
            opened.config,
            self.facts.data.labels,
            dropout=dropout,
            seed=seed,
            weights=weights,
        )

    def weights_of(self, opened: OpenCheckpoint) -> PretrainedWeights:
        """Return a checkpoint's weights, read at the first call of this process.

        Args:
            opened: The checkpoint.

        Returns:
            What all models of this process can share.

        Raises:
            ModelError: They cannot be read, or are no longer those that the study began with.
        """
        name = opened.facts.checkpoint
        known = self.weights.get(name)
        found = read_weights(opened.resolved, opened.config, known)
        if found is not known:
            _check_unchanged(opened)
            self.weights[name] = found
        return found

    def metrics(
        self, targets: npt.NDArray[np.int64], logits: npt.NDArray[np.float32]
    ) -> dict[str, float]:
        """Compute the task's metrics.

        Args:
            targets: True classes, shape (num_rows,).
            logits: Scores, shape (num_rows, num_labels).

        Returns:
            Metrics by name.
        """
        config = self.config
        return self.task.metrics(
            np.asarray(targets), logits, self.facts.data.labels, config.positive_label
        )


def prepare_study(
    config: StudyConfig,
    checkpoints: tuple[str, ...],
    kept_in: Path | None,
    *,
    known: StudyFacts | None = None,
) -> PreparedStudy:
    """Read, check, split and encode the data, and look at the models; write nothing.

    Of a study that exists, what was kept is used again where it fits: a hub model at the commit
    that it had (where the study names none), and the encoded rows.

    Args:
        config: The study.
        checkpoints: Checkpoints that trials may use.
        kept_in: Folder of an existing study: a bundled data set is read from the study's own
            copy, so that an upgraded package does not change it. None for a new study.
        known: Facts of an existing study.

    Returns:
        The study, its encoded rows in memory.

    Raises:
        UsageError: Data, model or device cannot be used.
    """
    device = open_device(config.device)
    task = get_task(config.task)
    # The models first: a wrong name is found in a moment, reading data may take long.
    before = {} if known is None else {facts.checkpoint: facts for facts in known.checkpoints}
    resolved = {name: _resolve(config, name, before.get(name)) for name in checkpoints}
    rows = _read(config, task, kept_in)
    task.check(config, rows.labels)
    data = rows.facts()
    opened, weights = {}, {}
    for name, (model, files) in resolved.items():
        weights[name] = read_weights(files, model)
        kept = _open_kept(config, data, before.get(name), files, kept_in)
        opened[name] = kept or _open_fresh(config, task, rows, model, files, weights[name])
    precision = resolve_precision(config.training.precision, device)
    facts = StudyFacts(
        data=data,
        precision=precision,
        checkpoints=tuple(checkpoint.facts for checkpoint in opened.values()),
        device=describe_device(pick_device(config.device)),
        versions=_versions(),
        validations_per_epoch=_validations_per_epoch(config, device, precision, opened),
    )
    return PreparedStudy(
        config=config,
        facts=facts,
        task=task,
        device=device,
        checkpoints=opened,
        rows=rows,
        weights=weights,
    )


def keep_study(study: PreparedStudy, folder: Path) -> None:
    """Write the study's own copy of its rows, and the encoded rows, where they are not there yet.

    Args:
        study: From `prepare_study`.
        folder: The study's folder.
    """
    if study.rows is not None:
        keep_rows(study.rows, study.facts.data, folder)
    for opened in study.checkpoints.values():
        keep_encoded(opened.splits, opened.facts, study.facts.data, folder)


def open_study(
    config: StudyConfig,
    facts: StudyFacts,
    folder: Path,
    prepared: PreparedStudy | None = None,
    *,
    slot: int = 0,
) -> PreparedStudy:
    """Open a kept study in this process; encoded rows are mapped, not read.

    Args:
        config: The study.
        facts: Its facts.
        folder: Its folder.
        prepared: What this process prepared itself, to save the work of a second look.
        slot: The place of this process among the workers of the search.

    Returns:
        The study.

    Raises:
        UsageError: A model cannot be found, or encoded rows are missing.
    """
    opened = {}
    for known in facts.checkpoints:
        before = prepared.checkpoints.get(known.checkpoint) if prepared is not None else None
        splits = load_encoded(known, facts.data, folder)
        if before is None:
            opened[known.checkpoint] = _open_known(config, known, splits)
        else:
            opened[known.checkpoint] = dataclasses.replace(before, splits=splits)
    return PreparedStudy(
        config=config,
        facts=facts,
        task=get_task(config.task),
        device=open_device(config.device, slot),
        checkpoints=opened,
        cache=_cache(config, folder),
        weights={} if prepared is None else prepared.weights,
        memory=StudyMemory(path=memory_file(folder)),
    )


def _check_unchanged(opened: OpenCheckpoint) -> None:
    """Refuse weights that somebody wrote to in the middle of a search."""
    if weights_hash(opened.resolved) != opened.facts.weights_hash:
        raise ModelError(
            f"The weights of the model `{opened.facts.checkpoint}` have changed since the study"
            f" began (in `{opened.resolved.folder}`), so its trials could not be compared. Put the"
            " old ones back, or begin a new study (`--name`)."
        )


def _cache(config: StudyConfig, folder: Path) -> PrefixCache | None:
    budget = int(config.training.activation_cache_gib * 2**30)
    return PrefixCache(activations_folder(folder), budget) if budget else None


def _read(config: StudyConfig, task: Task, kept_in: Path | None) -> Splits:
    if kept_in is not None and config.data.path in BUNDLED and rows_folder(kept_in).is_dir():
        return load_saved_splits(rows_folder(kept_in))
    return task.read(config)


def _resolve(
    config: StudyConfig, name: str, known: CheckpointFacts | None
) -> tuple[ModelConfig, ResolvedCheckpoint]:
    own = config.model
    model = (
        own if name == own.checkpoint else dataclasses.replace(own, checkpoint=name, revision=None)
    )
    if model.revision is None and known is not None and known.revision:
        # The hub's main branch moves; a study stays with the commit that it began with.
        model = dataclasses.replace(model, revision=known.revision)
    return model, resolve(model)


def _open_kept(
    config: StudyConfig,
    data: DataFacts,
    known: CheckpointFacts | None,
    resolved: ResolvedCheckpoint,
    kept_in: Path | None,
) -> OpenCheckpoint | None:
    """Return a checkpoint as the study kept it, if rows and weights are still the same."""
    if known is None or kept_in is None or weights_hash(resolved) != known.weights_hash:
        return None
    if known.files_hash and files_hash(resolved) != known.files_hash:
        return None
    splits = find_encoded(known, data, kept_in)
    return None if splits is None else _open_known(config, known, splits)


def _open_fresh(
    config: StudyConfig,
    task: Task,
    rows: Splits,
    model: ModelConfig,
    resolved: ResolvedCheckpoint,
    weights: PretrainedWeights,
) -> OpenCheckpoint:
    """Encode the rows for a checkpoint and learn its facts."""
    tokenizer = load_tokenizer(resolved, model)
    loaded = task.load_model(  # looked at, never trained
        resolved, model, rows.labels, dropout=None, seed=config.seed, weights=weights
    )
    limit = longest_row(tokenizer.model_max_length, loaded.model)
    train, max_length = encode_to_fit(
        rows.train, tokenizer, config.data.max_length, limit, task.encode
    )
    validation = task.encode(rows.validation, tokenizer, max_length)
    splits = {"train": train, "validation": validation}
    held = [split.input_ids for split in splits.values()]
    check_token_ids(loaded.model, tokenizer, held, model.checkpoint)
    looked_at = LookedAt(
        loaded=loaded,
        splits=splits,
        padding=padding_of(tokenizer),
        max_length=max_length,
        replacement_token_id=replacement_token(tokenizer),
    )
    look = look_at_model(config, looked_at)
    facts = CheckpointFacts(
        checkpoint=model.checkpoint,
        revision=resolved.revision,
        weights_hash=weights_hash(resolved),
        files_hash=files_hash(resolved),
        architecture=resolved.model_type,
        num_layers=loaded.layer_map.num_layers,
        num_parameters=sum(p.numel() for p in loaded.model.parameters()),
        max_length=max_length,
        num_truncated=splits["train"].num_truncated,
        num_tokens=splits["train"].num_tokens,
        batching=look.batching,
        can_stack=look.can_stack,
        can_bf16=look.can_bf16,
        cuda_graphs=look.cuda_graphs,
        fallbacks=look.fallbacks,
    )
    return OpenCheckpoint(
        config=model,
        resolved=resolved,
        facts=facts,
        splits=splits,
        padding=looked_at.padding,
        replacement_token_id=looked_at.replacement_token_id,
    )


def _validations_per_epoch(
    config: StudyConfig,
    device: torch.device,
    precision: str,
    opened: Mapping[str, OpenCheckpoint],
) -> float:
    """Return what the setting comes to; `auto` so that it is cheap enough for every checkpoint."""
    setting = config.training.validations_per_epoch
    if not isinstance(setting, str):
        return float(setting)
    return min(
        choose_validations_per_epoch(
            checkpoint.splits["train"].num_tokens,
            checkpoint.splits["validation"].num_tokens,
            cost=assumed_cost(device.type, precision, len(checkpoint.splits["validation"])),
        )
        for checkpoint in opened.values()
    )


def _open_known(
    config: StudyConfig, facts: CheckpointFacts, splits: Mapping[str, EncodedSplit]
) -> OpenCheckpoint:
    own = config.model
    revision = facts.revision or None
    model = dataclasses.replace(own, checkpoint=facts.checkpoint, revision=revision)
    resolved = resolve(model)
    tokenizer = load_tokenizer(resolved, model)
    return OpenCheckpoint(
        config=model,
        resolved=resolved,
        facts=facts,
        splits=splits,
        padding=padding_of(tokenizer),
        replacement_token_id=replacement_token(tokenizer),
    )


def _versions() -> dict[str, str]:
    packages = ("torch", "transformers", "tokenizers", "datasets", "scikit-learn", "optuna")
    return {
        "automl-ft": __version__,
        "python": platform.python_version(),
        **{name: version(name) for name in packages},
    }
