"""Where do the dropout masks of one trial come from, when several are trained as one?

Each trial draws the masks that it would draw alone: on a CPU from its `DropoutStream`, on a GPU
from torch's generator in the state in which the trial left it.
"""

from __future__ import annotations

from typing import Any, Protocol

import torch
from torch import Tensor
from torch.nn import functional

from automl_ft.models.dropout import DropoutStream
from automl_ft.trial.seeding import random_states, seed_everything

__all__ = ["Masks", "masks_of"]


class Masks(Protocol):
    """The masks of one trial."""

    def begin(self, step: int) -> None:
        """Start those of a step; for the same step again, the same masks are drawn again.

        Args:
            step: Optimiser step, from 0.
        """
        ...

    def draw(self, shape: torch.Size, p: float, dtype: torch.dtype) -> Tensor:
        """Draw a mask.

        Args:
            shape: Its shape.
            p: Probability of a zero, in (0, 1).
            dtype: Type of the values that are dropped.

        Returns:
            0 or 1 / (1 - p); the product with the values, rounded to their type, is what the
            trial's own dropout gives.
        """
        ...

    def random_states(self) -> dict[str, Any]:
        """Return the states of all generators that the trial draws from, for its checkpoint."""
        ...


def masks_of(seed: int, device: torch.device) -> Masks | None:
    """Seed all generators as a trial does, and return its masks.

    Args:
        seed: The trial's seed.
        device: Where it runs.

    Returns:
        Its masks; None where the device does not allow trials that are trained as one.
    """
    if device.type not in ("cpu", "cuda"):
        return None
    seed_everything(seed)
    states = random_states(device)
    return _StreamMasks(seed, states) if device.type == "cpu" else _CudaMasks(device, states)


class _StreamMasks:
    """Those of a trial on a CPU."""

    def __init__(self, seed: int, states: dict[str, Any]) -> None:
        self._stream = DropoutStream(seed)
        self._states = states

    def begin(self, step: int) -> None:
        self._stream.begin(step)

    def draw(self, shape: torch.Size, p: float, dtype: torch.dtype) -> Tensor:
        return self._stream.mask(shape, p, dtype)

    def random_states(self) -> dict[str, Any]:
        return self._states


class _CudaMasks:
    """Those of a trial on a GPU."""

    def __init__(self, device: torch.device, states: dict[str, Any]) -> None:
        self._device = device
        self._states = states
        self._began: tuple[int, Tensor] | None = None

    def begin(self, step: int) -> None:
        # The generator goes on from where it stands, but back for a step that went wrong.
        if self._began is not None and self._began[0] == step:
            self._states["cuda"] = self._began[1]
        self._began = step, self._states["cuda"]

    def draw(self, shape: torch.Size, p: float, dtype: torch.dtype) -> Tensor:
        # Setting a state does not wait for the GPU: the generator itself is on the CPU.
        torch.cuda.set_rng_state(self._states["cuda"], self._device)
        # torch's kernel draws for values of this type and shape, and scales them in fp32.
        kept = functional.dropout(torch.ones(shape, dtype=dtype, device=self._device), p) != 0
        self._states["cuda"] = torch.cuda.get_rng_state(self._device)
        return kept.float().mul_(1 / (1 - p))

    def random_states(self) -> dict[str, Any]:
        return dict(self._states)
