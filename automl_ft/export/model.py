"""How does a trial's checkpoint become a model that plain `transformers` loads?

The pretrained checkpoint is loaded on the same path as for training and the trial's trained
parameters are laid over it. What was written is then read back with nothing of ours, and must give
the trial's value on the study's own validation rows.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from safetensors.torch import load_file
from transformers import (
    AutoModelForSequenceClassification,
    AutoTokenizer,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from automl_ft.config.study import ModelConfig
from automl_ft.data.saved import load_saved_splits
from automl_ft.errors import ExportError
from automl_ft.export.about import write_about
from automl_ft.export.best import checkpoint_file
from automl_ft.export.job import ExportJob
from automl_ft.export.scoring import logits_of_texts
from automl_ft.models.load import (
    LoadedModel,
    ResolvedCheckpoint,
    load_model,
    load_tokenizer,
    resolve,
    weights_hash,
)
from automl_ft.models.quiet import quiet
from automl_ft.tasks.registry import get_task

__all__ = [
    "TOLERANCE",
    "RebuiltModel",
    "rebuild_model",
    "save_model",
    "verify_model",
]

TOLERANCE = 1e-6
"""How far the written model's value may lie from the trial's, in the objective's unit."""
_SAME_LOGITS = 1e-3
"""On another kind of device scores differ by rounding only if they differ by less than this."""


@dataclass(frozen=True, kw_only=True, slots=True)
class RebuiltModel:
    """A trial's model, with what it was built from."""

    loaded: LoadedModel
    """The model at its best validated checkpoint, fp32, on the CPU, in eval mode."""
    tokenizer: PreTrainedTokenizerBase
    """Its tokenizer; truncates to the study's length by default."""
    resolved: ResolvedCheckpoint
    """The pretrained checkpoint."""
    config: ModelConfig
    """How it was asked for."""


def rebuild_model(job: ExportJob) -> RebuiltModel:
    """Build the model of a trial at its best validated checkpoint.

    Args:
        job: The export.

    Returns:
        The model with its tokenizer.

    Raises:
        ExportError: The checkpoint is missing or does not fit, or the pretrained weights are no
            longer those that the trial started from.
        ModelError: The pretrained checkpoint can no longer be read.
    """
    named = job.hyperparameters.get("model") or job.config.model.checkpoint
    revision = job.checkpoint.revision or job.config.model.revision
    config = dataclasses.replace(job.config.model, checkpoint=str(named), revision=revision)
    resolved = resolve(config)
    _check_weights(job, resolved)
    dropout = job.hyperparameters.get("dropout")
    loaded = load_model(
        resolved,
        config,
        labels=job.facts.data.labels,
        dropout=None if dropout is None else float(dropout),
        seed=job.seed,
    )
    _overlay(loaded.model, checkpoint_file(job.study, Path(job.folder), job.number))
    tokenizer = load_tokenizer(resolved, config)
    tokenizer.model_max_length = job.checkpoint.max_length
    return RebuiltModel(loaded=loaded, tokenizer=tokenizer, resolved=resolved, config=config)


def save_model(job: ExportJob, rebuilt: RebuiltModel, folder: Path) -> None:
    """Write a model in transformers' format: config, safetensors, tokenizer.

    Args:
        job: The export.
        rebuilt: Its model.
        folder: Where to write; made if absent.
    """
    with quiet():
        rebuilt.loaded.model.save_pretrained(folder)
        rebuilt.tokenizer.save_pretrained(folder)
    write_about(job, folder)


def verify_model(job: ExportJob, folder: Path) -> float:
    """Check that a written model gives the trial's value on the study's validation rows.

    Args:
        job: The export.
        folder: The written model.

    Returns:
        Its value, computed in fp32.

    Raises:
        ExportError: It differs from the trial's by more than `TOLERANCE`.
        DataError: The study's copy of the rows cannot be read.
    """
    splits = load_saved_splits(Path(job.folder) / "data" / "splits")
    device = _device_like(job.facts.device)
    trust = job.config.model.trust_remote_code
    with quiet():
        tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=trust)
        model = AutoModelForSequenceClassification.from_pretrained(
            folder, dtype=torch.float32, use_safetensors=True, trust_remote_code=trust
        )
    logits = logits_of_texts(
        model.to(device),
        tokenizer,
        splits.validation.texts,
        batch_size=job.config.training.eval_batch_size,
    )
    targets = np.asarray(splits.validation.labels, dtype=np.int64)
    labels, positive = job.facts.data.labels, job.config.positive_label
    metrics = get_task(job.config.task).metrics(targets, logits, labels, positive)
    value = metrics[job.config.objective]
    if abs(value - job.value) > TOLERANCE and not _differs_by_rounding(job, logits, device):
        raise ExportError(
            f"The written model has {job.config.objective} {value!r} on the study's validation rows"
            f" (on {device.type}), but trial {job.number} of study `{job.study}` has {job.value!r}"
            f" (on {job.facts.device}); they may differ by {TOLERANCE:g}. Its checkpoint in"
            f" `{job.folder}` or its rows were changed; train it again with `automl-ft enqueue"
            f" {job.study} {job.number}`."
        )
    return value


def _check_weights(job: ExportJob, resolved: ResolvedCheckpoint) -> None:
    found = weights_hash(resolved)
    if found != job.checkpoint.weights_hash:
        raise ExportError(
            f"The pretrained model `{resolved.checkpoint}` is not the one that study `{job.study}`"
            f" started from: its weights have SHA-256 {found}, the study's"
            f" {job.checkpoint.weights_hash}. Put the old weights back, or search again."
        )


@torch.no_grad()
def _overlay(model: PreTrainedModel, checkpoint: Path) -> None:
    """Copy the trained parameters into the pretrained model."""
    parameters = dict(model.named_parameters())
    trained = load_file(checkpoint)
    for name, value in trained.items():
        if name not in parameters or parameters[name].shape != value.shape:
            raise ExportError(
                f"The checkpoint `{checkpoint}` holds a parameter `{name}` of shape"
                f" {tuple(value.shape)} that the pretrained model has not; another version of"
                " transformers may have trained it. Export with that version, or train it again."
            )
        parameters[name].copy_(value)


def _device_like(described: str) -> torch.device:
    """Return a device of the kind that the study ran on, or the CPU."""
    kind = described.split(":")[0].split(" ")[0]
    has_it = kind == "cuda" and torch.cuda.is_available()
    has_it = has_it or (kind == "mps" and torch.backends.mps.is_available())
    return torch.device(kind if has_it else "cpu")


def _differs_by_rounding(
    job: ExportJob, logits: npt.NDArray[np.float32], device: torch.device
) -> bool:
    """Tell whether another kind of device explains a value that is off.

    Rounding can move a row whose two best classes score the same to 1e-5; then the scores are
    nearly those that the trial stored.
    """
    stored = Path(job.folder) / "trials" / str(job.number) / "validation_logits.npy"
    if job.facts.device.startswith(device.type) or not stored.is_file():
        return False
    return bool(np.abs(np.load(stored) - logits).max() <= _SAME_LOGITS)
