"""How many rows pass through a model at once, so that a trial fits into memory?

The whole effective batch where that fits; else a half of it, a quarter, and so on, whose gradients
are added up. Gradient checkpointing is for the case that not even one row fits.
"""

from __future__ import annotations

import dataclasses
import logging
import math
from collections.abc import Callable, Hashable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from automl_ft.data.encoding import EncodedSplit
from automl_ft.models.checkpointing import disable_checkpointing, enable_checkpointing
from automl_ft.models.freezing import FreezingPlan
from automl_ft.specs.trial import TrialMemory
from automl_ft.trial.activations import most_filled_rows
from automl_ft.trial.allocations import recorded_allocations
from automl_ft.trial.budget import MemoryBudget
from automl_ft.trial.compute import ComputeModel
from automl_ft.trial.forecast import (
    BatchShape,
    MemoryForecast,
    MemoryProfile,
    profile_of,
)
from automl_ft.trial.forward import Forward
from automl_ft.trial.guard import MemoryGuard, drop_gradients, halved
from automl_ft.trial.seeding import random_states, restore_random_states
from automl_ft.trial.step import StepRunner
from automl_ft.trial.study_memory import StudyMemory

__all__ = [
    "SizedParts",
    "Wishes",
    "guard_memory",
    "held_tensors",
    "whole_eval_batch",
    "whole_micro_batch",
]

_log = logging.getLogger(__name__)
_MIB = 1024 * 1024
_LARGEST = 64
"""Rows at once where `training.micro_batch_size` is `auto`."""
_LARGEST_MIXED = 32
"""With mixup, which mixes the rows of one micro-batch: as many as ever, so that its meaning does
not change with the machine unless it must."""
_EVAL_TOKENS = 2048
"""Tokens at once in validation on a CPU where `training.eval_batch_size` is `auto`. Measured with
MiniLM in fp32 on one thread, rows of 19, 67 and 133 tokens on average: 1,024 to 2,048 are the
fastest; 512 take 3 to 6 % longer, 4,096 3 to 10 %, 8,192 9 to 22 %, as layers leave the cache."""
_EVAL_TOKENS_ELSEWHERE = 16384
"""The same on other devices, whose many units want more at once; not measured."""
_KERNELS_MIB = 300.0
"""What oneDNN's kernels for the shapes of a first trial in bf16 take on a CPU and keep. Measured
with MiniLM: 183 MiB on TREC-6, 217 on R8, 313 on SST-2; a second trial adds 30 to 50; fp32 takes
3."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Wishes:
    """What the study and the recipe ask for."""

    batch_size: int
    """The effective batch."""
    micro_batch_size: int | str
    """A number that is taken as it is, or `auto`."""
    eval_batch_size: int | str
    """Validation rows at once, at most, or `auto`."""


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class SizedParts:
    """The parts of a trial that take memory."""

    stepper: StepRunner
    """Makes gradients; its `micro_batch_size` is set."""
    validation: Forward
    """Gives scores of the validation split."""
    filling: tuple[Forward, ...]
    """What may compute activations to store; gets the number of rows at once."""
    compute: ComputeModel
    """The models."""
    plan: FreezingPlan
    """Says what is trained in the end, when most is."""
    parameters: tuple[Tensor, ...]
    """All that the optimiser trains at some time."""
    device: torch.device
    """Where the trial runs."""
    max_length: int
    """Tokens of the longest row that the model takes."""
    key: Hashable
    """What memory depends on in training, so that trials of this process share profiles."""
    validation_key: Hashable
    """What it depends on in validation."""


def guard_memory(
    parts: SizedParts, wishes: Wishes, budget: MemoryBudget, study: StudyMemory
) -> MemoryGuard:
    """Choose how many rows pass through the model at once, and watch over it.

    Args:
        parts: The parts; the stepper gets its micro-batch, everything else stays as it was.
        wishes: What is asked for.
        budget: What there was before the trial.
        study: Keeps the profiles, and knows how far forecasts are to be trusted.

    Returns:
        The guard.
    """
    return _Sizing(parts, wishes, budget, study).guard()


def whole_micro_batch(setting: int | str, batch_size: int, *, is_mixing: bool = False) -> int:
    """Return how many rows pass through a model at once where memory is no question.

    Args:
        setting: `training.micro_batch_size`.
        batch_size: The effective batch.
        is_mixing: Whether mixup mixes the rows of a micro-batch.

    Returns:
        The setting; where it is `auto`, the largest of the batch, its half, its quarter and so on
        that is not above 64 (32 with mixup).
    """
    if isinstance(setting, int):
        return setting
    largest = _LARGEST_MIXED if is_mixing else _LARGEST
    return next(size for size in _halvings(batch_size) if size <= largest)


def whole_eval_batch(setting: int | str, lengths: npt.NDArray[np.int64], device: str) -> int:
    """Return how many rows are validated at once where memory is no question.

    Args:
        setting: `training.eval_batch_size`.
        lengths: Tokens of each validation row, shape (num_rows,).
        device: The kind of device.

    Returns:
        The setting; where it is `auto`, as many rows as hold 2,048 tokens on a CPU, 16,384
        elsewhere, if they are as long as the row that a token lies in on average. Rows of one
        batch are of similar length, so that most tokens are in batches of about that size.
    """
    if isinstance(setting, int):
        return setting
    tokens = _EVAL_TOKENS if device == "cpu" else _EVAL_TOKENS_ELSEWHERE
    typical = float(np.square(lengths, dtype=np.float64).sum()) / max(1, int(lengths.sum()))
    return min(len(lengths), max(1, round(tokens / max(1.0, typical))))


class _Sizing:
    """Forecasts one trial in several sizes; used once."""

    def __init__(
        self, parts: SizedParts, wishes: Wishes, budget: MemoryBudget, study: StudyMemory
    ) -> None:
        self._parts = parts
        self._wishes = wishes
        self._budget = budget
        self._study = study
        splits = (parts.stepper.forward.maker.split, parts.validation.maker.split)
        self._eval_rows = whole_eval_batch(
            wishes.eval_batch_size, splits[1].lengths, parts.device.type
        )
        boundaries = [len(forward.stored_boundaries(parts.plan)) for forward in parts.filling]
        self._num_boundaries = max(boundaries)
        self._fills = self._num_boundaries > 0
        most = max(wishes.batch_size, self._eval_rows)
        if self._fills:
            most = max(most, most_filled_rows(parts.device.type))
        self._longest = [tuple(np.sort(split.lengths)[: -most - 1 : -1]) for split in splits]
        self._weights_mib = _unique_mib(held_tensors(parts.compute))
        self._optimizer_mib = 2 * 4 * sum(p.numel() for p in parts.parameters) / _MIB
        makes_kernels = parts.device.type == "cpu" and parts.compute.model.dtype is torch.bfloat16
        self._kernels_mib = _KERNELS_MIB if makes_kernels and not study.has_trained else 0.0
        self._filled_rows = self._choose_filled_rows() if self._fills else 0

    def guard(self) -> MemoryGuard:
        """Choose the sizes and return the guard."""
        record = self._choose()
        parts = self._parts
        parts.stepper.micro_batch_size = record.micro_batch_size
        if record.is_checkpointing:
            self._checkpoint()
        guard = MemoryGuard(
            stepper=parts.stepper,
            compute=parts.compute,
            device=parts.device,
            study=self._study,
            forecast=self._forecast(record),
            record=record,
            shortfall=self._shortfall,
            forecast_of=self._forecast,
            checkpoint_blocks=self._checkpoint,
        )
        self._watch_filling(guard)
        return guard

    def _watch_filling(self, guard: MemoryGuard) -> None:
        """Have activations computed in the rows that fit, in all splits alike."""
        sources = [f.source for f in self._parts.filling if f.source is not None]

        def take(num_rows: int) -> None:
            for source in sources:
                source.rows_at_once = num_rows

        def note(num_rows: int) -> None:
            take(num_rows)
            guard.note_shortage()

        for source in sources:
            source.on_shortage = note
        if self._fills:
            take(self._filled_rows)

    def _choose_filled_rows(self) -> int:
        """Take the most rows at once that fit while activations are computed; 1 where none do."""
        free = self._budget.free_mib
        sizes = _halvings(most_filled_rows(self._parts.device.type))
        correction = self._study.correction(self._parts.device.type)
        held = self._kernels_mib + self._weights_mib + self._optimizer_mib
        left = math.inf if free is None else free - held
        return next((s for s in sizes if correction * self._filling_mib(s) <= left), sizes[-1])

    def _filling_mib(self, num_rows: int) -> float:
        """Return what the longest rows take, in fp32 and through all blocks: that or less.

        Besides a pass these are copies of what passes each boundary below the highest.
        """
        profile = self._validation_profile()
        config = self._parts.compute.master.config.get_text_config()
        copied = (self._num_boundaries - 1) * 4 * int(getattr(config, "hidden_size", 0)) / _MIB
        shapes = [self._shape(split, num_rows) for split in (0, 1)]
        return max(profile.peak_mib(s) + copied * s.num_tokens for s in shapes)

    def _choose(self) -> TrialMemory:
        """Take the largest sizes that fit, and checkpointing where none does."""
        correction = self._study.correction(self._parts.device.type)
        wishes = self._wishes
        start = TrialMemory(
            micro_batch_size=1, eval_batch_size=self._eval_rows, correction=correction
        )
        evaluating = [
            dataclasses.replace(start, eval_batch_size=size) for size in _halvings(self._eval_rows)
        ]
        start = next((r for r in evaluating if self._fits(r, "validation_mib")), evaluating[-1])
        training = [
            dataclasses.replace(start, micro_batch_size=size, is_checkpointing=again)
            for again in (False, True)
            for size in self._sizes()
        ]
        chosen = next((r for r in training if self._fits(r, "training_mib")), training[-1])
        if not self._fits(chosen, "training_mib"):
            self._warn(chosen)
        if isinstance(wishes.micro_batch_size, int):
            return dataclasses.replace(chosen, micro_batch_size=wishes.micro_batch_size)
        return chosen

    def _warn(self, record: TrialMemory) -> None:
        """Tell once that a trial is begun though it is forecast not to fit."""
        if self._study.is_told_of_tight_memory:
            return
        self._study.is_told_of_tight_memory = True
        _log.warning(
            "Memory is short: at its smallest, one row at once with gradient checkpointing, a trial"
            " is forecast to take %.0f MiB, of which the process has %.0f in use already, and %.0f"
            " may be taken besides. It is tried all the same. Give `training.memory_gib` more, or"
            " take fewer workers, shorter rows (`data.max_length`) or a smaller model.",
            self._forecast(record).total_mib,
            self._budget.base_mib,
            self._budget.free_mib or 0.0,
        )

    def _sizes(self) -> list[int]:
        """Return the micro-batches that come into question, largest first."""
        is_mixing = self._parts.stepper.mixup > 0
        return _halvings(whole_micro_batch("auto", self._wishes.batch_size, is_mixing=is_mixing))

    def _fits(self, record: TrialMemory, phase: str) -> bool:
        free = self._budget.free_mib
        if free is None:
            return True
        forecast = self._forecast(record)
        batch: float = getattr(forecast, phase)
        return forecast.held_mib + batch <= free

    def _shortfall(self, record: TrialMemory) -> float:
        """Return by what factor the batches of a forecast must grow to fill what there was."""
        if self._budget.free_mib is None:
            return 1.0
        forecast = self._forecast(record)
        left = self._budget.free_mib - forecast.held_mib
        return left / max(forecast.steps_mib, 1.0)

    def _forecast(self, record: TrialMemory) -> MemoryForecast:
        training = self._profile(is_checkpointing=record.is_checkpointing)
        rows = min(record.micro_batch_size, self._wishes.batch_size)
        evaluated = self._validation_profile()
        # Graphs work in memory of their own, beside that of shapes that are not recorded.
        is_recorded = self._parts.stepper.graphs is not None and not record.is_checkpointing
        return MemoryForecast(
            base_mib=self._budget.base_mib,
            weights_mib=self._weights_mib,
            optimizer_mib=self._optimizer_mib,
            training_mib=record.correction
            * (2 if is_recorded else 1)
            * training.peak_mib(self._shape(0, rows)),
            validation_mib=record.correction
            * evaluated.peak_mib(self._shape(1, record.eval_batch_size)),
            filling_mib=record.correction * self._filling_mib(self._filled_rows)
            if self._fills
            else 0.0,
            kernels_mib=self._kernels_mib,
        )

    def _shape(self, split: int, num_rows: int) -> BatchShape:
        """Return the largest batch that training (0) or validation (1) can meet."""
        maker = (self._parts.stepper.forward, self._parts.validation)[split].maker
        return BatchShape(
            lengths=self._longest[split][:num_rows],
            is_packed=maker.is_packed,
            in_few_shapes=maker.in_few_shapes,
        )

    def _profile(self, *, is_checkpointing: bool) -> MemoryProfile:
        key = (self._parts.key, is_checkpointing)
        profiles = self._study.profiles
        if key not in profiles:
            with _borrowed(self._parts):
                if is_checkpointing:
                    self._enable_checkpointing()
                profiles[key] = self._measure(self._parts.stepper.forward, self._train)
                if is_checkpointing:
                    disable_checkpointing(self._parts.compute.model, self._parts.plan.layer_map)
        return profiles[key]

    def _validation_profile(self) -> MemoryProfile:
        key = (self._parts.validation_key, "validation")
        profiles = self._study.profiles
        if key not in profiles:
            with _borrowed(self._parts):
                self._parts.compute.master.eval()  # type: ignore[no-untyped-call]
                profiles[key] = self._measure(self._parts.validation, self._validate)
        return profiles[key]

    def _measure(self, forward: Forward, run: Callable[[Forward, int], object]) -> MemoryProfile:
        """Record tiny batches."""

        def record(shape: BatchShape) -> list[int]:
            tried = _tried(forward, shape)
            with recorded_allocations(held_tensors(self._parts.compute)) as live:
                run(tried, len(shape.lengths))
            drop_gradients(self._parts.compute)
            return live

        maker = forward.maker
        return profile_of(
            record,
            self._parts.max_length,
            is_packed=maker.is_packed,
            in_few_shapes=maker.in_few_shapes,
        )

    def _train(self, forward: Forward, num_rows: int) -> None:
        stepper = dataclasses.replace(
            self._parts.stepper,
            forward=forward,
            augmentation=None,
            micro_batch_size=num_rows,
            graphs=None,
        )
        stepper.backward(np.arange(num_rows), 0, 0)

    def _validate(self, forward: Forward, num_rows: int) -> None:
        forward.all_scores(num_rows)

    def _checkpoint(self) -> None:
        # Computing a block again takes back the state of the generator, which cannot be recorded.
        self._parts.stepper.release()
        self._parts.stepper.graphs = None
        self._enable_checkpointing()

    def _enable_checkpointing(self) -> None:
        parts = self._parts
        enable_checkpointing(parts.compute.model, parts.plan.layer_map, parts.stepper.stream)


def _halvings(size: int) -> list[int]:
    sizes = [size]
    while sizes[-1] > 1:
        sizes.append(halved(sizes[-1]))
    return sizes


def _tried(forward: Forward, shape: BatchShape) -> Forward:
    """Return what scores rows of given lengths, made of the split's own tokens."""
    split, lengths = forward.maker.split, np.asarray(shape.lengths, dtype=np.int64)
    num_tokens, types = int(lengths.sum()), split.token_type_ids
    rows = EncodedSplit(
        input_ids=np.resize(split.input_ids[:num_tokens], num_tokens),
        offsets=np.concatenate([[0], np.cumsum(lengths)]),
        labels=np.resize(split.labels[: len(lengths)], len(lengths)),
        word_ids=np.full(num_tokens, -1, dtype=np.int32),
        token_type_ids=None if types is None else np.resize(types[:num_tokens], num_tokens),
        num_truncated=0,
    )
    maker = dataclasses.replace(forward.maker, split=rows)
    return Forward(view=forward.view, maker=maker, source=None, deepest_prefix=-1)


@contextmanager
def _borrowed(parts: SizedParts) -> Iterator[None]:
    """Put the models into the last stage of the plan, and afterwards all as it was."""
    compute, plan = parts.compute, parts.plan
    states = random_states(parts.device)
    models = {id(model): model for model in (compute.model, compute.master)}.values()
    trainable = [(p, p.requires_grad) for model in models for p in model.parameters()]
    training = [(module, module.training) for model in models for module in model.modules()]
    threads = torch.get_num_threads()
    # On batches this small threads only wait for each other (measured 0.5 s on one of two cores
    # that were busy, 5 s on both).
    torch.set_num_threads(1)
    compute.enter(plan, plan.num_stages - 1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)
        for parameter, was_trainable in trainable:
            parameter.requires_grad_(was_trainable)
        for module, was_training in training:
            module.training = was_training
        restore_random_states(states, parts.device)


def held_tensors(compute: ComputeModel) -> Iterator[Tensor]:
    """Yield what the models hold all through a trial.

    Args:
        compute: The models.

    Yields:
        Parameters, buffers, and what is kept beside them; some twice.
    """
    for model in (compute.model, compute.master):
        yield from model.parameters()
        yield from model.buffers()
    for field in dataclasses.fields(compute):
        yield from _tensors(getattr(compute, field.name))


def _tensors(value: object) -> Iterator[Tensor]:
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, (tuple, list)):
        for item in value:
            yield from _tensors(item)


def _unique_mib(tensors: Iterator[Tensor]) -> float:
    sizes = {t.untyped_storage()._cdata: t.untyped_storage().nbytes() for t in tensors}
    return sum(sizes.values()) / _MIB
