"""How does one effective batch become gradients?

In micro-batches, whose gradients are summed and divided by the whole batch's weight, so that the
result does not depend on their size, but for rounding, dropout and mixup, which mixes rows of one
micro-batch.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import Protocol

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from automl_ft.data.augmentation import Augmentation
from automl_ft.models.dropout import DropoutStream
from automl_ft.models.packing import to_device
from automl_ft.tasks.base import Loss
from automl_ft.trial.compute import ComputeModel
from automl_ft.trial.forward import Forward
from automl_ft.trial.graphs import MicroBatch, RecordedSteps
from automl_ft.trial.precision import training_products

__all__ = ["StepRunner", "Stepper"]


class Stepper(Protocol):
    """What the loop needs of whatever makes gradients."""

    forward: Forward
    """Gives the scores of training rows; told of each stage."""
    micro_batch_size: int
    """Rows that pass through the model at once; may be changed between batches."""

    def backward(self, rows: npt.NDArray[np.int64], epoch: int, step: int) -> Tensor:
        """Accumulate the gradients of a batch in the fp32 parameters.

        Args:
            rows: Row numbers, shape (batch,).
            epoch: The epoch, from 0.
            step: Optimiser step, from 0.

        Returns:
            Mean loss of the batch in nats, a scalar on the device.
        """
        ...

    def release(self) -> None:
        """Give back memory that only makes steps faster."""
        ...


@dataclass(kw_only=True, slots=True, eq=False)
class StepRunner:
    """Runs forward and backward of one effective batch."""

    forward: Forward
    """Gives the scores of training rows."""
    compute: ComputeModel
    """The model that computes, and the one that holds the parameters."""
    loss: Loss
    """The task's loss."""
    augmentation: Augmentation | None
    """What is done to rows; None for nothing."""
    mixup: float
    """Alpha of the Beta distribution; 0 is off."""
    micro_batch_size: int
    """Rows that pass through the model at once."""
    seed: int
    """The trial's seed."""
    stream: DropoutStream | None
    """Dropout masks; None where torch's own generator draws them."""
    precision: str = "fp32"
    """In which it computes."""
    graphs: RecordedSteps | None = None
    """Records micro-batches, without mixup, and launches them whole; None where kernels are
    launched one by one."""

    def backward(self, rows: npt.NDArray[np.int64], epoch: int, step: int) -> Tensor:
        """Accumulate the gradients of a batch in the fp32 parameters.

        Args:
            rows: Row numbers, shape (batch,).
            epoch: The epoch, for augmentation.
            step: Optimiser step, for dropout and mixup.

        Returns:
            Mean loss of the batch in nats, a scalar on the device; the mean is weighted where
            classes are.
        """
        if self.stream is not None:
            self.stream.begin(step)
        labels = np.asarray(self.forward.maker.split.labels[rows], dtype=np.int64)
        weight = self.loss.weight(torch.from_numpy(labels))
        # The constant keeps this stream apart from those of data, augmentation and dropout.
        generator = np.random.default_rng([self.seed, step, 0, 2])
        total: Tensor | None = None
        for start in range(0, len(rows), self.micro_batch_size):
            micro = rows[start : start + self.micro_batch_size]
            batch = self._micro_batch(micro, epoch, weight)
            train = partial(self._train, generator=generator)
            if self.graphs is None:
                loss = train(batch)
            else:
                loss = self.graphs.run(batch, train, self.forward.stage)
            total = loss if total is None else total + loss
        assert total is not None
        return total

    def release(self) -> None:
        """Give back memory that only makes steps faster."""
        if self.graphs is not None:
            self.graphs.release()

    def _micro_batch(self, rows: npt.NDArray[np.int64], epoch: int, weight: float) -> MicroBatch:
        device = self.forward.maker.device
        is_number = self.graphs is None
        return MicroBatch(
            model=self.forward.model_inputs(rows, self.augmentation, (self.seed, epoch)),
            targets=self.forward.maker.labels(rows),
            weight=weight if is_number else to_device(torch.tensor(weight), device),
        )

    def _train(self, batch: MicroBatch, generator: np.random.Generator) -> Tensor:
        """Run forward and backward of a micro-batch, and collect its gradients."""
        products = training_products(self.precision, batch.targets.device)
        with products, self.forward.scores(batch.model) as logits:
            loss = self._loss(logits, batch.targets, generator) / batch.weight
            loss.backward()  # type: ignore[no-untyped-call]
        self.compute.collect()
        return loss.detach()

    def _loss(self, logits: Tensor, targets: Tensor, generator: np.random.Generator) -> Tensor:
        """Return the summed loss, mixed if the recipe says so.

        Sentence mixup (Guo et al. 2019, arXiv 1905.08941, senMixup) mixes what the last linear
        layer reads; as that layer is linear, mixing its outputs is the same, and works for every
        architecture.
        """
        if self.mixup == 0 or len(targets) < 2:
            return self.loss.total(logits, targets)
        share = float(generator.beta(self.mixup, self.mixup))
        order = to_device(torch.from_numpy(generator.permutation(len(targets))), logits.device)
        mixed = share * logits + (1 - share) * logits[order]
        return share * self.loss.total(mixed, targets) + (1 - share) * self.loss.total(
            mixed, targets[order]
        )
