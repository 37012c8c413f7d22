"""Which stored activations stand in for the frozen blocks of a trial?

Each array is computed by the very model and in the very precision in which the trial would compute
it at every step, once, and kept for all trials that share it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from importlib.metadata import version
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from automl_ft.data.encoding import EncodedSplit
from automl_ft.models.packed_model import PackedInputs, PackedModel
from automl_ft.models.packing import to_device
from automl_ft.models.padded_model import PaddedModel
from automl_ft.trial.inputs import InputMaker, Inputs, token_indices
from automl_ft.trial.memory import is_out_of_memory
from automl_ft.trial.prefix_cache import CacheKey, PrefixCache, as_tensor

__all__ = ["ActivationSource", "Activations", "cache_versions"]

_ROWS = 64
"""Rows that are computed at once while an array is filled."""


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Activations:
    """The activations of one split at one boundary."""

    values: Tensor
    """One row for each token of the split, or for each of its rows; on the CPU or the device."""
    offsets: npt.NDArray[np.int64] | None
    """Where each row's tokens begin; None where the states that the head reads are held."""
    num_blocks: int
    """Blocks below the boundary."""

    def take(self, rows: npt.NDArray[np.int64], inputs: Inputs) -> Tensor:
        """Return the activations of some rows.

        Args:
            rows: Row numbers, shape (B,).
            inputs: The inputs of these rows.

        Returns:
            What the model's views take as `hidden`.
        """
        if self.offsets is None:
            return self._select(rows)
        places, _ = token_indices(self.offsets, rows)
        if isinstance(inputs, PackedInputs):
            # Filler repeats the first token; nothing ever reads it.
            filler = np.full(inputs.packing.num_tokens - len(places), places[0])
            places = np.concatenate([places, filler])
        return to_device(self._select(places), _device_of(inputs))

    def _select(self, places: npt.NDArray[np.int64]) -> Tensor:
        indices = to_device(torch.from_numpy(places), self.values.device)
        return self.values.index_select(0, indices)


def _device_of(inputs: Inputs) -> torch.device:
    if isinstance(inputs, PackedInputs):
        return inputs.input_ids.device
    return inputs.valid.device


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class ActivationSource:
    """Opens the activations of one split under one model."""

    cache: PrefixCache
    """Where they are kept."""
    split: EncodedSplit
    """The rows."""
    key: Callable[[int, str, str], CacheKey]
    """From blocks, dtype and kind to what the array depends on."""
    maker: InputMaker
    """Makes the model's inputs."""
    widths: dict[int, int] = field(default_factory=dict)
    """By number of blocks the width of their activations, as far as this process knows."""

    def open(
        self,
        view: PackedModel | PaddedModel,
        num_blocks: int,
        *,
        is_frozen_above: bool,
        may_fill: bool = True,
    ) -> Activations | None:
        """Return the activations at a boundary; compute them where they are not there yet.

        Args:
            view: The model, whose blocks below the boundary are as they were pretrained.
            num_blocks: Blocks below the boundary.
            is_frozen_above: Whether all blocks are frozen, so that the states that the head
                reads will do.
            may_fill: Whether they are computed if they are not there.

        Returns:
            The activations; None where there is no room for them, on the disk or, while they are
            computed, in memory.
        """
        pooled = is_frozen_above and num_blocks == view.layer_map.num_layers
        dtype = str(view.model.dtype).removeprefix("torch.")
        num_rows = len(self.split) if pooled else self.split.num_tokens

        def fill(array: npt.NDArray[Any]) -> None:
            self._fill_in_eval(as_tensor(array, dtype), view, num_blocks, pooled=pooled)

        kind = "pooled" if pooled else "tokens"
        width = self._width(view, num_blocks)
        key = self.key(num_blocks, dtype, kind)
        try:
            array = self.cache.open(key, num_rows, width, fill if may_fill else None)
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
            array = None  # the trial goes on without, in the micro-batches that fit
        if array is None:
            return None
        values = as_tensor(array, dtype)
        if pooled:
            values = values.to(self.maker.device)
        offsets = None if pooled else np.asarray(self.split.offsets)
        return Activations(values=values, offsets=offsets, num_blocks=num_blocks)

    def _width(self, view: PackedModel | PaddedModel, num_blocks: int) -> int:
        if num_blocks not in self.widths:
            inputs = self.maker.make(np.zeros(1, dtype=np.int64))
            hidden = view.prefix(inputs, num_blocks)  # type: ignore[arg-type]
            self.widths[num_blocks] = hidden.shape[1]
        return self.widths[num_blocks]

    def _fill_in_eval(
        self, values: Tensor, view: PackedModel | PaddedModel, num_blocks: int, *, pooled: bool
    ) -> None:
        training = {module for module in view.model.modules() if module.training}
        view.model.eval()  # type: ignore[no-untyped-call]
        try:
            self._fill(values, view, num_blocks, pooled=pooled)
        finally:
            for module in training:
                module.training = True

    def _fill(
        self, values: Tensor, view: PackedModel | PaddedModel, num_blocks: int, *, pooled: bool
    ) -> None:
        """Compute all rows; where memory runs out, in half as many at once."""
        size = _ROWS
        order = np.argsort(-self.split.lengths, kind="stable")  # the longest batch comes first
        start = 0
        while start < len(order):
            rows = order[start : start + size]
            try:
                hidden = view.prefix(self.maker.make(rows), num_blocks)  # type: ignore[arg-type]
            except (RuntimeError, MemoryError) as error:
                if not is_out_of_memory(error) or size == 1:
                    raise
                size //= 2
                continue
            places = rows if pooled else token_indices(self.split.offsets, rows)[0]
            values[torch.from_numpy(places)] = hidden[: len(places)].to(values.device)
            start += size


def cache_versions(device: torch.device) -> str:
    """Return what computes activations.

    Args:
        device: Where.

    Returns:
        Names and versions, and the kind of device.
    """
    names = ("torch", "transformers", "automl-ft")
    return " ".join([*(f"{name} {version(name)}" for name in names), device.type])
