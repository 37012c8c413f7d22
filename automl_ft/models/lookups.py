"""Does a model look beyond the end of a table? Told before its device finds out.

A CPU refuses an index that is out of range. On a GPU it is a failed assertion in a kernel, after
which the process can do nothing more with it. Whoever tries what a model was not written for, such
as positions that begin elsewhere, does so under `CheckedLookups`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

__all__ = ["CheckedLookups"]

_aten = torch.ops.aten
_ALONG = frozenset(
    (
        _aten.gather,
        _aten.index_select,
        _aten.index_add,
        _aten.index_add_,
        _aten.index_copy,
        _aten.index_copy_,
        _aten.scatter,
        _aten.scatter_,
        _aten.scatter_add,
        _aten.scatter_add_,
    )
)
"""Called with a tensor, the dimension that is indexed, and the indices."""
_AT = frozenset((_aten.index, _aten.index_put, _aten.index_put_))
"""Called with a tensor and indices for each of its first dimensions, which may count from behind;
None for all of one."""
_INTEGERS = (torch.int64, torch.int32)


class CheckedLookups(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """While it is entered, an index out of range is an IndexError before any kernel sees it.

    Each look-up waits for the device, so this is for tries, not for training.
    """

    def __torch_dispatch__(
        self,
        func: Any,
        types: Sequence[type],
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        """Check the indices of one operator, then run it.

        Args:
            func: The operator.
            types: Kinds of tensors; not looked at.
            args: What it is called with.
            kwargs: The same, by name.

        Returns:
            What it returns.

        Raises:
            IndexError: An index is out of range.
        """
        for indices, lowest, size in _lookups(func.overloadpacket, args):
            _check(indices, lowest, size)
        return func(*args, **(kwargs or {}))


def _lookups(packet: Any, args: tuple[Any, ...]) -> Iterator[tuple[Tensor, int, int]]:
    """Yield the indices of an operator, the lowest that is right and the first too high."""
    if packet is _aten.embedding:
        yield args[1], 0, len(args[0])
    elif packet in _ALONG and args[0].ndim:
        yield args[2], 0, args[0].shape[args[1]]
    elif packet in _AT:
        place = 0
        for indices in args[1]:
            # Truth values stand for as many dimensions as they have themselves.
            is_mask = indices is not None and indices.dtype not in _INTEGERS
            if indices is not None and not is_mask:
                yield indices, -args[0].shape[place], args[0].shape[place]
            place += indices.ndim if is_mask else 1


def _check(indices: Tensor, lowest: int, size: int) -> None:
    if indices.device.type == "meta" or not indices.numel():
        return
    least, most = (int(bound) for bound in torch.aminmax(indices))
    if least < lowest or most >= size:
        raise IndexError(f"indices {least} to {most} into a table of {size}")
