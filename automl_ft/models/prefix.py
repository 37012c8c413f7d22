"""How is the output of a model's lowest blocks taken out, and put back in their place?

Both ways the architecture's own code runs: blocks below the boundary are passed over, and the
block above it is given the stored activations as its input.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from typing import Any

from torch import Tensor, nn
from transformers import PreTrainedModel

from automl_ft.models.layer_map import LayerMap

__all__ = [
    "boundary_input",
    "captured_output",
    "captured_prefix",
    "patched",
    "replaced_blocks",
    "replaced_prefix",
]


class _CapturedError(Exception):
    """Ends a forward pass once the wanted activations are there."""


@contextmanager
def patched(module: nn.Module, forward: Callable[..., Any]) -> Iterator[None]:
    """Give one module another forward for a while.

    Args:
        module: The module.
        forward: What it computes instead; takes what the module's own takes.
    """
    before = module.__dict__.get("forward")
    module.__dict__["forward"] = forward
    try:
        yield
    finally:
        if before is None:
            del module.__dict__["forward"]
        else:
            module.__dict__["forward"] = before


def boundary_input(args: tuple[Any, ...], kwargs: dict[str, Any]) -> Tensor:
    """Return the activations that a block is called with.

    Args:
        args: Its positional arguments.
        kwargs: Its others.

    Returns:
        The first argument, by position or by transformers' name.
    """
    value = args[0] if args else kwargs["hidden_states"]
    assert isinstance(value, Tensor)
    return value


def captured_prefix(
    model: PreTrainedModel, layer_map: LayerMap, num_blocks: int, run: Callable[[], object]
) -> Tensor:
    """Return what the block above a boundary is given; what follows is not computed.

    Args:
        model: The model.
        layer_map: Its parts.
        num_blocks: Blocks below the boundary, from 0 to one less than all.
        run: Calls the model.

    Returns:
        The activations, as the model passes them on.
    """
    block = model.get_submodule(layer_map.block_modules[num_blocks])
    found: list[Tensor] = []

    def stop(*args: Any, **kwargs: Any) -> None:
        found.append(boundary_input(args, kwargs))
        raise _CapturedError

    with patched(block, stop), suppress(_CapturedError):
        run()
    return found[0]


def captured_output(
    model: PreTrainedModel, layer_map: LayerMap, run: Callable[[], object]
) -> Tensor:
    """Return what the last block computes, before anything that follows the blocks.

    Args:
        model: The model.
        layer_map: Its parts.
        run: Calls the model.

    Returns:
        The activations, as the model passes them on; of the last run where one block runs often.
    """
    found: list[Tensor] = []

    def keep(module: nn.Module, args: object, output: Tensor | tuple[Tensor, ...]) -> None:
        found[:] = [output if isinstance(output, Tensor) else output[0]]

    block = model.get_submodule(layer_map.block_modules[-1])
    handle = block.register_forward_hook(keep)
    try:
        run()
    finally:
        handle.remove()
    return found[0]


@contextmanager
def replaced_blocks(model: PreTrainedModel, layer_map: LayerMap, output: Any) -> Iterator[None]:
    """Have all blocks of a model hand on one output while the block is open.

    Args:
        model: The model.
        layer_map: Its parts.
        output: What each of them returns.
    """
    with ExitStack() as stack:
        for name in layer_map.block_modules:
            block = model.get_submodule(name)
            stack.enter_context(patched(block, lambda *args, **kwargs: output))
        yield


@contextmanager
def replaced_prefix(
    model: PreTrainedModel,
    layer_map: LayerMap,
    num_blocks: int,
    hidden: Tensor,
    skipped_output: Callable[[Tensor], Any] = lambda hidden: hidden,
) -> Iterator[None]:
    """Have the model start from stored activations while the block is open.

    Args:
        model: The model.
        layer_map: Its parts.
        num_blocks: Blocks below the boundary, from 0 to one less than all.
        hidden: What `captured_prefix` returned for these rows.
        skipped_output: What a block that is passed over returns, given its input.
    """

    def skip(*args: Any, **kwargs: Any) -> Any:
        return skipped_output(boundary_input(args, kwargs))

    boundary = model.get_submodule(layer_map.block_modules[num_blocks])

    num_runs = 0

    def give(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        nonlocal num_runs
        num_runs += 1
        if num_runs > 1:  # a block that shares its weights goes on from its own output
            return None
        if args:
            return (hidden, *args[1:]), kwargs
        return args, {**kwargs, "hidden_states": hidden}

    with ExitStack() as stack:
        for name in layer_map.block_modules[:num_blocks]:
            stack.enter_context(patched(model.get_submodule(name), skip))
        handle = boundary.register_forward_pre_hook(give, with_kwargs=True)
        stack.callback(handle.remove)
        yield
