"""Which stored activations stand in for the frozen blocks of a trial?

Each array is computed by the very model and in the very precision in which the trial would compute
it at every step, once, and kept for all trials that share it. A pass over the rows begins at the
deepest array that is there, and fills on its way the others that the trial will need.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
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
from automl_ft.trial.boundaries import prefixes
from automl_ft.trial.inputs import InputMaker, Inputs, token_indices
from automl_ft.trial.memory import is_out_of_memory
from automl_ft.trial.precision import training_products
from automl_ft.trial.prefix_cache import CacheKey, PrefixCache, as_tensor

__all__ = ["ActivationSource", "Activations", "cache_versions", "most_filled_rows"]


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Activations:
    """The activations of one split at one boundary."""

    values: Tensor
    """One row for each token of the split, or for each of its rows; on the CPU or the device."""
    offsets: npt.NDArray[np.int64] | None
    """Where each row's tokens begin; None where the states that the head reads are held."""
    num_blocks: int
    """Blocks below the boundary."""
    is_whole: Callable[[], bool] = lambda: True
    """Whether they can still be read."""

    @property
    def is_pooled(self) -> bool:
        """Whether they hold one state for each row: the one that the head reads."""
        return self.offsets is None

    def pooled(self, rows: npt.NDArray[np.int64]) -> Tensor:
        """Return the states that the head reads.

        Args:
            rows: Row numbers, shape (B,).

        Returns:
            Shape (B, width); only of activations that are pooled.
        """
        return self._select(rows)

    def take(self, rows: npt.NDArray[np.int64], inputs: Inputs) -> Tensor:
        """Return the activations of some rows.

        Args:
            rows: Row numbers, shape (B,).
            inputs: The inputs of these rows.

        Returns:
            What the model's views take as `hidden`.
        """
        if self.offsets is None:
            return self.pooled(rows)
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


def most_filled_rows(device: str) -> int:
    """Return how many rows are computed at once where memory is no question.

    Args:
        device: The kind of device.

    Returns:
        64 on a CPU, 256 elsewhere.
    """
    return 64 if device == "cpu" else 256


@dataclass(kw_only=True, slots=True, eq=False)
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
    precision: str = "fp32"
    """In which they are computed, as steps are; `tf32` shortens factors on a GPU."""
    rows_at_once: int | None = None
    """Rows that are computed at once, set by `trial.sizing`; None for `most_filled_rows`. Halved
    where memory runs out."""
    on_shortage: Callable[[int], None] | None = None
    """Told where memory ran out how many rows are tried next, before they are."""
    has_filled: bool = False
    """Whether rows were computed here to be stored."""
    widths: dict[int, int] = field(default_factory=dict)
    """By number of blocks the width of their activations, as far as this process knows."""

    def open(
        self,
        view: PackedModel | PaddedModel,
        num_blocks: int,
        *,
        later: Sequence[int] = (),
        may_fill: bool = True,
    ) -> Activations | None:
        """Return the activations at a boundary; compute them where they are not there yet.

        Args:
            view: The model, whose blocks below the boundary are as they were pretrained.
            num_blocks: Blocks below the boundary; where that is all of them, the states that the
                head reads are held.
            later: Lower boundaries, which are needed in time; filled in the pass that fills this
                one, if there is one and if there is room.
            may_fill: Whether they are computed if they are not there.

        Returns:
            The activations, or else those of the highest boundary below that are there. None where
            there are none and no room for them, on the disk or, while they are computed, in memory.
        """
        try:
            array = self._array(view, num_blocks, later, {}) if may_fill else None
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
            array = None  # the trial goes on without, in the micro-batches that fit
        if array is not None:
            return self._activations(view, num_blocks, array)
        return self._stored(view, num_blocks)

    def _array(
        self,
        view: PackedModel | PaddedModel,
        num_blocks: int,
        later: Sequence[int],
        begun: Mapping[int, Tensor],
    ) -> npt.NDArray[Any] | None:
        """Open an array; while it is filled, the next one, until all are there to be filled.

        Always from the top down: processes that wait for each other's arrays never do so in a ring.
        """
        is_filled = False

        def fill(array: npt.NDArray[Any]) -> None:
            nonlocal is_filled
            self._begin(view, later, {**begun, num_blocks: as_tensor(array, _dtype(view))})
            is_filled = True

        array = self._look(view, num_blocks, fill)
        if begun and not is_filled:  # it was there, or there is no room for it
            self._begin(view, later, begun)
        return array

    def _begin(
        self, view: PackedModel | PaddedModel, later: Sequence[int], begun: Mapping[int, Tensor]
    ) -> None:
        if later:
            self._array(view, later[0], later[1:], begun)
        else:
            self._fill_in_eval(view, begun)

    def _stored(self, view: PackedModel | PaddedModel, highest: int) -> Activations | None:
        """Return the activations of the highest boundary up to one that are there."""
        for num_blocks in range(highest, 0, -1):
            array = self._look(view, num_blocks, None)
            if array is not None:
                return self._activations(view, num_blocks, array)
        return None

    def _look(
        self,
        view: PackedModel | PaddedModel,
        num_blocks: int,
        fill: Callable[[npt.NDArray[Any]], None] | None,
    ) -> npt.NDArray[Any] | None:
        pooled = _is_pooled(view, num_blocks)
        num_rows = len(self.split) if pooled else self.split.num_tokens
        dtype = "tf32" if self.precision == "tf32" else _dtype(view)
        key = self.key(num_blocks, dtype, "pooled" if pooled else "tokens")
        return self.cache.open(key, num_rows, self._width(view, num_blocks), fill)

    def _activations(
        self, view: PackedModel | PaddedModel, num_blocks: int, array: npt.NDArray[Any]
    ) -> Activations:
        values, offsets = as_tensor(array, _dtype(view)), None
        if _is_pooled(view, num_blocks):
            values = values.to(self.maker.device)
        else:
            offsets = np.asarray(self.split.offsets)
        is_whole = partial(self.cache.is_whole, array)
        return Activations(values=values, offsets=offsets, num_blocks=num_blocks, is_whole=is_whole)

    def _width(self, view: PackedModel | PaddedModel, num_blocks: int) -> int:
        if num_blocks not in self.widths:
            inputs = self.maker.make(np.zeros(1, dtype=np.int64))
            hidden = view.prefix(inputs, num_blocks)  # type: ignore[arg-type]
            self.widths[num_blocks] = hidden.shape[1]
        return self.widths[num_blocks]

    def _fill_in_eval(self, view: PackedModel | PaddedModel, arrays: Mapping[int, Tensor]) -> None:
        training = {module for module in view.model.modules() if module.training}
        view.model.eval()  # type: ignore[no-untyped-call]
        try:
            with training_products(self.precision, self.maker.device):
                for part, begin in self._passes(view, arrays):
                    self._fill(view, part, begin)
        finally:
            for module in training:
                module.training = True

    def _passes(
        self, view: PackedModel | PaddedModel, arrays: Mapping[int, Tensor]
    ) -> Iterator[tuple[dict[int, Tensor], Activations | None]]:
        """Divide arrays by where a pass that fills them begins; mostly that is one pass.

        It begins at what is stored at the highest boundary below, or else at the tokens.
        """
        missing = sorted(arrays, reverse=True)
        while missing:
            begin = self._stored(view, missing[0] - 1)
            lowest = 0 if begin is None else begin.num_blocks
            yield {number: arrays[number] for number in missing if number > lowest}, begin
            missing = [number for number in missing if number < lowest]

    def _fill(
        self,
        view: PackedModel | PaddedModel,
        arrays: Mapping[int, Tensor],
        begin: Activations | None,
    ) -> None:
        """Compute all rows; where memory runs out, in half as many at once."""
        size = self.rows_at_once or most_filled_rows(self.maker.device.type)
        order = np.argsort(-self.split.lengths, kind="stable")  # the longest batch comes first
        self.has_filled, start = True, 0
        while start < len(order):
            rows = order[start : start + size]
            found = self._tried(view, rows, arrays, begin)
            if found is None:
                self.rows_at_once = size = (len(rows) + 1) // 2
                if self.on_shortage is not None:
                    self.on_shortage(size)
                continue
            for num_blocks, hidden in found.items():
                pooled = _is_pooled(view, num_blocks)
                places = rows if pooled else token_indices(self.split.offsets, rows)[0]
                values = arrays[num_blocks]
                values[torch.from_numpy(places)] = hidden[: len(places)].to(values.device)
            start += size

    def _tried(
        self,
        view: PackedModel | PaddedModel,
        rows: npt.NDArray[np.int64],
        boundaries: Iterable[int],
        begin: Activations | None,
    ) -> dict[int, Tensor] | None:
        """Compute some rows; None where memory ran out and fewer may do."""
        try:
            return self._compute(view, rows, boundaries, begin)
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error) or len(rows) == 1:
                raise
        return None  # only here, where the exception no longer holds the tensors

    def _compute(
        self,
        view: PackedModel | PaddedModel,
        rows: npt.NDArray[np.int64],
        boundaries: Iterable[int],
        begin: Activations | None,
    ) -> dict[int, Tensor]:
        inputs = self.maker.make(rows)
        if begin is None or not begin.is_whole():
            return prefixes(view, inputs, boundaries)
        return prefixes(view, inputs, boundaries, begin.take(rows, inputs), begin.num_blocks)


def _dtype(view: PackedModel | PaddedModel) -> str:
    return str(view.model.dtype).removeprefix("torch.")


def _is_pooled(view: PackedModel | PaddedModel, num_blocks: int) -> bool:
    """Tell whether the states that the head reads will do: no block is left to read the others."""
    return num_blocks == view.layer_map.num_layers


def cache_versions(device: torch.device) -> str:
    """Return what computes activations.

    Args:
        device: Where.

    Returns:
        Names and versions, and the kind of device.
    """
    names = ("torch", "transformers", "automl-ft")
    return " ".join([*(f"{name} {version(name)}" for name in names), device.type])
