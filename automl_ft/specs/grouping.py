"""Which trials may be trained together, as heads on the same features? A leaf."""

from __future__ import annotations

from collections.abc import Mapping

from automl_ft.specs.hyperparameters import complete
from automl_ft.specs.trial import ParamValue

__all__ = ["MAX_STACKED", "stack_key"]

MAX_STACKED = 8
"""Trials in a group at most. Source: 8 heads trained stacked take 1/3.15 of the time that they take
one by one (MiniLM-L6, SST-2, batch 16, two cores); more were not measured."""

_CHANGES_FEATURES = ("token_dropout", "word_swap", "word_deletion", "mixup", "reinit_layers")
"""What gives every trial, or every step, features of its own where it is not 0."""


def stack_key(hyperparameters: Mapping[str, ParamValue]) -> tuple[ParamValue, ...] | None:
    """Return what trials must have in common to be trained together.

    Only the head is trained, and every row has the same features in every step and every trial.
    What concerns the head alone (rates, decays, dropout, epochs, batch size) may differ.

    Args:
        hyperparameters: Those of a trial; what is missing counts as its neutral default.

    Returns:
        Equal for trials of one model that may be trained together; None for a trial that must be
        trained alone.
    """
    # Not `complete(hyperparameters)`: a name that this version does not know is not our problem.
    recipe = {**complete({}), **hyperparameters}
    if recipe["freezing"] != "head_only" or any(recipe[name] for name in _CHANGES_FEATURES):
        return None
    return (recipe["model"],)
