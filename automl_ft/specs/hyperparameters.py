"""Every hyperparameter by name: its type, what is accepted, its neutral default. A leaf.

A search space chooses among these; what it does not name keeps the neutral default, so a trial
always holds every one of them. Names are transformers' and Optuna's own where they have one.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from automl_ft.specs.trial import ParamValue

__all__ = ["FREEZING_STRATEGIES", "HYPERPARAMETERS", "LR_SCHEDULES", "Hyperparameter", "complete"]

FREEZING_STRATEGIES = ("none", "embeddings", "bottom_layers", "head_only", "gradual_unfreezing")
"""What stays frozen."""
LR_SCHEDULES = ("linear", "cosine", "constant_with_warmup")
"""`transformers.SchedulerType` values that need nothing but warm-up steps."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Hyperparameter:
    """One hyperparameter."""

    kind: type
    """`float`, `int` or `str`."""
    default: ParamValue
    """The neutral default, used where a space does not name it."""
    low: float | None = None
    """Smallest accepted value."""
    high: float | None = None
    """Largest accepted value."""
    choices: tuple[str, ...] | None = None
    """Accepted values of a `str`; None where any is."""
    description: str
    """One line for the command line and the report."""
    low_open: bool = False
    """Whether `low` itself is refused."""

    def problem_with(self, value: object) -> str | None:
        """Say what is wrong with a value.

        Args:
            value: The value to check.

        Returns:
            What is accepted instead, or None if the value is fine.
        """
        if value is None:
            return None if self.default is None else f"accepted is a {self.kind.__name__}"
        if self.kind is str:
            if not isinstance(value, str) or (self.choices and value not in self.choices):
                accepted = ", ".join(self.choices) if self.choices else "text"
                return f"accepted: {accepted}"
            return None
        numeric = (int,) if self.kind is int else (int, float)
        if isinstance(value, bool) or not isinstance(value, numeric) or value != value:
            return f"accepted is a {self.kind.__name__}{self._range()}"
        below = self.low is not None and (value < self.low or (self.low_open and value == self.low))
        if below or (self.high is not None and value > self.high):
            return f"accepted is a {self.kind.__name__}{self._range()}"
        return None

    def _range(self) -> str:
        if self.low is None:
            return ""
        left = "above" if self.low_open else "from"
        return f" {left} {self.low:g}" + (f" to {self.high:g}" if self.high is not None else " up")


def _float(
    default: float | None, low: float, high: float | None, text: str, *, low_open: bool = False
) -> Hyperparameter:
    return Hyperparameter(
        kind=float, default=default, low=low, high=high, description=text, low_open=low_open
    )


def _int(default: int, low: int, high: int | None, text: str) -> Hyperparameter:
    return Hyperparameter(kind=int, default=default, low=low, high=high, description=text)


def _str(default: str | None, choices: tuple[str, ...] | None, text: str) -> Hyperparameter:
    return Hyperparameter(kind=str, default=default, choices=choices, description=text)


HYPERPARAMETERS: Mapping[str, Hyperparameter] = {
    "model": _str(None, None, "pretrained checkpoint; the study's own where it is not searched"),
    "freezing": _str("none", FREEZING_STRATEGIES, "what stays frozen"),
    "frozen_layers": _int(0, 0, None, "blocks frozen from the bottom, with freezing bottom_layers"),
    "unfreezing_pace": _float(
        0.5,
        0.0,
        1.0,
        "fraction of training after which all is unfrozen, with gradual_unfreezing",
        low_open=True,
    ),
    "learning_rate": _float(5e-5, 0.0, 1.0, "peak learning rate of AdamW", low_open=True),
    "batch_size": _int(16, 1, None, "effective batch size: examples per optimiser step"),
    "epochs": _int(3, 1, 1000, "passes over the training split"),
    "dropout": _float(None, 0.0, 0.9, "dropout probability everywhere; None keeps the config's"),
    "weight_decay": _float(0.0, 0.0, 1.0, "decoupled L2, not on norms and biases"),
    "l1": _float(0.0, 0.0, 1.0, "decoupled L1 (soft threshold), not on norms and biases"),
    "label_smoothing": _float(0.0, 0.0, 0.9, "label smoothing factor"),
    "warmup_ratio": _float(0.0, 0.0, 0.9, "fraction of the steps with a rising rate"),
    "lr_schedule": _str("linear", LR_SCHEDULES, "learning-rate schedule after warm-up"),
    "layerwise_lr_decay": _float(
        1.0, 0.0, 1.0, "factor on the rate for each block further from the head", low_open=True
    ),
    "max_grad_norm": _float(
        1.0, 0.0, None, "gradients are clipped to this global norm", low_open=True
    ),
    "reinit_layers": _int(0, 0, None, "top blocks re-initialised before training"),
    "token_dropout": _float(0.0, 0.0, 0.9, "probability that a training token is masked"),
    "word_swap": _float(0.0, 0.0, 0.9, "fraction of words swapped with their neighbour"),
    "word_deletion": _float(0.0, 0.0, 0.9, "probability that a training word is deleted"),
    "mixup": _float(0.0, 0.0, 4.0, "alpha of the Beta distribution of sentence mixup; 0 is off"),
}
"""All hyperparameters, in the order in which they are shown."""


def complete(params: Mapping[str, ParamValue]) -> dict[str, ParamValue]:
    """Fill in the neutral default of every hyperparameter that is not given.

    Args:
        params: Some hyperparameters; names must be known.

    Returns:
        Every hyperparameter, in the order of `HYPERPARAMETERS`.

    Raises:
        KeyError: A name is not a hyperparameter.
    """
    unknown = params.keys() - HYPERPARAMETERS.keys()
    if unknown:
        raise KeyError(f"`{sorted(unknown)[0]}` is no hyperparameter.")
    return {name: params.get(name, known.default) for name, known in HYPERPARAMETERS.items()}
