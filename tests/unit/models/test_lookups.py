"""No index out of range reaches a kernel, and what is in range is computed as ever."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from automl_ft.models.lookups import CheckedLookups

TABLE = torch.arange(12.0).view(4, 3)


class Kernels(TorchDispatchMode):
    """Stands for a device: remembers which operators it was asked to run."""

    def __init__(self) -> None:
        super().__init__()
        self.names: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.names.append(func.overloadpacket.__name__)
        return func(*args, **(kwargs or {}))


def at(*values: int) -> Tensor:
    return torch.tensor(values)


LOOKUPS: dict[str, Callable[[int], object]] = {
    "embedding": lambda index: nn.functional.embedding(at(0, index), TABLE),
    "index_select": lambda index: TABLE.index_select(0, at(index)),
    "gather": lambda index: TABLE.gather(0, at(index).view(1, 1)),
    "scatter": lambda index: TABLE.scatter(0, at(index).view(1, 1), 1.0),
    "index_add": lambda index: TABLE.index_add(0, at(index), torch.ones(1, 3)),
    "index": lambda index: TABLE[at(index)],
    "index_put_": lambda index: TABLE.clone().index_put_((at(index),), torch.ones(())),
}


@pytest.mark.parametrize("name", LOOKUPS)
@pytest.mark.parametrize("index", [4, 50257, -5])
def test_an_index_out_of_range_reaches_no_kernel(name: str, index: int) -> None:
    with (
        Kernels() as kernels,
        CheckedLookups(),
        pytest.raises(IndexError, match=f"{index}.* into a table of 4"),
    ):
        LOOKUPS[name](index)
    assert name not in kernels.names


@pytest.mark.parametrize("name", LOOKUPS)
def test_an_index_in_range_is_looked_up(name: str) -> None:
    expected = LOOKUPS[name](3)
    with Kernels() as kernels, CheckedLookups():
        found = LOOKUPS[name](3)
    torch.testing.assert_close(found, expected)
    assert name in kernels.names


def test_places_counted_from_behind_truth_values_and_none_are_in_range() -> None:
    cube = torch.arange(24.0).view(2, 4, 3)
    mask = torch.ones(2, 4, dtype=torch.bool)
    with CheckedLookups():
        assert torch.equal(TABLE[at(-4, -1)], TABLE[[0, 3]])
        assert torch.equal(cube[mask, at(2)], cube[..., 2].flatten())
        assert torch.equal(cube[:, at(3)], cube[:, 3:])
        with pytest.raises(IndexError, match="into a table of 3"):
            cube[mask, at(3)]


def test_tables_without_values_or_rows_are_let_be() -> None:
    with CheckedLookups():
        assert TABLE.to("meta").index_select(0, at(9).to("meta")).shape == (1, 3)
        assert TABLE.index_select(0, at().long()).shape == (0, 3)
