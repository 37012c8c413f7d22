"""How does one effective batch become gradients?

The plain path: padded micro-batches, gradients summed and divided by the whole batch's weight, so
that the result does not depend on the size of the micro-batches, but for rounding, dropout and
mixup, which mixes rows of one micro-batch.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from automl_ft.tasks.base import Loss
from automl_ft.trial.batches import TrainingBatches
from automl_ft.trial.precision import autocast

__all__ = ["StepRunner"]


@dataclass(frozen=True, kw_only=True, slots=True)
class StepRunner:
    """Runs forward and backward of one effective batch."""

    batches: TrainingBatches
    """Makes tensors of rows."""
    loss: Loss
    """The task's loss."""
    mixup: float
    """Alpha of the Beta distribution; 0 is off."""
    micro_batch_size: int
    """Rows that pass through the model at once."""
    precision: str
    """`fp32` or `bf16`."""
    device: torch.device
    """Where the model is."""

    def backward(
        self, model: nn.Module, rows: npt.NDArray[np.int64], epoch: int, step: int
    ) -> float:
        """Accumulate the gradients of a batch.

        Args:
            model: In training mode; its gradients grow.
            rows: Row numbers, shape (batch,).
            epoch: The epoch, for augmentation.
            step: Optimiser step, for mixup.

        Returns:
            Mean loss of the batch in nats; the mean is weighted where classes are.
        """
        labels = np.asarray(self.batches.split.labels[rows], dtype=np.int64)
        weight = self.loss.weight(torch.from_numpy(labels).to(self.device))
        total = 0.0
        # The constant keeps this stream apart from those of `data.batches` and augmentation.
        generator = np.random.default_rng([self.batches.seed, step, 0, 2])
        for start in range(0, len(rows), self.micro_batch_size):
            micro = rows[start : start + self.micro_batch_size]
            inputs, targets = self.batches.tensors(micro, epoch, self.device)
            with autocast(self.precision, self.device):
                logits = model(**inputs).logits
            loss = self._loss(logits, targets, generator) / weight
            loss.backward()  # type: ignore[no-untyped-call]
            total += loss.item()
        return total

    def _loss(self, logits: Tensor, targets: Tensor, generator: np.random.Generator) -> Tensor:
        """Return the summed loss, mixed if the recipe says so.

        Sentence mixup (Guo et al. 2019, arXiv 1905.08941, senMixup) mixes what the last linear
        layer reads; as that layer is linear, mixing its outputs is the same, and works for every
        architecture.
        """
        if self.mixup == 0 or len(targets) < 2:
            return self.loss.total(logits, targets)
        share = float(generator.beta(self.mixup, self.mixup))
        order = torch.from_numpy(generator.permutation(len(targets))).to(logits.device)
        mixed = share * logits + (1 - share) * logits[order]
        return share * self.loss.total(mixed, targets) + (1 - share) * self.loss.total(
            mixed, targets[order]
        )
