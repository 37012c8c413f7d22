"""Which configurations do both sides run?"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from automl_ft.specs.hyperparameters import complete
from automl_ft.specs.trial import ParamValue, TrialSpec

__all__ = ["LIST", "Configuration", "of_part"]


@dataclass(frozen=True, kw_only=True, slots=True)
class Configuration:
    """One configuration, as far as it differs between trials."""

    part: str
    """`head` (all blocks frozen), `half` (the lower half of them), or `full` fine-tuning."""
    learning_rate: float
    """Peak rate."""
    dropout: float
    """Dropout probability everywhere."""
    batch_size: int = 16
    """Examples of an update, and of a pass through the model."""
    weight_decay: float = 0.01
    """Decoupled L2, not on norms and biases."""
    warmup_ratio: float = 0.1
    """Fraction of the updates with a rising rate; it falls linearly after them."""

    def hyperparameters(self, num_layers: int, epochs: int) -> dict[str, ParamValue]:
        """Spell the configuration in the words of `specs.hyperparameters`.

        Args:
            num_layers: Blocks of the model.
            epochs: Passes over the training rows.

        Returns:
            Every hyperparameter.
        """
        freezing = {"head": "head_only", "half": "bottom_layers", "full": "none"}[self.part]
        return complete(
            {
                "freezing": freezing,
                "frozen_layers": num_layers // 2 if self.part == "half" else 0,
                "learning_rate": self.learning_rate,
                "dropout": self.dropout,
                "batch_size": self.batch_size,
                "weight_decay": self.weight_decay,
                "warmup_ratio": self.warmup_ratio,
                "epochs": epochs,
            }
        )

    def spec(
        self, number: int, num_layers: int, *, epochs: int, seed: int, folder: Path
    ) -> TrialSpec:
        """Return the trial that runs it.

        Args:
            number: Number of the trial.
            num_layers: Blocks of the model.
            epochs: Passes over the training rows.
            seed: Seed of everything random.
            folder: The trial's folder.

        Returns:
            The spec.
        """
        return TrialSpec(
            number=number,
            hyperparameters=self.hyperparameters(num_layers, epochs),
            seed=seed,
            folder=str(folder),
        )


LIST = (
    Configuration(part="head", learning_rate=5e-3, dropout=0.1),
    Configuration(part="full", learning_rate=5e-5, dropout=0.1),
    Configuration(part="half", learning_rate=5e-5, dropout=0.1),
    Configuration(part="half", learning_rate=1e-4, dropout=0.2),
    Configuration(part="full", learning_rate=1e-4, dropout=0.2),
    Configuration(part="head", learning_rate=1e-2, dropout=0.2),
)
"""Frozen blocks of MiniLM-L6: 6, 0, 3, 3, 0, 6."""


def of_part(part: str) -> Configuration:
    """Return the first configuration of a part.

    Args:
        part: `head`, `half` or `full`.

    Returns:
        The configuration.
    """
    return next(configuration for configuration in LIST if configuration.part == part)
