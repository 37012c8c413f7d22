"""The hyperparameters of one trial as typed values."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from automl_ft.specs.codec import from_plain
from automl_ft.specs.hyperparameters import complete
from automl_ft.specs.trial import ParamValue

__all__ = ["Recipe"]


@dataclass(frozen=True, kw_only=True, slots=True)
class Recipe:
    """One recipe; the meaning of each field stands in `specs.hyperparameters`."""

    model: str | None
    freezing: str
    frozen_layers: int
    unfreezing_pace: float
    learning_rate: float
    batch_size: int
    epochs: int
    dropout: float | None
    weight_decay: float
    l1: float
    label_smoothing: float
    warmup_ratio: float
    lr_schedule: str
    layerwise_lr_decay: float
    max_grad_norm: float
    reinit_layers: int
    token_dropout: float
    word_swap: float
    word_deletion: float
    mixup: float

    @classmethod
    def of(cls, hyperparameters: Mapping[str, ParamValue]) -> Recipe:
        """Build a recipe; what is not given takes its neutral default.

        Args:
            hyperparameters: Values by name.

        Returns:
            The recipe.

        Raises:
            KeyError: A name is not a hyperparameter.
        """
        return from_plain(cls, complete(hyperparameters))
