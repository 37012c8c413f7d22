"""When is the learning rate how high, and when is the model validated?"""

from __future__ import annotations

import functools
import math
from collections.abc import Mapping

import torch
from transformers import get_scheduler

from automl_ft.specs.validation import epochs_between_validations

__all__ = ["build_schedule", "steps_per_epoch", "validation_steps"]


def steps_per_epoch(num_examples: int, batch_size: int) -> int:
    """Return the optimiser steps of one epoch; the last batch may be smaller.

    Args:
        num_examples: Training rows, 1 or more.
        batch_size: Effective batch size, 1 or more.

    Returns:
        Steps, 1 or more.
    """
    return math.ceil(num_examples / batch_size)


def build_schedule(
    name: str, optimizer: torch.optim.Optimizer, warmup_ratio: float, total_steps: int
) -> torch.optim.lr_scheduler.LambdaLR:
    """Build one of transformers' schedules.

    Args:
        name: One of `specs.hyperparameters.LR_SCHEDULES`.
        optimizer: The optimiser.
        warmup_ratio: Fraction of the steps with a rising rate; rounded up to whole steps, as
            `transformers.TrainingArguments.get_warmup_steps` does.
        total_steps: Optimiser steps of the whole trial.

    Returns:
        The schedule; its `step()` belongs after each optimiser step.
    """
    warmup = math.ceil(total_steps * warmup_ratio)
    schedule = get_scheduler(
        name, optimizer, num_warmup_steps=warmup, num_training_steps=total_steps
    )
    assert isinstance(schedule, torch.optim.lr_scheduler.LambdaLR)
    return schedule


@functools.lru_cache(maxsize=64)  # the loop asks at every step
def validation_steps(
    num_examples: int,
    batch_size: int,
    validations_per_epoch: float,
    epoch: int = 0,
    epochs: int = 1,
) -> Mapping[int, int]:
    """Say after which batches of an epoch the model is validated.

    The axis is examples seen, in equal parts of an epoch, the same for every batch size: a
    validation belongs to part `j` of `k` and happens after the first batch with which at least
    `j / k` of the epoch's rows are seen. Where a large batch crosses several parts, only the
    last of them is validated. With fewer validations than epochs only every `m`-th epoch ends
    with one, counted from the first, and the last epoch of the trial does.

    Args:
        num_examples: Training rows.
        batch_size: Effective batch size.
        validations_per_epoch: Parts `k` of an epoch, a whole number; no more than rows, so that
            each validation has nominal examples of its own. Or 1/m for one validation in m epochs
            (`specs.validation`).
        epoch: The epoch, from 0; matters for a fraction only.
        epochs: Epochs of the trial.

    Returns:
        By index of the batch in its epoch: the nominal examples of this epoch,
        `round(num_examples * j / k)`. The last batch is among them, or there is none.
    """
    if (epoch + 1) % epochs_between_validations(validations_per_epoch) and epoch + 1 != epochs:
        return {}
    points: dict[int, int] = {}
    num_parts = min(max(1, int(validations_per_epoch)), num_examples)
    for part in range(1, num_parts + 1):
        wanted = num_examples * part / num_parts
        batch = math.ceil(wanted / batch_size - 1e-9) - 1
        points[min(max(batch, 0), steps_per_epoch(num_examples, batch_size) - 1)] = round(wanted)
    return points
