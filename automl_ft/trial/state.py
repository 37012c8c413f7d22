"""How far is a running trial, and what has it found so far? Everything here is checkpointed."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from automl_ft.specs.codec import from_plain, to_plain
from automl_ft.specs.decision import Evaluation
from automl_ft.specs.trial import TrialMemory

__all__ = ["TrainingState"]


@dataclass(kw_only=True, slots=True)
class TrainingState:
    """The mutable state of a trial, apart from tensors."""

    epoch: int = 0
    """Epoch that runs, from 0."""
    batch: int = 0
    """Next batch in it, from 0."""
    step: int = 0
    """Optimiser steps done."""
    examples_seen: int = 0
    """Training rows seen."""
    stage: int = 0
    """Stage of the freezing plan."""
    seconds: float = 0.0
    """Seconds of training and validation, over all runs."""
    seconds_validating: float = 0.0
    """Those in which validation rows were scored; NaN where earlier runs did not measure them."""
    peak_memory_mib: float = 0.0
    """Peak memory, over all runs."""
    forecast_mib: float | None = None
    """The peak as it was forecast for the last run."""
    memory: TrialMemory | None = None
    """How the trial fitted into memory when it was last checkpointed."""
    loss_sum: float = 0.0
    """Sum of the training losses since the last validation, in nats."""
    loss_steps: int = 0
    """Steps in that sum."""
    best_value: float | None = None
    """Best validated objective."""
    best_step: int | None = None
    """Nominal examples seen at it."""
    best_metrics: dict[str, float] = field(default_factory=dict)
    """Metrics at it."""
    validations_without_gain: int = 0
    """Validations since the best one."""
    evaluations: list[Evaluation] = field(default_factory=list)
    """All validations, in order."""

    def to_plain(self) -> dict[str, Any]:
        """Return the state as plain values.

        Returns:
            What `from_plain` reads.
        """
        return {f.name: to_plain(getattr(self, f.name)) for f in dataclasses.fields(self)}

    @classmethod
    def from_plain(cls, plain: Mapping[str, Any]) -> TrainingState:
        """Rebuild a state.

        Args:
            plain: What `to_plain` returned.

        Returns:
            The state.
        """
        values = {"seconds_validating": math.nan, **plain}
        if values.get("memory") is not None:
            values["memory"] = from_plain(TrialMemory, values["memory"])
        values["evaluations"] = [from_plain(Evaluation, e) for e in plain["evaluations"]]
        return cls(**values)

    def note_validation(self, evaluation: Evaluation, value: float) -> bool:
        """Take in a validation.

        Args:
            evaluation: The validation.
            value: Its objective; NaN never counts as better.

        Returns:
            Whether it is the best so far. Equal values do not displace an earlier one.
        """
        self.evaluations.append(evaluation)
        self.loss_sum, self.loss_steps = 0.0, 0
        is_better = value == value and (self.best_value is None or value > self.best_value)
        if is_better:
            self.best_value, self.best_step = value, evaluation.step
            self.best_metrics = dict(evaluation.metrics)
            self.validations_without_gain = 0
        else:
            self.validations_without_gain += 1
        return is_better
