"""What does one look at a model, on its device and with a study's rows, find out for all trials?

Which shortcuts it allows and how batches are laid out; the look is taken once, when a study is
made. Where the engine must fall back, a sentence says so.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from transformers import PreTrainedModel

from automl_ft.config.study import StudyConfig, TrainingConfig
from automl_ft.data.batches import Padding
from automl_ft.data.encoding import EncodedSplit
from automl_ft.models.capabilities import Capabilities, find_capabilities
from automl_ft.models.load import LoadedModel
from automl_ft.models.vocabulary import vocabulary_notes
from automl_ft.specs.facts import without_bf16
from automl_ft.trial.batching import BUCKETED, PACKED, choose_batching
from automl_ft.trial.compute import runs_in_bf16
from automl_ft.trial.graph_look import GraphLook, look_at_graphs
from automl_ft.trial.graphs import recorder_for
from automl_ft.trial.memory import is_out_of_memory
from automl_ft.trial.precision import pick_device, resolve_precision
from automl_ft.trial.stopwatch import Stopwatch, make_stopwatch

__all__ = ["LookedAt", "ModelLook", "look_at_model"]


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
    can_bf16: bool
    """Whether the model computes in bf16; True where nobody asked."""
    cuda_graphs: bool
    """Whether recorded steps are faster; False where nobody asked."""
    fallbacks: tuple[str, ...]
    """A sentence for each shortcut that is not taken."""


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
    precision = precision if can_bf16 else without_bf16(device.type)
    batching = BUCKETED
    if capabilities.packed is not None:
        batching = config.training.batching
        if batching == "auto":
            batching = _fastest_batching(looked_at, capabilities, precision)
    graphs = GraphLook(pays=False, problem="")
    if batching == PACKED and config.training.cuda_graphs == "auto":
        graphs = _look_at_graphs(looked_at, capabilities, precision)
    loaded.model.zero_grad(set_to_none=True)
    return ModelLook(
        batching=batching,
        can_stack=capabilities.can_stack,
        can_bf16=can_bf16,
        cuda_graphs=graphs.pays,
        fallbacks=(
            *_fallbacks(looked_at, capabilities, batching),
            *_dropped_wishes(config.training, loaded.model, batching, can_bf16=can_bf16),
            *_graph_notes(loaded.model, graphs),
        ),
    )


def _fastest_batching(looked_at: LookedAt, capabilities: Capabilities, precision: str) -> str:
    """Time both layouts; where memory does not suffice for that, take packed rows."""
    try:
        return choose_batching(_stopwatch(looked_at, capabilities, precision))
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
        return PACKED  # a trial may find what fits


def _stopwatch(
    looked_at: LookedAt, capabilities: Capabilities, precision: str, **options: bool
) -> Stopwatch:
    train, padding = looked_at.splits["train"], looked_at.padding
    return make_stopwatch(looked_at.loaded, capabilities, train, padding, precision, **options)


def _look_at_graphs(looked_at: LookedAt, capabilities: Capabilities, precision: str) -> GraphLook:
    """Try to record steps, where the device allows it and memory suffices."""
    recorder = recorder_for(looked_at.loaded.model.device)
    if recorder is None:
        return GraphLook(pays=False, problem="")
    try:
        watch = _stopwatch(looked_at, capabilities, precision, has_stream=False)
        return look_at_graphs(watch, recorder)
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
        return GraphLook(pays=False, problem="memory ran out")


def _graph_notes(model: PreTrainedModel, graphs: GraphLook) -> list[str]:
    if not graphs.problem:
        return []
    name = type(model).__name__
    return [f"Steps of `{name}` are not recorded as CUDA graphs: {graphs.problem}."]


def _dropped_wishes(
    training: TrainingConfig, model: PreTrainedModel, batching: str, *, can_bf16: bool
) -> list[str]:
    """Say what was asked for, or would have been chosen, and cannot be had."""
    name, notes = type(model).__name__, []
    if training.batching == PACKED and batching != PACKED:
        notes.append(f"`training.batching: packed` cannot be had with `{name}`.")
    if training.cuda_graphs == "always":
        where = f"on `{model.device.type}`" if model.device.type != "cuda" else ""
        where = where or (f"with batches of `{name}`" if batching != PACKED else "")
        if where:
            notes.append(f"`training.cuda_graphs: always` cannot be had {where}.")
    if not can_bf16:
        asked = ", though `training.precision` says so" if training.precision == "bf16" else ""
        instead = without_bf16(model.device.type)
        notes.append(f"`{name}` does not compute in bf16{asked}: its trials compute in {instead}.")
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
