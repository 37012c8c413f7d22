"""How many bytes of tensors live after each operation of a computation?

It counts what torch's operations return, on every device and in the backward pass too. What a
kernel needs for itself while it runs is not seen.
"""

from __future__ import annotations

import weakref
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

__all__ = ["recorded_allocations"]


class _Recorder(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Sees every operation below autograd."""

    def __init__(self, held: Iterable[Tensor]) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.live_bytes: list[int] = []
        self._now = 0
        self._seen: dict[int, Any] = {}
        for tensor in held:
            self._note(tensor, is_new=False)

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Run an operation and count what it returns."""
        found = func(*args, **(kwargs or {}))
        for value in found if isinstance(found, (tuple, list)) else (found,):
            if isinstance(value, Tensor):
                self._note(value, is_new=True)
        self.live_bytes.append(self._now)
        return found

    def _note(self, tensor: Tensor, *, is_new: bool) -> None:
        storage = tensor.untyped_storage()
        key = storage._cdata
        if key in self._seen:
            return
        size = storage.nbytes() if is_new else 0
        self._now += size

        def forget(reference: object) -> None:
            self._now -= size
            del self._seen[key]

        self._seen[key] = weakref.ref(storage, forget)


@contextmanager
def recorded_allocations(held: Iterable[Tensor]) -> Iterator[list[int]]:
    """Record while the block is open.

    Args:
        held: Tensors that exist already; they and their views count nothing.

    Yields:
        A list that takes in the live bytes after each operation.
    """
    with _Recorder(held) as recorder:
        yield recorder.live_bytes
