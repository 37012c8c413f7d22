"""What does a trial do when memory runs out in the middle of it?

A step is begun anew with half the micro-batch, a validation with half its batch; gradients stay
those of the effective batch. When a single row is too much, blocks are computed again in the
backward pass. The optimiser's memory is taken before it moves a parameter, so that this can be
tried again too; what fails later is a torn step, and `trial.runner` begins anew from the last
checkpoint. Each time the study's forecasts are corrected.
"""

from __future__ import annotations

import dataclasses
import gc
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from automl_ft.specs.trial import TrialMemory
from automl_ft.trial.compute import ComputeModel
from automl_ft.trial.forecast import MemoryForecast
from automl_ft.trial.memory import is_out_of_memory
from automl_ft.trial.optimizer import allocate_state
from automl_ft.trial.parts import Scorer
from automl_ft.trial.seeding import random_states, restore_random_states
from automl_ft.trial.step import Stepper
from automl_ft.trial.study_memory import StudyMemory

__all__ = ["MemoryGuard", "drop_gradients", "TornStepError"]

_LEAST, _MOST = 1.1, 2.0
"""Bounds of one correction. A size that failed must look larger than before, and its half is tried
next, so that twice as large is as much as one failure shows."""


class TornStepError(MemoryError):
    """Memory ran out while parameters changed: some are a step ahead of the others."""


@dataclass(kw_only=True, slots=True, eq=False)
class MemoryGuard:
    """Runs the steps and validations of one trial in the memory that there is."""

    stepper: Stepper
    """Makes gradients; its `micro_batch_size` is changed."""
    compute: ComputeModel
    """Its models."""
    device: torch.device
    """Where they are."""
    study: StudyMemory
    """Learns from each failure."""
    forecast: MemoryForecast
    """What this run was forecast to take."""
    record: TrialMemory
    """How the trial fits by now; holds no tensors."""
    shortfall: Callable[[TrialMemory], float]
    """By what factor a forecast must rise so that these sizes no longer fit."""
    forecast_of: Callable[[TrialMemory], MemoryForecast]
    """What some sizes are forecast to take."""
    checkpoint_blocks: Callable[[], None]
    """Turns gradient checkpointing on."""
    num_failures: int = 0
    """How often memory ran out in this run."""

    def resume(self, record: TrialMemory | None) -> None:
        """Go on with what an earlier run of the trial found.

        Equal micro-batches draw equal dropout masks, so that a trial that was interrupted goes on
        as if it had not been; smaller ones are kept where there is less memory by now.

        Args:
            record: From its checkpoint; None changes nothing.
        """
        if record is None:
            return
        if record.is_checkpointing and not self.record.is_checkpointing:
            self.checkpoint_blocks()
        now = self.record
        self.record = dataclasses.replace(
            record,
            micro_batch_size=min(record.micro_batch_size, now.micro_batch_size),
            eval_batch_size=min(record.eval_batch_size, now.eval_batch_size),
            is_checkpointing=record.is_checkpointing or now.is_checkpointing,
            correction=now.correction,
        )
        self.stepper.micro_batch_size = self.record.micro_batch_size

    def backward(self, rows: npt.NDArray[np.int64], epoch: int, step: int) -> Tensor:
        """Accumulate the gradients of a batch: `Stepper.backward`, again with less at once.

        Args:
            rows: Row numbers, shape (batch,).
            epoch: The epoch, from 0.
            step: Optimiser step, from 0; before it there are no gradients.

        Returns:
            Mean loss of the batch in nats, a scalar on the device.

        Raises:
            Exception: What the stepper raises, unless memory ran out and less may do.
        """
        states = random_states(self.device)
        while True:
            try:
                return self.stepper.backward(rows, epoch, step)
            except Exception as error:
                if not is_out_of_memory(error) or not self._has_less(len(rows)):
                    raise
            # Only here, where the exception no longer holds the tensors of the step.
            self.shrink(len(rows))
            drop_gradients(self.compute)
            self._free()
            restore_random_states(states, self.device)

    def update(
        self, optimizer: torch.optim.Optimizer, change: Callable[[], None], num_rows: int
    ) -> None:
        """Change the parameters by the gradients of a batch, once.

        Where the optimiser's state does not fit, what can be freed is freed, later steps pass
        fewer rows at once, and the state is tried once more. Nothing has moved by then.

        Args:
            optimizer: Gets its state.
            change: Moves parameters; not called twice.
            num_rows: Rows of the batch.

        Raises:
            TornStepError: Memory ran out within `change`.
            Exception: What `change` raises, or the state that does not fit a second time.
        """
        try:
            allocate_state(optimizer)
            is_ready = True
        except Exception as error:
            if not is_out_of_memory(error):
                raise
            is_ready = False
        if not is_ready:
            self.shrink(num_rows)
            self._free()
            allocate_state(optimizer)
        try:
            change()
        except Exception as error:
            if is_out_of_memory(error):
                raise TornStepError(str(error)) from error
            raise

    def shrink(self, num_rows: int) -> None:
        """Count that memory ran out, correct the study's forecasts, take less at once if one can.

        Args:
            num_rows: Rows of the batch.
        """
        self.stepper.release()
        size = min(self.record.micro_batch_size, num_rows)
        if size > 1:
            self._note(micro_batch_size=halved(size))
            self.stepper.micro_batch_size = self.record.micro_batch_size
            return
        is_new = not self.record.is_checkpointing
        self._note(micro_batch_size=1, is_checkpointing=True)
        self.stepper.micro_batch_size = 1
        if is_new:
            self.checkpoint_blocks()

    def settle(self, peak_mib: float) -> None:
        """Lower the study's correction if this run shows that it is too high.

        Args:
            peak_mib: What the run took at its peak, by `memory.taken_memory_mib`; the run met all
                rows, nothing of it was stored before, and all was trained that ever is.
        """
        if self.num_failures:
            return
        forecast = self.forecast_of(self.record)
        batch = forecast.steps_mib / self.record.correction
        if batch > 0:
            found = (peak_mib - forecast.base_mib - forecast.held_mib) / batch
            self.study.relax(self.device.type, found, batch)

    def note_shortage(self) -> None:
        """Count that memory ran out while activations were computed, and free what can be."""
        self._note(self.forecast_of(self.record).filling_mib)
        self._free()

    def all_scores(self, scorer: Scorer) -> npt.NDArray[np.float32]:
        """Score a split: `Scorer.all_scores`, again with less at once.

        Args:
            scorer: Of the split.

        Returns:
            Scores, shape (num_rows, num_labels).

        Raises:
            Exception: What scoring raises, unless memory ran out and less may do.
        """
        while True:
            size = self.record.eval_batch_size
            try:
                return scorer.all_scores(size)
            except Exception as error:
                if not is_out_of_memory(error) or size == 1:
                    raise
            self._note(eval_batch_size=halved(size))
            self._free()

    def _has_less(self, num_rows: int) -> bool:
        is_single = min(self.record.micro_batch_size, num_rows) == 1
        return not (is_single and self.record.is_checkpointing)

    def _note(self, failed_mib: float | None = None, **changes: int) -> None:
        """Count a failure of a batch, by default of a step, that was forecast to take so much."""
        steps = self.forecast_of(self.record).steps_mib
        failed = steps if failed_mib is None else max(failed_mib, 1.0)
        short = self.shortfall(self.record) * (steps / failed if failed > 0 else 1.0)
        factor = min(_MOST, max(_LEAST, short))
        batch = failed / self.record.correction
        self.num_failures += 1
        self.record = dataclasses.replace(
            self.record,
            num_out_of_memory=self.record.num_out_of_memory + 1,
            correction=self.study.correct(self.device.type, factor, batch_mib=batch),
            **changes,  # type: ignore[arg-type]  # flags are ints
        )

    def _free(self) -> None:
        gc.collect()
        if self.device.type == "cuda":
            torch.cuda.empty_cache()


def halved(size: int) -> int:
    """Return half a batch; an odd row goes with the first half.

    Args:
        size: Rows, 2 or more.

    Returns:
        Fewer rows, 1 or more.
    """
    return (size + 1) // 2


def drop_gradients(compute: ComputeModel) -> None:
    """Forget all gradients.

    Args:
        compute: The models.
    """
    for model in (compute.model, compute.master):
        for parameter in model.parameters():
            parameter.grad = None
