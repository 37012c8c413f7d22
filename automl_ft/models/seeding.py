"""How new weights are drawn from a seed while every random state outside stays as it was."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch

__all__ = ["seeded_init"]


@contextmanager
def seeded_init(seed: int) -> Iterator[None]:
    """Seed the CPU generator inside the block and restore it afterwards.

    New weights are drawn on the CPU, so those of the devices are never touched;
    `torch.manual_seed` would reseed them all.

    Args:
        seed: The seed.

    Yields:
        Nothing.
    """
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        yield
