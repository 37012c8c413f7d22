"""One fine-tuning job from the outside: what goes in, what comes out. A leaf."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum

from automl_ft.specs.decision import Evaluation
from automl_ft.specs.failure import TrialFailure

__all__ = ["Outcome", "ParamValue", "TrialCost", "TrialMemory", "TrialResult", "TrialSpec"]

ParamValue = bool | int | float | str | None
"""A value of a hyperparameter."""


class Outcome(StrEnum):
    """How a run of a trial ended."""

    COMPLETE = "complete"
    """It ran its full length, or its early stopping ended it."""
    PRUNED = "pruned"
    """It was given up for good."""
    PAUSED = "paused"
    """It stopped with a checkpoint and can go on."""
    FAILED = "failed"
    """It failed; the result holds a `TrialFailure`."""


@dataclass(frozen=True, kw_only=True, slots=True)
class TrialSpec:
    """Everything that a worker needs to run one trial of a prepared study."""

    number: int
    """The trial's number in the study."""
    hyperparameters: Mapping[str, ParamValue]
    """Every hyperparameter by name (see `specs.hyperparameters`), sampled or default."""
    seed: int
    """Seed of everything random in the trial."""
    folder: str
    """Folder of the trial's checkpoints; a checkpoint in it is resumed."""


@dataclass(frozen=True, kw_only=True, slots=True)
class TrialCost:
    """What a trial cost, over all its runs."""

    seconds: float
    """Seconds of training and validation."""
    examples: int
    """Training examples seen."""
    peak_memory_mib: float
    """Peak memory: the device's allocator on a GPU, the process's resident size elsewhere."""
    forecast_mib: float | None = None
    """What the peak was forecast to be before the trial's last run; None where it was not."""
    seconds_validating: float | None = None
    """Those of `seconds` in which validation rows were scored, without the filling of the cache and
    the writing of checkpoints; None where that was not measured."""


@dataclass(frozen=True, kw_only=True, slots=True)
class TrialMemory:
    """How a trial was made to fit into memory."""

    micro_batch_size: int
    """Rows that passed through the model at once, at the end."""
    eval_batch_size: int
    """Validation rows at once, at the end."""
    is_checkpointing: bool = False
    """Whether blocks were computed again in the backward pass, as nothing else fitted."""
    num_out_of_memory: int = 0
    """How often memory ran out and the trial went on, over all its runs."""
    correction: float = 1.0
    """Factor on forecasts that this study had learnt when the trial ended, 1 or more."""


@dataclass(frozen=True, kw_only=True, slots=True)
class TrialResult:
    """How one run of a trial ended."""

    number: int
    """The trial's number in the study."""
    outcome: Outcome
    """How it ended."""
    value: float | None
    """The objective at the best validated checkpoint, in the metric's own unit, higher is
    better; None if the trial was never validated."""
    best_step: int | None
    """`Evaluation.step` of the best validated checkpoint."""
    metrics: Mapping[str, float]
    """Every metric at the best validated checkpoint."""
    evaluations: tuple[Evaluation, ...]
    """All validations of the trial, over all its runs, in order of their steps."""
    cost: TrialCost
    """What the trial cost, over all its runs."""
    failure: TrialFailure | None = None
    """Why it failed, where `outcome` is FAILED."""
    memory: TrialMemory | None = None
    """How it was made to fit into memory; None where that did not arise."""
