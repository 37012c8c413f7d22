"""How do rows become what a model is called with: packed end to end, or padded?"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from automl_ft.data.batches import Padding, collate
from automl_ft.data.encoding import EncodedRow, EncodedSplit
from automl_ft.models.packed_model import PackedInputs
from automl_ft.models.packing import Packing, pack, to_device
from automl_ft.models.padded_model import PaddedInputs
from automl_ft.models.vocabulary import Vocabulary

__all__ = ["InputMaker", "Inputs", "token_indices"]

Inputs = PackedInputs | PaddedInputs
"""What a model is called with."""
Augment = Callable[[EncodedRow, int], EncodedRow]
"""Changes a row, given its index."""


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class InputMaker:
    """Makes inputs of the rows of one split."""

    split: EncodedSplit
    """The rows."""
    padding: Padding
    """How rows are padded, where they are."""
    is_packed: bool
    """Whether rows are packed."""
    vocabulary: Vocabulary | None
    """The tokens in use, where the model's embedding is cut; with packed rows only."""
    device: torch.device
    """Where inputs go."""
    in_few_shapes: bool = False
    """Whether packed rows are filled up to one of a few shapes."""

    def make(self, rows: npt.NDArray[np.int64], augment: Augment | None = None) -> Inputs:
        """Make the inputs of some rows.

        Args:
            rows: Row numbers, shape (B,).
            augment: What changes a row; None leaves them.

        Returns:
            Packed or padded inputs, without labels.
        """
        if not self.is_packed:
            arrays = collate(self.split, rows, self.padding, augment)
            del arrays["labels"]
            arguments = {
                name: to_device(torch.from_numpy(array), self.device)
                for name, array in arrays.items()
            }
            places = torch.from_numpy(np.flatnonzero(arrays["attention_mask"]))
            return PaddedInputs(arguments=arguments, token_places=to_device(places, self.device))
        tokens = self._tokens(rows) if augment is None else self._augmented(rows, augment)
        ids, types, lengths = tokens
        packing = self._pack(ids, lengths)
        if self.vocabulary is not None:
            ids = self.vocabulary.lookup[ids]
        return PackedInputs(
            input_ids=self._filled(ids, packing.num_tokens),
            token_type_ids=None if types is None else self._filled(types, packing.num_tokens),
            packing=packing,
        )

    def labels(self, rows: npt.NDArray[np.int64]) -> Tensor:
        """Return the labels of some rows.

        Args:
            rows: Row numbers, shape (B,).

        Returns:
            Class ids, shape (B,), int64.
        """
        labels = np.asarray(self.split.labels[rows], dtype=np.int64)
        return to_device(torch.from_numpy(labels), self.device)

    def _pack(self, ids: npt.NDArray[np.int64], lengths: npt.NDArray[np.int64]) -> Packing:
        """Lay out rows."""
        packing = pack(lengths, self.device, in_few_shapes=self.in_few_shapes)
        ends = np.cumsum(lengths)
        # Decoders read a row's last token that is no padding, and know it by its id: where the end
        # of a sequence serves as padding, they read what comes before it.
        if not (ids[ends - 1] == self.padding.token_id).any():
            return packing
        starts = ends - lengths
        places = np.where(ids == self.padding.token_id, -1, np.arange(len(ids)))
        read = np.maximum(np.maximum.reduceat(places, starts), starts)
        return dataclasses.replace(packing, ends=to_device(torch.from_numpy(read), self.device))

    def _tokens(
        self, rows: npt.NDArray[np.int64]
    ) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64] | None, npt.NDArray[np.int64]]:
        """Return ids, types and lengths of rows as they are stored."""
        places, lengths = token_indices(self.split.offsets, rows)
        types = self.split.token_type_ids
        ids = np.asarray(self.split.input_ids[places], dtype=np.int64)
        return ids, None if types is None else types[places].astype(np.int64), lengths

    def _augmented(
        self, rows: npt.NDArray[np.int64], augment: Augment
    ) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64] | None, npt.NDArray[np.int64]]:
        changed = [augment(self.split.row(int(row)), int(row)) for row in rows]
        ids = np.concatenate([row.input_ids for row in changed]).astype(np.int64)
        found = [row.token_type_ids for row in changed if row.token_type_ids is not None]
        types = np.concatenate(found).astype(np.int64) if found else None
        lengths = np.asarray([len(row.input_ids) for row in changed], dtype=np.int64)
        return ids, types, lengths

    def _filled(self, values: npt.NDArray[np.int64], num_tokens: int) -> Tensor:
        """Return values with zeros up to a number of tokens, on the device."""
        filled = np.zeros(num_tokens, dtype=np.int64)
        filled[: len(values)] = values
        return to_device(torch.from_numpy(filled), self.device)


def token_indices(
    offsets: npt.NDArray[np.int64], rows: npt.NDArray[np.int64]
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """Return where the tokens of some rows lie, one row after the other.

    Args:
        offsets: Where each row begins, and the end, shape (num_rows + 1,).
        rows: Row numbers, shape (B,).

    Returns:
        Token numbers (tokens,) and the length of each row (B,).
    """
    starts = np.asarray(offsets[rows], dtype=np.int64)
    lengths = np.asarray(offsets[rows + 1], dtype=np.int64) - starts
    ends = np.cumsum(lengths)
    shift = np.repeat(starts - (ends - lengths), lengths)
    return np.arange(int(ends[-1])) + shift, lengths
