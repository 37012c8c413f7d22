"""How does a whole classifier give scores for packed rows, from their tokens or from a prefix?

The base runs over all tokens as one row; the states that the head reads are taken out after the
last block (or after the base, where the architecture leaves no other way) and go on as a batch of
rows of one token.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from automl_ft.models.classifier import at_positions, head_logits, one_token_each
from automl_ft.models.dropout import DropoutStream
from automl_ft.models.last_block import ReadBlock
from automl_ft.models.layer_map import LayerMap
from automl_ft.models.packed import attention_over
from automl_ft.models.packing import Packing
from automl_ft.models.prefix import (
    boundary_input,
    captured_output,
    captured_prefix,
    patched,
    replaced_blocks,
    replaced_prefix,
)

__all__ = ["PackedInputs", "PackedModel", "PackedTraits"]


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class PackedInputs:
    """The tokens of some rows, end to end."""

    input_ids: Tensor
    """Token ids, shape (T,), int64; any token in the filler."""
    token_type_ids: Tensor | None
    """Their types, where the model asks for them, shape (T,), int64."""
    packing: Packing
    """Where rows lie."""


@dataclass(frozen=True, kw_only=True, slots=True)
class PackedTraits:
    """How one architecture is run packed; found by `models.capabilities`."""

    reads: str
    """Which position the head reads: `first`, `last`, or `all`."""
    gathers_at_block: bool
    """Whether these states are taken out after the last block, rather than after the base."""
    position_offset: int
    """What is added to positions (RoBERTa counts from its padding token's id + 1)."""
    last_block_runs: int
    """How often the last block runs for one batch (ALBERT shares one)."""


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class PackedModel:
    """A classifier that runs on packed rows; a view, the model itself stays usable as ever."""

    model: PreTrainedModel
    """The model, with packed attention."""
    layer_map: LayerMap
    """Its parts."""
    traits: PackedTraits
    """How it runs packed."""
    read_block: ReadBlock | None
    """The parts of its top block, to compute it only where the head reads; None in full."""
    stream: DropoutStream | None
    """Where attention masks come from; None for torch's own generator."""
    by_rows: bool = True
    """Whether attention goes by `models.row_attention` where it can."""

    @contextmanager
    def scores(
        self, inputs: PackedInputs, hidden: Tensor | None = None, num_blocks: int = 0
    ) -> Iterator[Tensor]:
        """Compute scores; the backward pass belongs inside the block.

        Args:
            inputs: The rows.
            hidden: Stored activations of the lowest blocks, (T, width); or (B, width) where
                `num_blocks` is all of them.
            num_blocks: How many blocks `hidden` stands for.

        Yields:
            Scores, shape (B, num_labels).
        """
        if hidden is not None and num_blocks == self.layer_map.num_layers:
            yield self.scores_of_pooled(hidden)
            return
        with ExitStack() as stack:
            stack.enter_context(self._attention(inputs, self.stream))
            if hidden is not None:
                stack.enter_context(self.begun_with(inputs, hidden, num_blocks))
            output = self._run_base(inputs, stack)
            yield self._head(output, inputs)

    @contextmanager
    def begun_with(self, inputs: PackedInputs, hidden: Tensor, num_blocks: int) -> Iterator[None]:
        """Have the model start from stored activations while the block is open.

        Args:
            inputs: The rows that it is run on.
            hidden: Activations of the lowest blocks, (T, width).
            num_blocks: How many blocks they stand for, fewer than all.
        """
        with replaced_prefix(self.model, self.layer_map, num_blocks, hidden[None]):
            yield

    def tokens_of(self, states: Tensor, inputs: PackedInputs) -> Tensor:
        """Take the tokens out of what a block is given.

        Args:
            states: As the model passes them on, (1, T, width).
            inputs: The rows.

        Returns:
            A copy, (T, width).
        """
        return states[0].clone()

    @torch.no_grad()
    def prefix(self, inputs: PackedInputs, num_blocks: int) -> Tensor:
        """Compute the activations of the lowest blocks.

        Args:
            inputs: The rows.
            num_blocks: Blocks, from 0 to all of them.

        Returns:
            (T, width); for all blocks the states that the head reads, (B, width).
        """
        with ExitStack() as stack:
            stack.enter_context(self._attention(inputs, None))
            if num_blocks < self.layer_map.num_layers:
                run = lambda: self._call_base(inputs)  # noqa: E731 - it is only passed on
                return captured_prefix(self.model, self.layer_map, num_blocks, run)[0]
            if not self.traits.gathers_at_block:
                run = lambda: self._call_base(inputs)  # noqa: E731 - it is only passed on
                states = captured_output(self.model, self.layer_map, run)[0]
                return states.index_select(0, self._read(inputs.packing))
            found: list[Tensor] = []
            self._gather_at_block(inputs, stack, found)
            self._call_base(inputs)
            return found[-1][:, 0]

    def _attention(
        self, inputs: PackedInputs, stream: DropoutStream | None
    ) -> AbstractContextManager[None]:
        return attention_over(inputs.packing, stream, by_rows=self.by_rows)

    def _run_base(self, inputs: PackedInputs, stack: ExitStack) -> Any:
        if self.traits.gathers_at_block:
            self._gather_at_block(inputs, stack, [])
            return self._call_base(inputs)
        return self._gathered(self._call_base(inputs), inputs)

    def _call_base(self, inputs: PackedInputs) -> Any:
        arguments = {
            "input_ids": inputs.input_ids[None],
            "position_ids": inputs.packing.positions[None] + self.traits.position_offset,
            # Without a mask transformers looks at the positions for rows that are packed, which a
            # GPU would have to be waited for; what the mask says is up to packed attention.
            "attention_mask": torch.ones_like(inputs.input_ids)[None],
        }
        if inputs.token_type_ids is not None:
            arguments["token_type_ids"] = inputs.token_type_ids[None]
        return self.model.base_model(**arguments)

    def _read(self, packing: Packing) -> Tensor:
        return packing.ends if self.traits.reads == "last" else packing.starts

    def _gather_at_block(self, inputs: PackedInputs, stack: ExitStack, found: list[Tensor]) -> None:
        """Have the last block hand on only what the head reads, as rows of one token."""
        block = self._last_block()
        read = self._read(inputs.packing)
        own: Callable[..., Any] = block.forward
        runs = 0

        def forward(*args: Any, **kwargs: Any) -> Any:
            nonlocal runs
            runs += 1
            if runs < self.traits.last_block_runs:
                return own(*args, **kwargs)
            if self.read_block is not None:
                output = self.read_block.forward(boundary_input(args, kwargs), inputs.packing, read)
            else:
                output = own(*args, **kwargs)[0].index_select(0, read)[:, None]
            found.append(output)
            return output

        stack.enter_context(patched(block, forward))

    def _gathered(self, output: Any, inputs: PackedInputs) -> Any:
        hidden = output.last_hidden_state[0]
        if self.traits.reads == "all":
            return at_positions(output, inputs.packing.pad(hidden))
        return at_positions(output, hidden.index_select(0, self._read(inputs.packing))[:, None])

    def _head(self, output: Any, inputs: PackedInputs) -> Tensor:
        packing = inputs.packing
        if self.traits.reads != "all":
            return head_logits(self.model, output, self._one_each(packing.num_rows))
        ids = packing.pad(inputs.input_ids[:, None])[:, :, 0]
        mask = packing.whole.valid.to(torch.int64)
        return head_logits(self.model, output, {"input_ids": ids, "attention_mask": mask})

    def scores_of_pooled(self, pooled: Tensor) -> Tensor:
        """Run what follows the last block.

        Args:
            pooled: The states that the head reads, (B, width).

        Returns:
            Scores, shape (B, num_labels).
        """
        with replaced_blocks(self.model, self.layer_map, pooled[:, None]):
            logits: Tensor = self.model(**self._one_each(len(pooled))).logits
            return logits

    def _one_each(self, num_rows: int) -> dict[str, Tensor]:
        padding = self.model.config.get_text_config().pad_token_id
        return one_token_each(num_rows, padding, self.model.device)

    def _last_block(self) -> nn.Module:
        return self.model.get_submodule(self.layer_map.block_modules[-1])
