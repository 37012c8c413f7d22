"""What does the process that writes an export need to know?

The command line never imports torch, so the model, the script and the card are written by a
process of their own. This is what it is told, as JSON on its standard input; a leaf of the layer.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from automl_ft.config.study import StudyConfig
from automl_ft.specs.facts import CheckpointFacts, StudyFacts
from automl_ft.specs.trial import ParamValue

__all__ = ["TOLERANCE", "ExportJob", "RankedRow", "SearchSummary", "checkpoint_facts"]

TOLERANCE = 1e-6
"""How far the written model's value may lie from the trial's, in the objective's unit."""


@dataclass(frozen=True, kw_only=True, slots=True)
class RankedRow:
    """One complete trial as the model card's table shows it."""

    number: int
    """The trial's number."""
    value: float
    """Its objective."""
    params: Mapping[str, ParamValue]
    """Its sampled hyperparameters."""
    seconds: float
    """Seconds that it trained, validation included."""


@dataclass(frozen=True, kw_only=True, slots=True)
class SearchSummary:
    """What the model card tells of the search."""

    top: tuple[RankedRow, ...]
    """The best complete trials, best first."""
    counts: Mapping[str, int]
    """Trials by state, in Optuna's words, lower case."""
    seconds: float
    """Active seconds of all runs of the search, set-up included."""
    default_number: int | None
    """The trial of the default recipe, if it is complete."""
    default_value: float | None
    """Its value."""
    verdict: str | None
    """One sentence on whether the best trial beats the default recipe."""
    importances: Mapping[str, float]
    """Share of each hyperparameter in the objective's variation, largest first; may be empty."""
    importances_note: str
    """Why there are none, or how they were computed; a full sentence."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ExportJob:
    """One export: which trial of which study, and where its files go."""

    study: str
    """Name of the study."""
    config: StudyConfig
    """Its config, with local paths made absolute."""
    facts: StudyFacts
    """What preparing it found out."""
    folder: str
    """Its folder: checkpoints and its own copy of the rows."""
    target: str
    """An existing empty folder to write to."""
    version: str
    """Version of automl-ft that writes the export."""
    number: int
    """The trial."""
    hyperparameters: Mapping[str, ParamValue]
    """All its hyperparameters."""
    seed: int
    """Its seed."""
    value: float
    """Its objective at its best validated checkpoint."""
    metrics: Mapping[str, float]
    """All its metrics there, such as `validation_f1_macro`."""
    seconds: float
    """Seconds that it trained, validation included."""
    examples: int
    """Training examples that it saw."""
    search: SearchSummary
    """The search that it came from."""

    @property
    def checkpoint(self) -> CheckpointFacts:
        """The pretrained checkpoint that the trial started from."""
        return checkpoint_facts(self.facts, self.hyperparameters.get("model"))


def checkpoint_facts(facts: StudyFacts, model: ParamValue = None) -> CheckpointFacts:
    """Find what is known of a trial's pretrained checkpoint.

    Args:
        facts: The study's facts.
        model: The trial's `model`, where the space searches it; None takes the study's own.

    Returns:
        The facts of that checkpoint; of the first one where `model` is None.

    Raises:
        KeyError: The study knows no checkpoint of that name.
    """
    if model is None:
        return facts.checkpoints[0]
    known = {checkpoint.checkpoint: checkpoint for checkpoint in facts.checkpoints}
    return known[str(model)]
