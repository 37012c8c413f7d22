"""How does a whole classifier give scores for padded rows, from their tokens or from a prefix?

The plain way, open to every architecture.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from automl_ft.models.classifier import one_token_each
from automl_ft.models.layer_map import LayerMap
from automl_ft.models.prefix import (
    captured_output,
    captured_prefix,
    replaced_blocks,
    replaced_prefix,
)

__all__ = ["PaddedInputs", "PaddedModel", "PaddedTraits"]


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class PaddedInputs:
    """Some rows, filled up to the longest."""

    arguments: dict[str, Tensor]
    """What the model is called with, each (B, S), int64."""
    token_places: Tensor | None = None
    """Where tokens lie among all B * S places, (tokens,), int64; None where nobody said, and a GPU
    must be waited for to find out."""

    @property
    def places(self) -> Tensor:
        """Where tokens lie among all B * S places, (tokens,)."""
        if self.token_places is not None:
            return self.token_places
        return self.valid.flatten().nonzero()[:, 0]

    @property
    def valid(self) -> Tensor:
        """Which places hold tokens, shape (B, S), bool."""
        return self.arguments["attention_mask"].bool()


@dataclass(frozen=True, kw_only=True, slots=True)
class PaddedTraits:
    """How one architecture hands states from block to block; found by `models.capabilities`."""

    reads: str
    """Which position the head reads: `first`, `last`, or `all`."""
    is_length_first: bool
    """Whether states are (S, B, width) between blocks, as XLNet's are."""
    output_length: int | None
    """How many values a block returns; None where it returns the states alone."""


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class PaddedModel:
    """A classifier that runs on padded rows; a view, the model itself stays usable as ever."""

    model: PreTrainedModel
    """The model."""
    layer_map: LayerMap
    """Its parts."""
    traits: PaddedTraits
    """How it hands states on."""

    @contextmanager
    def scores(
        self, inputs: PaddedInputs, hidden: Tensor | None = None, num_blocks: int = 0
    ) -> Iterator[Tensor]:
        """Compute scores; the backward pass belongs inside the block.

        Args:
            inputs: The rows.
            hidden: Stored activations of the lowest blocks, one row for each token, (tokens,
                width); or (B, width) where `num_blocks` is all of them.
            num_blocks: How many blocks `hidden` stands for.

        Yields:
            Scores, shape (B, num_labels).
        """
        if hidden is None:
            yield self.model(**inputs.arguments).logits
        elif num_blocks == self.layer_map.num_layers:
            yield self.scores_of_pooled(hidden)
        else:
            with self.begun_with(inputs, hidden, num_blocks):
                yield self.model(**inputs.arguments).logits

    @contextmanager
    def begun_with(self, inputs: PaddedInputs, hidden: Tensor, num_blocks: int) -> Iterator[None]:
        """Have the model start from stored activations while the block is open.

        Args:
            inputs: The rows that it is run on.
            hidden: Activations of the lowest blocks, (tokens, width).
            num_blocks: How many blocks they stand for, fewer than all.
        """
        states = self._padded(hidden, inputs)
        with replaced_prefix(self.model, self.layer_map, num_blocks, states, self._skipped):
            yield

    def tokens_of(self, states: Tensor, inputs: PaddedInputs) -> Tensor:
        """Take the tokens out of what a block is given.

        Args:
            states: As the model passes them on.
            inputs: The rows.

        Returns:
            A copy, one row for each token, (tokens, width).
        """
        return self._rows_first(states).flatten(0, 1).index_select(0, inputs.places)

    @torch.no_grad()
    def prefix(self, inputs: PaddedInputs, num_blocks: int) -> Tensor:
        """Compute the activations of the lowest blocks.

        Args:
            inputs: The rows.
            num_blocks: Blocks, from 0 to all of them.

        Returns:
            One row for each token, (tokens, width); for all blocks the states that the head
            reads, (B, width).
        """
        run = lambda: self.model.base_model(**inputs.arguments)  # noqa: E731 - only passed on
        if num_blocks == self.layer_map.num_layers:
            states = captured_output(self.model, self.layer_map, run)
            return self._at_read(self._rows_first(states), inputs)
        states = captured_prefix(self.model, self.layer_map, num_blocks, run)
        return self.tokens_of(states, inputs)

    def _padded(self, hidden: Tensor, inputs: PaddedInputs) -> Tensor:
        shape = inputs.arguments["attention_mask"].shape
        states = hidden.new_zeros((shape.numel(), hidden.shape[1]))
        states = states.index_copy(0, inputs.places, hidden).view(*shape, -1)
        return self._rows_first(states).contiguous()

    def _rows_first(self, states: Tensor) -> Tensor:
        """Turn states as the model passes them on into (B, S, width), and back."""
        return states.transpose(0, 1) if self.traits.is_length_first else states

    def _skipped(self, hidden: Tensor) -> Any:
        length = self.traits.output_length
        return hidden if length is None else (hidden, *[None] * (length - 1))

    def _at_read(self, hidden: Tensor, inputs: PaddedInputs) -> Tensor:
        valid = inputs.valid
        if self.traits.reads == "last":
            # As decoders do it: a token that serves as padding too does not count.
            padding = self.model.config.get_text_config().pad_token_id
            places = torch.arange(valid.shape[1], device=valid.device)
            is_read = valid & (inputs.arguments["input_ids"] != padding)
            read = torch.where(is_read, places, -1).argmax(1)
        else:
            read = valid.to(torch.int64).argmax(1)
        return hidden[torch.arange(len(hidden), device=valid.device), read]

    def scores_of_pooled(self, pooled: Tensor) -> Tensor:
        """Run what follows the last block.

        Args:
            pooled: The states that the head reads, (B, width).

        Returns:
            Scores, shape (B, num_labels).
        """
        padding = self.model.config.get_text_config().pad_token_id
        output = self._skipped(self._rows_first(pooled[:, None]))
        with replaced_blocks(self.model, self.layer_map, output):
            inputs = one_token_each(len(pooled), padding, self.model.device)
            logits: Tensor = self.model(**inputs).logits
            return logits
