"""What do the lowest blocks of a model give at several boundaries, in one pass over some rows?

The pass begins at the tokens or at activations that are stored already. Blocks hand on states of
the model's own type, which is the one that is stored, bf16 too: both ways give the same bits.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from automl_ft.models.packed_model import PackedModel
from automl_ft.models.padded_model import PaddedModel
from automl_ft.models.prefix import boundary_input
from automl_ft.trial.inputs import Inputs

__all__ = ["prefixes"]


@torch.no_grad()
def prefixes(
    view: PackedModel | PaddedModel,
    inputs: Inputs,
    boundaries: Iterable[int],
    stored: Tensor | None = None,
    num_stored: int = 0,
) -> dict[int, Tensor]:
    """Compute the activations at some boundaries; what lies above the highest is not computed.

    Args:
        view: The model, in eval mode.
        inputs: The rows.
        boundaries: Numbers of blocks, each above `num_stored`; one at least.
        stored: Activations of the lowest blocks, as `view.scores` takes them; None begins at the
            tokens.
        num_stored: Blocks that they stand for, fewer than all.

    Returns:
        By number of blocks what `view.prefix` gives.
    """
    *passed, last = sorted(boundaries)
    found: dict[int, Tensor] = {}
    with ExitStack() as stack:
        if stored is not None:
            begun = view.begun_with(inputs, stored, num_stored)  # type: ignore[arg-type]
            stack.enter_context(begun)
        for num_blocks in passed:
            stack.enter_context(_kept(view, inputs, num_blocks, found))
        found[last] = view.prefix(inputs, last)  # type: ignore[arg-type]
    return found


@contextmanager
def _kept(
    view: PackedModel | PaddedModel, inputs: Inputs, num_blocks: int, found: dict[int, Tensor]
) -> Iterator[None]:
    """Note what the block above a boundary is given; it computes as ever."""

    def keep(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        if num_blocks in found:
            return  # a block that shares its weights runs again
        states = boundary_input(args, kwargs)
        # A copy, as the block may change its input in place.
        found[num_blocks] = view.tokens_of(states, inputs)  # type: ignore[arg-type]

    block = view.model.get_submodule(view.layer_map.block_modules[num_blocks])
    handle = block.register_forward_pre_hook(keep, with_kwargs=True)
    try:
        yield
    finally:
        handle.remove()
