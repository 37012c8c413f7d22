"""How does a model keep only what enters its blocks, and compute the rest again when it is needed?

Gradient checkpointing (Chen et al. 2016, arXiv 1604.06174) for every architecture of the layer map,
block by block. transformers' own is not used: several architectures lack it, and it knows nothing
of dropout masks that do not come from torch's generator.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from automl_ft.models.dropout import DropoutStream
from automl_ft.models.layer_map import LayerMap

__all__ = ["disable_checkpointing", "enable_checkpointing"]


class _Checkpointed:
    """Takes the place of a block's forward."""

    def __init__(self, block: nn.Module, stream: DropoutStream | None) -> None:
        self._own: Callable[..., Any] = block.forward
        self._block = block
        self._stream = stream

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        # Frozen blocks are in eval mode and keep nothing in any case.
        if not (self._block.training and torch.is_grad_enabled()):
            return self._own(*args, **kwargs)
        return checkpoint(
            self._own, *args, use_reentrant=False, context_fn=self._contexts, **kwargs
        )

    def _contexts(self) -> tuple[AbstractContextManager[None], AbstractContextManager[None]]:
        """Return what surrounds the first run and the second, which draws the same masks."""
        if self._stream is None:
            return nullcontext(), nullcontext()
        return nullcontext(), _replayed(self._stream, self._stream.position)


@contextmanager
def _replayed(stream: DropoutStream, position: Any) -> Iterator[None]:
    before = stream.position
    stream.go_to(position)
    try:
        yield
    finally:
        stream.go_to(before)


def enable_checkpointing(
    model: nn.Module, layer_map: LayerMap, stream: DropoutStream | None
) -> None:
    """Have the blocks of a model compute their inside again in the backward pass, in place.

    Scores and gradients stay the same, dropout included. Blocks in eval mode run as before.

    Args:
        model: The model; its blocks' `forward` is replaced.
        layer_map: Its parts.
        stream: Where dropout masks come from; None where torch's generator draws all of them.
    """
    disable_checkpointing(model, layer_map)
    for name in layer_map.block_modules:
        block = model.get_submodule(name)
        block.__dict__["forward"] = _Checkpointed(block, stream)


def disable_checkpointing(model: nn.Module, layer_map: LayerMap) -> None:
    """Undo `enable_checkpointing`; a model without it stays as it is.

    Args:
        model: The model.
        layer_map: Its parts.
    """
    for name in layer_map.block_modules:
        inside = model.get_submodule(name).__dict__
        if isinstance(inside.get("forward"), _Checkpointed):
            del inside["forward"]
