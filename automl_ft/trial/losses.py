"""How do training losses reach the CPU without making a GPU wait?

On a CPU they are there at once. On a GPU each step's loss and gradient norm are copied to pinned
memory behind the computation and looked at when the copy is done, one or two steps later; before
anything is validated or saved, all of them are.
"""

from __future__ import annotations

import math
from collections import deque

import torch
from torch import Tensor

from automl_ft.trial.state import TrainingState

__all__ = ["DivergedError", "LossLog"]


class DivergedError(Exception):
    """The training loss or the gradients are no longer finite, or the loss exploded."""


class LossLog:
    """The losses of one trial since the last validation."""

    def __init__(self, device: torch.device) -> None:
        """Start empty.

        Args:
            device: Where losses come from.
        """
        self._is_cuda = device.type == "cuda"
        self._pending: deque[tuple[int, Tensor, torch.cuda.Event]] = deque()
        self._new: list[float] = []
        self.latest = math.nan
        """The last loss that has arrived, in nats."""

    def add(self, loss: Tensor, norm: Tensor, step: int) -> None:
        """Take in the loss of a step.

        Args:
            loss: Mean loss of the batch in nats, a scalar on the device.
            norm: Norm of its gradient, likewise.
            step: The step, from 1.

        Raises:
            DivergedError: This one, or an earlier one that has arrived now, is not finite.
        """
        both = torch.stack([loss.detach().float(), norm.detach().float()])
        if not self._is_cuda:
            self._arrive(both, step)
            return
        buffer = torch.empty(2, pin_memory=True)
        buffer.copy_(both, non_blocking=True)
        event = torch.cuda.Event()  # type: ignore[no-untyped-call]
        event.record()
        self._pending.append((step, buffer, event))
        while self._pending and self._pending[0][2].query():  # type: ignore[no-untyped-call]
            self._pop()

    def drain(self, state: TrainingState) -> None:
        """Wait for all losses, and add those since the last call to a trial's state.

        Args:
            state: Its sum of losses grows.

        Raises:
            DivergedError: One of them is not finite.
        """
        while self._pending:
            self._pending[0][2].synchronize()
            self._pop()
        for loss in self._new:
            state.loss_sum, state.loss_steps = state.loss_sum + loss, state.loss_steps + 1
        self._new.clear()

    def _pop(self) -> None:
        step, buffer, _ = self._pending.popleft()
        self._arrive(buffer, step)

    def _arrive(self, both: Tensor, step: int) -> None:
        loss, norm = both.tolist()
        if not math.isfinite(loss) or not math.isfinite(norm):
            raise DivergedError(f"training loss {loss} and gradient norm {norm} at step {step}")
        self.latest = loss
        self._new.append(loss)
