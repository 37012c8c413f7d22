"""What preparing a study finds out about its data and models. A leaf."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

__all__ = ["CheckpointFacts", "DataFacts", "DataNote", "StudyFacts", "without_bf16"]


@dataclass(frozen=True, kw_only=True, slots=True)
class DataNote:
    """One thing that was met in the data and is worth telling, with counts and rows."""

    kind: str
    """A stable word such as `empty_text` or `conflicting_duplicates`."""
    message: str
    """One full sentence with counts and example row numbers."""
    count: int
    """How many rows it concerns."""


@dataclass(frozen=True, kw_only=True, slots=True)
class DataFacts:
    """What is known of a study's data after it was read, checked and split."""

    labels: tuple[str, ...]
    """Names of the classes in the order of their ids."""
    num_examples: Mapping[str, int]
    """Rows by split: `train`, `validation`, `test` (0 where there is none)."""
    class_counts: Mapping[str, Mapping[str, int]]
    """Rows by split and class name."""
    fingerprint: str
    """SHA-256 over the rows of all splits, in order (hex)."""
    split_fingerprints: Mapping[str, str]
    """The same for each split."""
    notes: tuple[DataNote, ...] = ()
    """What was met while reading."""


@dataclass(frozen=True, kw_only=True, slots=True)
class CheckpointFacts:
    """What is known of one pretrained checkpoint."""

    checkpoint: str
    """Hub id, local folder or bundled name, as the user wrote it."""
    revision: str
    """Commit hash on the hub; empty for a folder."""
    weights_hash: str
    """SHA-256 over the weight files (hex)."""
    architecture: str
    """`model_type` of its config, such as `bert`."""
    num_layers: int
    """Distinct blocks that can be frozen one by one; 1 where layers are shared (ALBERT)."""
    num_parameters: int
    """Parameters with the classification head."""
    max_length: int
    """Tokens that rows were cut to, special tokens included."""
    num_truncated: int
    """Training rows that were longer."""
    num_tokens: int
    """Tokens of the training rows after cutting."""
    batching: str = "packed"
    """`packed` or `bucketed`: how batches are laid out, chosen by measurement where the model
    allows both."""
    files_hash: str = ""
    """SHA-256 over its config, tokenizer and code (hex); empty in studies from before it was
    kept."""
    can_stack: bool = True
    """Whether the heads of several head-only trials can be trained together."""
    can_bf16: bool = True
    """Whether it computes in bf16; where not, its trials compute in fp32 instead."""
    cuda_graphs: bool = False
    """Whether recording its steps as CUDA graphs is faster: what `training.cuda_graphs: auto` came
    to."""
    fallbacks: tuple[str, ...] = ()
    """Sentences on shortcuts of the training engine that this model does not allow."""


@dataclass(frozen=True, kw_only=True, slots=True)
class StudyFacts:
    """What preparing a study found out; stored with the study and compared on resume."""

    data: DataFacts
    """The data."""
    checkpoints: tuple[CheckpointFacts, ...]
    """The pretrained checkpoint, or several where the space searches `model`."""
    device: str
    """Where trials run: `cuda`, `mps` or `cpu`, with the hardware's name."""
    versions: Mapping[str, str]
    """Versions of the packages that training depends on."""
    precision: str = "fp32"
    """In which trials compute: `fp32`, `tf32` or `bf16`; what `training.precision` came to."""
    validations_per_epoch: float = 2.0
    """What `training.validations_per_epoch` came to; a fraction 1/m is one validation in m epochs.
    Studies from before it could be `auto` had 2 unless they set it."""

    def precision_of(self, checkpoint: CheckpointFacts) -> str:
        """Return in which precision the trials of a checkpoint compute.

        Args:
            checkpoint: One of the study's.

        Returns:
            `fp32`, `tf32` or `bf16`.
        """
        is_unable = self.precision == "bf16" and not checkpoint.can_bf16
        return without_bf16(self.device) if is_unable else self.precision

    @property
    def num_layers(self) -> int:
        """Blocks that every checkpoint of the study has: the smallest of their numbers."""
        return min(checkpoint.num_layers for checkpoint in self.checkpoints)


def without_bf16(device: str) -> str:
    """Return in which precision a model trains that does not compute in bf16.

    Args:
        device: The kind of device, or its description.

    Returns:
        `tf32` on NVIDIA GPUs, which have it where they have bf16 (compute capability 8.0); `fp32`
        elsewhere.
    """
    return "tf32" if device.startswith("cuda") else "fp32"
