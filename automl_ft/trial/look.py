"""What does one look at a model, on its device and with a study's rows, find out for all trials?

Which shortcuts it allows, how batches are laid out and what validation costs; the look is taken
once, when a study is made. Where the engine must fall back, a sentence says so.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Protocol, TypeVar

import torch
from transformers import PreTrainedModel

from automl_ft.config.study import StudyConfig, TrainingConfig
from automl_ft.data.batches import Padding
from automl_ft.data.encoding import EncodedSplit
from automl_ft.models.capabilities import Capabilities, find_capabilities
from automl_ft.models.load import LoadedModel
from automl_ft.models.vocabulary import vocabulary_notes
from automl_ft.specs.validation import is_dear, may_matter, usual_cost
from automl_ft.trial.batching import BUCKETED, HARDLY_MATTERS_SECONDS, PACKED, choose_batching
from automl_ft.trial.compute import runs_in_bf16
from automl_ft.trial.memory import is_out_of_memory
from automl_ft.trial.precision import pick_device, resolve_precision
from automl_ft.trial.stopwatch import Stopwatch, make_stopwatch

__all__ = ["LookedAt", "ModelLook", "ValidationClock", "look_at_model", "measured_cost"]

_REPEATS = 3
_T = TypeVar("_T")


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class LookedAt:
    """A model with the rows that it will train on."""

    loaded: LoadedModel
    """The model, on the CPU."""
    splits: Mapping[str, EncodedSplit]
    """Its rows: `train` and `validation`."""
    padding: Padding
    """How they are padded."""
    max_length: int
    """Tokens that they were cut to."""
    replacement_token_id: int | None
    """What `token_dropout` puts in place of a token."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ModelLook:
    """What was found; see `specs.facts.CheckpointFacts`."""

    batching: str
    """`packed` or `bucketed`."""
    can_stack: bool
    """Whether heads can be trained together."""
    validation_cost: float | None
    """What a token costs in validation; None where it was not measured."""
    can_bf16: bool
    """Whether the model computes in bf16; True where nobody asked."""
    fallbacks: tuple[str, ...]
    """A sentence for each shortcut that is not taken."""


class ValidationClock(Protocol):
    """What times training and validation."""

    @property
    def device(self) -> torch.device:
        """Where they run."""
        ...

    def num_tokens(self, split: str) -> int:
        """Count what is timed.

        Args:
            split: `train` or `validation`.

        Returns:
            Tokens, without padding.
        """
        ...

    def train(self, batching: str) -> float:
        """Train on some rows.

        Args:
            batching: `packed` or `bucketed`.

        Returns:
            Seconds.
        """
        ...

    def validate(self, batching: str) -> float:
        """Score some rows in fp32.

        Args:
            batching: `packed` or `bucketed`.

        Returns:
            Seconds.
        """
        ...


def look_at_model(config: StudyConfig, looked_at: LookedAt) -> ModelLook:
    """Try the shortcuts, and time what depends on the device.

    Args:
        config: The study.
        looked_at: The model and its rows; the model goes to the study's device.

    Returns:
        What was found.
    """
    device = pick_device(config.device)
    precision = resolve_precision(config.training.precision, device)
    loaded = looked_at.loaded
    loaded.model.to(device)  # type: ignore[arg-type]  # transformers wraps `to`
    capabilities = find_capabilities(
        loaded.model,
        loaded.layer_map,
        longest=looked_at.max_length,
        is_fatal=is_out_of_memory,
    )
    can_bf16 = precision != "bf16" or runs_in_bf16(loaded.model)
    precision = precision if can_bf16 else "fp32"
    watch = _Watch(looked_at, capabilities, precision)
    batching = BUCKETED
    if capabilities.packed is not None:
        batching = config.training.batching
        if batching == "auto":
            batching = watch.ask(choose_batching) or PACKED
    cost = None
    if _must_measure(config, looked_at, precision):
        usual = usual_cost(precision)
        cost = watch.ask(lambda clock: measured_cost(clock, batching, usual))
    loaded.model.zero_grad(set_to_none=True)
    return ModelLook(
        batching=batching,
        can_stack=capabilities.can_stack,
        validation_cost=cost,
        can_bf16=can_bf16,
        fallbacks=(
            *_fallbacks(looked_at, capabilities, batching),
            *_dropped_wishes(config.training, loaded.model, batching, can_bf16=can_bf16),
        ),
    )


def measured_cost(clock: ValidationClock, batching: str, usual: float) -> float | None:
    """Time validation next to training.

    Args:
        clock: Times both.
        batching: `packed` or `bucketed`.
        usual: What it costs usually; whoever finds more looks again, as other work on the machine
            may have been in the way.

    Returns:
        Seconds of a token in validation, for each second of a token in training (without the
        optimiser's step); None where a CPU takes too little time for both.
    """
    clock.validate(batching)  # warms up
    best_training = best_validation = float("inf")
    cost = usual
    for _ in range(_REPEATS):
        best_training = min(best_training, clock.train(batching))
        if best_training < HARDLY_MATTERS_SECONDS and clock.device.type == "cpu":
            return None
        best_validation = min(best_validation, clock.validate(batching))
        cost = best_validation / clock.num_tokens("validation")
        cost /= best_training / clock.num_tokens("train")
        if not is_dear(cost, usual):
            break
    return cost


class _Watch:
    """Asks a stopwatch, made when it is first needed; where memory does not suffice, nobody."""

    def __init__(self, looked_at: LookedAt, capabilities: Capabilities, precision: str) -> None:
        self._looked_at = looked_at
        self._capabilities = capabilities
        self._precision = precision
        self._stopwatch: Stopwatch | None = None

    def ask(self, question: Callable[[Stopwatch], _T]) -> _T | None:
        """Return the answer; None where memory ran out, though a trial may find what fits."""
        looked_at = self._looked_at
        try:
            if self._stopwatch is None:
                self._stopwatch = make_stopwatch(
                    looked_at.loaded,
                    self._capabilities,
                    looked_at.splits,
                    looked_at.padding,
                    self._precision,
                )
            return question(self._stopwatch)
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
            return None


def _must_measure(config: StudyConfig, looked_at: LookedAt, precision: str) -> bool:
    if config.training.validations_per_epoch != "auto" or precision == "fp32":
        return False  # in fp32 both compute alike on any device
    tokens = [looked_at.splits[name].num_tokens for name in ("train", "validation")]
    return may_matter(tokens[0], tokens[1], usual_cost(precision))


def _dropped_wishes(
    training: TrainingConfig, model: PreTrainedModel, batching: str, *, can_bf16: bool
) -> list[str]:
    """Say what was asked for, or would have been chosen, and cannot be had."""
    name, notes = type(model).__name__, []
    if training.batching == PACKED and batching != PACKED:
        notes.append(f"`training.batching: packed` cannot be had with `{name}`.")
    if not can_bf16:
        asked = ", though `training.precision` says so" if training.precision == "bf16" else ""
        notes.append(f"`{name}` does not compute in bf16{asked}: its trials compute in fp32.")
    return notes


def _fallbacks(looked_at: LookedAt, capabilities: Capabilities, batching: str) -> tuple[str, ...]:
    """Say once which shortcuts are not taken, though they would have been worth it."""
    model, replacement = looked_at.loaded.model, looked_at.replacement_token_id
    notes = list(capabilities.notes)
    if batching == BUCKETED and capabilities.has_read_block:
        name = type(model).__name__
        notes.append(f"The last block of `{name}` is computed for all tokens of bucketed batches.")
    notes += vocabulary_notes(
        model,
        (split.input_ids for split in looked_at.splits.values()),
        [] if replacement is None else [replacement],
        is_packed=batching == PACKED,
    )
    return tuple(notes)
