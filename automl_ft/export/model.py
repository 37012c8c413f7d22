"""How does a trial's checkpoint become a model that plain `transformers` loads?

The pretrained checkpoint is loaded on the same path as for training and the trial's trained
parameters are laid over it. What was written is then loaded with nothing of ours, and must give
the trial's value on the study's own validation rows.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor
from transformers import (
    AutoModelForSequenceClassification,
    AutoTokenizer,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from automl_ft.config.study import ModelConfig
from automl_ft.data.batches import padding_of
from automl_ft.data.saved import load_saved_splits
from automl_ft.data.table import TextTable
from automl_ft.errors import ExportError
from automl_ft.export.about import write_about
from automl_ft.export.best import checkpoint_file
from automl_ft.export.job import TOLERANCE, ExportJob
from automl_ft.models.load import (
    LoadedModel,
    ResolvedCheckpoint,
    load_model,
    load_tokenizer,
    resolve,
    weights_hash,
)
from automl_ft.models.quiet import quiet
from automl_ft.models.vocabulary import expand_saved
from automl_ft.specs.layout import LOGITS, rows_folder, trial_folder
from automl_ft.tasks.registry import get_task
from automl_ft.trial.evaluation import predict_logits
from automl_ft.trial.sizing import whole_eval_batch

__all__ = [
    "RebuiltModel",
    "rebuild_model",
    "save_model",
    "verify_model",
]

_SAME_LOGITS = 1e-4
"""On the same kind of device scores that differ by no more than this differ by rounding."""
_SAME_LOGITS_ELSEWHERE = 1e-3
"""The same on another kind of device."""
_SAME_LOGITS_BF16 = 0.05
"""What bf16 may be off, of the largest score: some of the stored scores are in bf16 where training
was (`trial.screening`), though none of a row whose class is near to another. Measured: 0.03."""


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

    The rows pass through the model as they did in training, in the same batches and padding, so
    that the value is the same. Where another device or number of threads rounds otherwise and a
    row's class changes by it, the model is the trial's all the same if its scores are nearly
    those that the trial stored.

    Args:
        job: The export.
        folder: The written model.

    Returns:
        Its value, computed in fp32; it may differ from the trial's by more than `TOLERANCE` only
        by rounding.

    Raises:
        ExportError: It differs, and its scores are not those that the trial stored.
        DataError: The study's copy of the rows cannot be read.
    """
    rows = load_saved_splits(rows_folder(Path(job.folder))).validation
    targets = np.asarray(rows.labels, dtype=np.int64)
    device = _device_like(job.facts.device)
    logits = _logits(job, folder, rows, device)
    value = _value(job, targets, logits)
    if abs(value - job.value) <= TOLERANCE:
        return value
    problem = _difference(job, targets, logits, device)
    if problem is not None:
        raise ExportError(
            f"The written model has {job.config.objective} {value!r} on the study's validation rows"
            f" (on {device.type}), but trial {job.number} of study `{job.study}` has {job.value!r}"
            f" (on {job.facts.device}); they may differ by {TOLERANCE:g}, or by rounding, but"
            f" {problem}. Its checkpoint in `{job.folder}` or its rows were changed; train it again"
            f" with `automl-ft enqueue {job.study} {job.number}`."
        )
    return value


def _logits(
    job: ExportJob, folder: Path, rows: TextTable, device: torch.device
) -> npt.NDArray[np.float32]:
    """Load a written model with plain transformers, and score rows as a trial does."""
    trust = job.config.model.trust_remote_code
    with quiet():
        tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=trust)
        model = AutoModelForSequenceClassification.from_pretrained(
            folder, dtype=torch.float32, use_safetensors=True, trust_remote_code=trust
        )
    encoded = get_task(job.config.task).encode(rows, tokenizer, tokenizer.model_max_length)
    setting = job.config.training.eval_batch_size
    batch_size = whole_eval_batch(setting, encoded.lengths, device.type)
    return predict_logits(model.to(device), encoded, padding_of(tokenizer), batch_size, device)


def _value(
    job: ExportJob, targets: npt.NDArray[np.int64], logits: npt.NDArray[np.float32]
) -> float:
    labels, positive = job.facts.data.labels, job.config.positive_label
    metrics = get_task(job.config.task).metrics(targets, logits, labels, positive)
    return metrics[job.config.objective]


def _difference(
    job: ExportJob,
    targets: npt.NDArray[np.int64],
    logits: npt.NDArray[np.float32],
    device: torch.device,
) -> str | None:
    """Say why a model that misses its value is not the trial's; None if only rounding differs."""
    path = trial_folder(Path(job.folder), job.number) / LOGITS
    if not path.is_file():
        return f"the scores to tell by, `{path}`, are gone"
    stored = np.load(path)
    if stored.shape != logits.shape or abs(_value(job, targets, stored) - job.value) > TOLERANCE:
        return f"the scores in `{path}` are not those of the trial"
    is_same_kind = job.facts.device.startswith(device.type)
    limit = _SAME_LOGITS if is_same_kind else _SAME_LOGITS_ELSEWHERE
    shifts = np.abs(stored - logits).max(axis=1)
    other_class = stored.argmax(axis=1) != logits.argmax(axis=1)
    is_screened = job.facts.precision_of(job.checkpoint) == "bf16"
    if not is_screened or job.hyperparameters.get("freezing") == "head_only":
        other_class[:] = True  # all scores are as exact as those near another class
    of_bf16 = _SAME_LOGITS_BF16 * float(np.abs(logits).max())
    limits = np.where(other_class, limit, max(limit, of_bf16))
    worst = int(np.argmax(shifts / limits))
    if shifts[worst] <= limits[worst]:
        return None
    return f"its scores are up to {shifts[worst]:.2g} off (rounding: {limits[worst]:.2g})"


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
    try:
        trained = load_file(checkpoint)
    except (SafetensorError, OSError) as error:
        raise ExportError(
            f"The model of this trial is damaged (`{checkpoint}`: {error}). Train it again: put its"
            " number in line with `automl-ft enqueue STUDY N` and run the search."
        ) from error
    for name, value in _whole(trained, parameters, checkpoint).items():
        if name not in parameters or parameters[name].shape != value.shape:
            raise ExportError(
                f"The checkpoint `{checkpoint}` holds a parameter `{name}` of shape"
                f" {tuple(value.shape)} that the pretrained model has not; another version of"
                " transformers may have trained it. Export with that version, or train it again."
            )
        parameters[name].copy_(value)


def _whole(
    trained: dict[str, Tensor], parameters: Mapping[str, Tensor], checkpoint: Path
) -> dict[str, Tensor]:
    """Make embeddings whole that were trained for the tokens in use only."""
    try:
        return expand_saved(trained, parameters)
    except (KeyError, IndexError, RuntimeError, ValueError) as error:
        raise ExportError(
            f"The checkpoint `{checkpoint}` holds an embedding that does not fit the pretrained"
            f" model ({error}); another version of transformers may have trained it. Export with"
            " that version, or train it again."
        ) from error


def _device_like(described: str) -> torch.device:
    """Return a device of the kind that the study ran on, or the CPU."""
    kind = described.split(":")[0].split(" ")[0]
    has_it = kind == "cuda" and torch.cuda.is_available()
    has_it = has_it or (kind == "mps" and torch.backends.mps.is_available())
    return torch.device(kind if has_it else "cpu")
