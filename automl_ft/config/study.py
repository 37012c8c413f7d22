"""What a user asks for, as frozen dataclasses: the study and everything in it.

Defaults live here only. Each field's docstring gives its meaning, unit and accepted range; the
loader (`config.load`) turns YAML and options into these and reports all problems together.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from automl_ft.config import checks

__all__ = [
    "OBJECTIVES",
    "PRUNERS",
    "SAMPLERS",
    "BudgetConfig",
    "DataConfig",
    "ModelConfig",
    "StudyConfig",
    "TrainingConfig",
]

OBJECTIVES = ("f1_macro", "f1_micro", "f1_weighted", "f1_binary", "accuracy", "mcc")
"""Objectives of text classification; all are maximised."""
SAMPLERS = ("tpe", "gp", "random", "qmc", "cmaes", "grid")
"""Samplers by Optuna's names."""
PRUNERS = ("successive_halving", "hyperband", "median", "patient", "none")
"""Pruners by Optuna's names."""
TASKS = ("text-classification",)
"""Tasks that can be searched."""
_MAX_SEED = 2**32 - 1
"""What NumPy, torch and the samplers all take."""
_MAX_THREADS = 1024
"""Far more than a machine has cores; absurd numbers crash torch."""
_MAX_WORKERS = 256


@dataclass(frozen=True, kw_only=True, slots=True)
class ModelConfig:
    """The pretrained model."""

    checkpoint: str
    """Hub id, local folder, or the name of a bundled model (`minilm-l6`)."""
    revision: str | None = None
    """Branch, tag or commit on the hub; the main branch where none is given."""
    trust_remote_code: bool = False
    """Whether code that lies with the checkpoint may run."""

    def __post_init__(self) -> None:
        """Check the fields."""
        checks.not_blank("checkpoint", self.checkpoint)
        checks.none_blank("revision", self.revision)


@dataclass(frozen=True, kw_only=True, slots=True)
class DataConfig:
    """Where the labelled rows are, and how they are read and split."""

    path: str | tuple[str, ...] | None = None
    """Hub id, a file, files, a folder, or the name of a bundled data set (`docstrings`). None
    where `train` is a file."""
    config: str | None = None
    """Configuration of a hub data set."""
    revision: str | None = None
    """Branch, tag or commit of a hub data set."""
    format: str | None = None
    """`csv`, `tsv`, `json`, `jsonl`, `parquet` or `arrow`; guessed from the file's ending."""
    encoding: str = "utf-8"
    """Text encoding of CSV, TSV and JSON files."""
    text: tuple[str, ...] = ("text",)
    """Column of the text; two for sentence pairs."""
    label: str = "label"
    """Column of the label."""
    group: str | None = None
    """Column whose equal values stay in one split."""
    train: str | None = None
    """Training split: a file, or a split's name; None takes `train`, or what is left."""
    validation: float | str = 0.2
    """Validation split: a fraction of all rows in (0, 1), a file, or a split's name."""
    test: float | str | None = 0.2
    """Test split, never read by the search: a fraction in [0, 1), a file, a split's name, or
    None for no test split."""
    max_length: int | str = "auto"
    """Tokens a row is cut to, at least 4; `auto` takes the 99th percentile of the training
    lengths, at most what the model accepts."""
    class_weights: str | None = None
    """`balanced` weighs classes by inverse frequency in the loss; None weighs rows equally."""

    def __post_init__(self) -> None:
        """Check the fields; one column may be given as plain text."""
        text: object = self.text
        if isinstance(text, str):
            object.__setattr__(self, "text", (text,))
        for name in ("path", "config", "revision", "encoding", "group", "train"):
            checks.none_blank(name, getattr(self, name))
        checks.one_of(
            "format", self.format, (None, "csv", "tsv", "json", "jsonl", "parquet", "arrow")
        )
        checks.one_of("class_weights", self.class_weights, (None, "balanced"))
        if not 1 <= len(self.text) <= 2:
            raise checks.field_error("text", self.text, "one column, or two for sentence pairs")
        for column in (*self.text, self.label):
            checks.not_blank("text" if column in self.text else "label", column)
        checks.fraction_or_name("validation", self.validation)
        if self.test is not None:
            checks.fraction_or_name("test", self.test, zero_allowed=True)
        checks.auto_or_whole("max_length", self.max_length, 4)
        # Last, because the loader cannot look behind the absence of a field.
        if self.path is None and self.train is None:
            raise checks.field_error(
                "path", None, "a hub id, a file, a folder or a bundled data set", "Set `data.path`"
            )


@dataclass(frozen=True, kw_only=True, slots=True)
class BudgetConfig:
    """When the search ends; whichever comes first."""

    trials: int = 50
    """Configurations in total, over all runs of the study; 0 only prepares it."""
    timeout_seconds: float | None = None
    """Active seconds of all runs together, set-up included; None for no limit. In a study file
    `timeout: 30m`."""
    patience: int | None = None
    """Stop when so many finished trials in a row brought no better value (by more than
    `min_improvement`); None never stops early."""
    min_improvement: float = 0.0
    """What counts as better, in the objective's unit, 0 or more."""

    def __post_init__(self) -> None:
        """Check the fields."""
        checks.at_least("trials", self.trials, 0)
        if self.timeout_seconds is not None and not 0 < self.timeout_seconds < math.inf:
            raise checks.field_error(
                "timeout_seconds", self.timeout_seconds, "a time above 0, such as 30m"
            )
        if self.patience is not None:
            checks.at_least("patience", self.patience, 1)
        checks.at_least("min_improvement", self.min_improvement, 0)


@dataclass(frozen=True, kw_only=True, slots=True)
class TrainingConfig:
    """What is the same in every trial: fixed, not searched."""

    batching: str = "auto"
    """`packed` (real tokens end to end, in random order), `bucketed` (padded rows of similar
    length), or `auto`: the faster one on this device, measured when a study is made, and `packed`
    where it hardly matters. A model that does not allow `packed` is trained `bucketed`."""
    cuda_graphs: str = "auto"
    """Whether steps are recorded as CUDA graphs and launched whole: `always`, `never`, or `auto`:
    where that is faster, measured when a study is made. On NVIDIA GPUs, with packed rows and
    without mixup; elsewhere it changes nothing. Results differ by rounding and dropout masks."""
    precision: str = "auto"
    """`fp32`, `tf32` (fp32 with shortened factors in training, on NVIDIA GPUs), `bf16` (with fp32
    master weights), or `auto`: bf16 on a GPU or CPU that multiplies it faster, else fp32. A model
    that does not compute in bf16 trains in tf32 on an NVIDIA GPU, in fp32 elsewhere.
    In validation, rows whose class bf16 leaves in doubt are scored again in fp32, after tf32 all
    are."""
    micro_batch_size: int | str = "auto"
    """Examples that pass through the model at once, from 1 up; gradients accumulate to the
    effective `batch_size`. `auto` takes as many as fit by a forecast, 64 at most, 32 with mixup,
    which mixes the examples of one micro-batch; else it changes a result by no more than
    rounding and other dropout masks."""
    eval_batch_size: int | str = "auto"
    """Examples at once in validation, from 1 up; fewer where they do not fit. `auto` takes as many
    as are fastest: about 2,048 tokens on a CPU, 16,384 elsewhere."""
    memory_gib: float | None = None
    """GiB of memory that all workers of one device together may have in use on it, above 0; None
    takes what is free when a trial starts."""
    validations_per_epoch: int | str = "auto"
    """Validations in each epoch, 1 to 50; `auto` takes 2, 1, or one in 2, 4, 8, ... epochs: the
    most that cost at most 15 % of a full fine-tuning trial by an estimate (`show --trial` tells
    what it was). The end of a trial is always validated."""
    early_stopping_patience: int | None = None
    """End a trial after so many validations without a better value; None runs it out."""
    seed: int | None = None
    """Seed of every trial; None derives one for each trial from the study's seed.
    0 to 4294967295."""
    keep_checkpoints: int = 3
    """How many of the best trials keep their model on disk, from 1 up."""
    activation_cache_gib: float = 8.0
    """GiB on disk for what frozen layers make of the study's rows, computed once for all trials,
    from 0 up; 0 computes it anew in every trial. Changes no class and no F1; a validation loss by
    rounding."""
    threads: int | None = None
    """CPU threads of each worker process; None shares the cores among the workers.
    1 to 1024."""

    def __post_init__(self) -> None:
        """Check the fields."""
        checks.one_of("batching", self.batching, ("auto", "packed", "bucketed"))
        checks.one_of("cuda_graphs", self.cuda_graphs, ("auto", "always", "never"))
        checks.one_of("precision", self.precision, ("auto", "fp32", "tf32", "bf16"))
        checks.at_least("keep_checkpoints", self.keep_checkpoints, 1)
        for name in ("micro_batch_size", "eval_batch_size"):
            checks.auto_or_whole(name, getattr(self, name), 1)
        if self.memory_gib is not None and not 0 < self.memory_gib < math.inf:
            raise checks.field_error("memory_gib", self.memory_gib, "a number of GiB above 0")
        checks.auto_or_whole("validations_per_epoch", self.validations_per_epoch, 1, 50)
        if self.early_stopping_patience is not None:
            checks.at_least("early_stopping_patience", self.early_stopping_patience, 1)
        if self.threads is not None:
            checks.between("threads", self.threads, 1, _MAX_THREADS)
        if not 0 <= self.activation_cache_gib < math.inf:
            raise checks.field_error(
                "activation_cache_gib", self.activation_cache_gib, "a number of GiB from 0 up"
            )
        if self.seed is not None:
            checks.between("seed", self.seed, 0, _MAX_SEED)


@dataclass(frozen=True, kw_only=True, slots=True)
class StudyConfig:
    """One study: what is searched, on what, for how long, and where it is kept."""

    name: str | None = None
    """Name of the study, without path separators; None makes one of the model and the data."""
    task: str = "text-classification"
    """The task; `text-classification`."""
    model: ModelConfig
    """The pretrained model. In a study file also just its name."""
    data: DataConfig
    """The data. In a study file also just its path."""
    space: str | Mapping[str, Any] = "text_classification"
    """Name of a shipped search space, a path to one, or the space itself."""
    objective: str = "f1_macro"
    """The metric that trials are ranked by."""
    positive_label: str | None = None
    """The class that `f1_binary` is about; needed with it."""
    sampler: str = "tpe"
    """Which sampler proposes configurations."""
    pruner: str = "successive_halving"
    """Which pruner gives trials up."""
    budget: BudgetConfig = field(default_factory=BudgetConfig)
    """When the search ends."""
    training: TrainingConfig = field(default_factory=TrainingConfig)
    """What is the same in every trial."""
    seed: int = 0
    """Seed of splits, sampler and trials, 0 to 4294967295."""
    device: str = "auto"
    """`auto`, `cpu`, `mps`, `cuda` or `cuda:N`. With `auto` and `cuda` the workers take the visible
    NVIDIA GPUs in turn, begun again at the first where there are more workers than GPUs; `cuda:N`
    is the same one for all."""
    workers: int | str = 1
    """Trials that run at once, each in a process of its own, 1 to 256; `auto` times a step when the
    search begins, and takes as many as should train fastest together (up to 8 on a CPU or a GPU,
    one for every 4 trials that are left, and no more than there are cores or fit into memory)."""
    storage: str | None = None
    """SQLAlchemy URL of the study database; None takes AUTOML_FT_STORAGE, else
    sqlite:///studies/studies.db."""
    output: str | None = None
    """Folder for checkpoints and encoded data; None takes studies/NAME."""

    def __post_init__(self) -> None:
        """Check the fields."""
        if self.name is not None:
            checks.study_name("name", self.name)
        checks.one_of("task", self.task, TASKS)
        checks.one_of("objective", self.objective, OBJECTIVES)
        checks.one_of("sampler", self.sampler, SAMPLERS)
        checks.one_of("pruner", self.pruner, PRUNERS)
        checks.between("seed", self.seed, 0, _MAX_SEED)
        checks.auto_or_whole("workers", self.workers, 1, _MAX_WORKERS)
        checks.device("device", self.device)
        for name in ("space", "positive_label", "storage", "output"):
            if isinstance(getattr(self, name), str):
                checks.not_blank(name, getattr(self, name))
        if self.objective == "f1_binary" and self.positive_label is None:
            raise checks.field_error(
                "positive_label", None, "the class that `f1_binary` is about", "Set it to a label"
            )

    @property
    def num_workers(self) -> int:
        """Trials that run at once; 1 for as long as `auto` has come to nothing yet."""
        return 1 if isinstance(self.workers, str) else self.workers
