"""What stands for CUDA graphs on a CPU."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

__all__ = ["BrokenRecorder", "TapeRecorder"]

WAITS = ("_local_scalar_dense", "nonzero", "_unique2", "masked_select")
"""Operators whose result a GPU would have to be waited for."""


def tensors_in(value: Any) -> Iterator[Tensor]:
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, (tuple, list)):
        for item in value:
            yield from tensors_in(item)


class Tape(TorchDispatchMode):
    """Keeps the operators that run, with the very tensors that they work on."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[tuple[Any, tuple[Any, ...], dict[str, Any], Any]] = []
        self.before: dict[int, tuple[Any, Any]] = {}
        self.made: set[int] = set()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        if func.overloadpacket.__name__ in WAITS:
            raise RuntimeError(f"operation not permitted when stream is capturing: {func}")
        for tensor in written(func, args, kwargs):
            storage = tensor.untyped_storage()
            if storage._cdata not in self.made:
                self.before.setdefault(storage._cdata, (storage, storage.clone()))
        out = func(*args, **kwargs)
        if not returns_an_alias(func):
            self.made |= {t.untyped_storage()._cdata for t in tensors_in(out)}
        self.calls.append((func, args, kwargs, out))
        return out


def written(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> list[Tensor]:
    """Return the arguments that an operator changes."""
    found = []
    for place, argument in enumerate(func._schema.arguments):
        if argument.alias_info is not None and argument.alias_info.is_write:
            value = args[place] if place < len(args) else kwargs.get(argument.name)
            found += tensors_in(value)
    return found


def returns_an_alias(func: Any) -> bool:
    return any(result.alias_info is not None for result in func._schema.returns)


class TapeRecorder:
    """Replays operators without the Python that called them, on the tensors of the recording.

    As a CUDA graph it draws new random numbers at each replay, and leaves no trace of having been
    recorded; unlike one it has to run the work to learn what it is.
    """

    def __init__(self) -> None:
        self.num_recorded = self.num_replayed = self.num_released = 0

    def record(self, work: Callable[[], None]) -> Callable[[], None]:
        state, tape = torch.get_rng_state(), Tape()
        try:
            with tape:
                work()
        finally:
            for storage, before in tape.before.values():
                storage.copy_(before)
            torch.set_rng_state(state)
        self.num_recorded += 1

        @torch.no_grad()
        def replay() -> None:
            self.num_replayed += 1
            for func, args, kwargs, out in tape.calls:
                if written(func, args, kwargs):
                    func(*args, **kwargs)
                elif not returns_an_alias(func):
                    again = func(*args, **kwargs)
                    for into, value in zip(tensors_in(out), tensors_in(again), strict=True):
                        into.copy_(value)

        return replay

    def release(self) -> None:
        self.num_released += 1


class BrokenRecorder:
    """Fails after the work has begun, as a recording does that meets a copy from the CPU."""

    def __init__(self) -> None:
        self.num_tried = 0

    def record(self, work: Callable[[], None]) -> Callable[[], None]:
        self.num_tried += 1
        TapeRecorder().record(work)
        raise RuntimeError("operation not permitted\nwhen stream is capturing")

    def release(self) -> None:
        pass
