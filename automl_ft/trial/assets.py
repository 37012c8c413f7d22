"""What does a process find out about a checkpoint once, for all of its trials?"""

from __future__ import annotations

from dataclasses import dataclass, field

from automl_ft.models.capabilities import Capabilities, find_capabilities
from automl_ft.models.load import LoadedModel
from automl_ft.models.vocabulary import Vocabulary, find_vocabulary
from automl_ft.trial.memory import is_out_of_memory
from automl_ft.trial.prepare import OpenCheckpoint, PreparedStudy

__all__ = ["CheckpointAssets", "assets_of"]


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class CheckpointAssets:
    """What is the same in every trial of one checkpoint."""

    capabilities: Capabilities
    """Which shortcuts the model allows."""
    vocabulary: Vocabulary | None
    """The tokens in use; None where its embedding stays whole."""
    widths: dict[int, int] = field(default_factory=dict)
    """By number of blocks the width of their activations, as far as it was asked for."""
    fp32_passes: dict[int, float] = field(default_factory=dict)
    """By number of frozen blocks how often validation rows passed through them in fp32 after bf16;
    see `trial.screening`."""


def assets_of(
    study: PreparedStudy, opened: OpenCheckpoint, loaded: LoadedModel
) -> CheckpointAssets:
    """Return what is known of a checkpoint, found out at the first call of this process.

    Args:
        study: The prepared study, which keeps it.
        opened: The checkpoint.
        loaded: A fresh model of it, on its device; left in eval mode.

    Returns:
        Its assets.
    """
    known = study.assets.get(opened.facts.checkpoint)
    if known is None:
        replacement = opened.replacement_token_id
        also = [] if replacement is None else [replacement]
        known = CheckpointAssets(
            capabilities=find_capabilities(
                loaded.model,
                loaded.layer_map,
                longest=opened.facts.max_length,
                is_fatal=is_out_of_memory,
            ),
            vocabulary=find_vocabulary(
                loaded.model, (split.input_ids for split in opened.splits.values()), also
            ),
        )
        study.assets[opened.facts.checkpoint] = known
    return known
