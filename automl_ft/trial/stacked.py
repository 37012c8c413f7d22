"""How are the heads of several trials trained in one computation?

Their parameters lie one behind the other, their batches are gathered into one, and a batched
matrix product does for all of them what each would do alone. Rows, dropout masks, loss, clipping,
optimiser and schedule are each trial's own, and so are validations, checkpoints and its end: a
trial that has ended leaves, the others go on.

What goes wrong for one trial is its own failure. What goes wrong for all of them has changed none:
each is written as it was after its last step, and goes on alone.
"""

from __future__ import annotations

import gc
import logging
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from itertools import zip_longest

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.nn import functional

from automl_ft.errors import DiskError
from automl_ft.models.packing import to_device
from automl_ft.specs.failure import FailureKind, TrialFailure
from automl_ft.specs.trial import Outcome, TrialResult, TrialSpec
from automl_ft.trial.device import DeviceLostError, is_lost
from automl_ft.trial.heads import HeadGroup, HeadTrial
from automl_ft.trial.loop import after_step, is_finished, save_checkpoint
from automl_ft.trial.losses import DivergedError
from automl_ft.trial.optimizer import shrink_l1
from automl_ft.trial.precision import training_products
from automl_ft.trial.prepare import PreparedStudy
from automl_ft.trial.runner import failure_of, result_of
from automl_ft.trial.state import TrainingState

__all__ = ["Unfinished", "train_heads"]

_log = logging.getLogger(__name__)
_NO_ROWS = np.zeros(0, dtype=np.int64)


@dataclass(frozen=True, kw_only=True, slots=True)
class Unfinished:
    """A trial of a group that has no result yet: it goes on alone, from its checkpoint if any."""

    spec: TrialSpec
    state: TrainingState | None = None
    """Where it stood; None if it has not begun."""
    num_out_of_memory: int = 0
    """How often memory ran out that its checkpoint does not know of."""


def train_heads(
    group: HeadGroup, study: PreparedStudy, emit: Callable[[TrialResult], None]
) -> tuple[Unfinished, ...]:
    """Train a group until all of its trials have ended, or can only go on alone.

    Args:
        group: At its first step.
        study: The prepared study.
        emit: Takes each result as soon as it is there.

    Returns:
        Trials without a result, for lack of memory or as what they share does not run; the log
        says why.

    Raises:
        DiskError: The disk takes no more checkpoints; the trials without a result did not end.
        DeviceLostError: The device was lost, by whichever of the trials; the same holds for them.
    """
    return _Training(group, study, emit).run()


class _MemberError(Exception):
    """What is shared went wrong in the part of one trial."""

    def __init__(self, number: int, error: Exception) -> None:
        super().__init__(f"trial {number}")
        self.number = number
        self.error = error


@contextmanager
def _blaming(trial: HeadTrial) -> Iterator[None]:
    try:
        yield
    except Exception as error:
        raise _MemberError(trial.spec.number, error) from error


@dataclass(frozen=True, kw_only=True, slots=True)
class _Trouble:
    """What went wrong in a shared step; holds none of its tensors, unlike an exception."""

    failure: TrialFailure
    number: int | None
    """The trial that it belongs to; None where that cannot be told."""

    @classmethod
    def of(cls, error: Exception) -> _Trouble:
        """Read an exception; call it where it is handled."""
        if not isinstance(error, _MemberError):
            return cls(failure=failure_of(error), number=None)
        failure = failure_of(error.error)
        # One trial's part is the last straw; the others' are the load.
        is_shared = failure.kind is FailureKind.OUT_OF_MEMORY
        return cls(failure=failure, number=None if is_shared else error.number)


class _Training:
    """Trains one group; used once."""

    def __init__(
        self, group: HeadGroup, study: PreparedStudy, emit: Callable[[TrialResult], None]
    ) -> None:
        self._group = group
        self._study = study
        self._emit = emit
        self._active = list(group.trials)
        self._unfinished: list[Unfinished] = []

    def run(self) -> tuple[Unfinished, ...]:
        """Train until no trial is left in the group; return those without a result."""
        stack: _Stack | None = None
        while self._active:
            trials = tuple(self._active)
            began = time.perf_counter()
            trouble = None
            try:
                stack = stack or _Stack(self._group, trials)
                with training_products(self._study.precision, self._study.device):
                    losses, norms = stack.backward()
            except Exception as error:  # in what is common to all of them
                trouble = _Trouble.of(error)
            if trouble is None:
                self._step(losses, norms, began)
            else:
                stack = None  # frees its tensors
                self._share_seconds(trials, began)
                self._part(trouble)
            if len(self._active) < len(trials):
                stack = None
        return tuple(self._unfinished)

    def _step(self, losses: Tensor, norms: Tensor, began: float) -> None:
        """Give each trial its gradients' step, and end those that end with it."""
        trials = tuple(self._active)
        for index, trial in enumerate(trials):
            self._do(trial, partial(_update, trial, losses[index], norms[index]))
        self._share_seconds(trials, began)
        for trial in tuple(self._active):
            self._do(trial, partial(_after, trial))

    def _do(self, trial: HeadTrial, run: Callable[[], Outcome | None]) -> None:
        """Do something for one trial; what goes wrong in it is its own."""
        failure = None
        try:
            outcome = run()
        except DiskError:
            raise
        except Exception as error:
            outcome, failure = Outcome.FAILED, failure_of(error)
            self._check_device(failure)
        if failure is not None and failure.kind is FailureKind.OUT_OF_MEMORY:
            # Half a step may be done. The others take up memory that it has when it is alone.
            self._say([trial], failure)
            self._leave(trial, num_out_of_memory=1)
        elif outcome is not None:
            self._end(trial, outcome, failure)

    def _end(self, trial: HeadTrial, outcome: Outcome, failure: TrialFailure | None) -> None:
        self._active.remove(trial)
        trial.state.memory = trial.parts.memory.record
        self._emit(result_of(trial.spec, self._study, trial.state, outcome, failure))

    def _part(self, trouble: _Trouble) -> None:
        """End the trial that went wrong; where that is all of them, let each go on alone."""
        self._check_device(trouble.failure)
        owner = next((t for t in self._active if t.spec.number == trouble.number), None)
        if owner is not None:
            self._end(owner, Outcome.FAILED, trouble.failure)
            return
        self._say(self._active, trouble.failure)
        self._free()
        for trial in tuple(self._active):
            self._set_aside(trial, trouble.failure)

    def _check_device(self, failure: TrialFailure) -> None:
        """Leave where the device is lost: whose kernel it was cannot be told, as errors come late.

        Each of the trials goes on alone with another worker, so that the culprit shows.
        """
        if is_lost(self._study.device):
            raise DeviceLostError(failure.message)

    def _set_aside(self, trial: HeadTrial, trouble: TrialFailure) -> None:
        """Write a trial as it was before the step that went wrong.

        The forecasts of the study stay as they are: they are of trials alone.
        """
        parts, state = trial.parts, trial.state
        ran_out = int(trouble.kind is FailureKind.OUT_OF_MEMORY)
        room, before = parts.memory, parts.memory.record
        try:
            if state.step:
                trial.masks.begin(state.step)  # a step that is made again draws the same masks
                counted = before.num_out_of_memory + ran_out
                room.record = replace(before, num_out_of_memory=counted)
                save_checkpoint(parts, state)
                ran_out = 0
        except DiskError:
            raise
        except DivergedError as error:  # a loss of earlier steps, as it comes from a GPU late
            self._end(trial, Outcome.FAILED, failure_of(error))
            return
        except Exception as error:
            # The checkpoint before this one is whole: the steps since then are made again.
            self._say([trial], failure_of(error))
            room.record = before
        self._leave(trial, num_out_of_memory=ran_out)

    def _leave(self, trial: HeadTrial, *, num_out_of_memory: int) -> None:
        self._active.remove(trial)
        trial.state.memory = trial.parts.memory.record
        self._unfinished.append(
            Unfinished(spec=trial.spec, state=trial.state, num_out_of_memory=num_out_of_memory)
        )

    def _say(self, trials: Sequence[HeadTrial], failure: TrialFailure) -> None:
        # Where memory ran out says nothing; any other error may be a fault of ours.
        is_plain = failure.kind is FailureKind.OUT_OF_MEMORY or not failure.traceback
        _log.warning(
            "Heads of a group are no longer trained as one; on their own from now on: %s. %s",
            ", ".join(str(trial.spec.number) for trial in trials),
            failure.message if is_plain else failure.traceback,
        )

    def _share_seconds(self, trials: Sequence[HeadTrial], began: float) -> None:
        seconds = (time.perf_counter() - began) / len(trials)
        for trial in trials:
            trial.state.seconds += seconds

    def _free(self) -> None:
        for trial in self._active:
            trial.parts.optimizer.zero_grad(set_to_none=True)
        gc.collect()
        if self._study.device.type == "cuda":
            torch.cuda.empty_cache()


def _update(trial: HeadTrial, loss: Tensor, norm: Tensor) -> None:
    """Step as `loop.train_step` does, from gradients that are clipped already."""
    parts, state = trial.parts, trial.state
    parts.losses.add(loss, norm, state.step + 1)
    parts.optimizer.step()
    shrink_l1(parts.optimizer, parts.recipe.l1)
    parts.schedule.step()
    parts.optimizer.zero_grad(set_to_none=True)
    state.examples_seen += len(trial.rows())
    state.batch, state.step = state.batch + 1, state.step + 1


def _after(trial: HeadTrial) -> Outcome | None:
    """Report, validate and save as `loop.fit` does, and go on to the next epoch."""
    parts, state = trial.parts, trial.state
    outcome = after_step(parts, state, trial.reporter)
    if outcome is None and state.batch == parts.batches.num_batches:
        state.epoch, state.batch = state.epoch + 1, 0
        return Outcome.COMPLETE if is_finished(parts, state) else None
    return outcome


class _Stack:
    """The parameters of some heads, and gradients of all of them at once."""

    def __init__(self, group: HeadGroup, trials: Sequence[HeadTrial]) -> None:
        """Lay the parameters one behind the other; those of the trials become views of them."""
        self._group = group
        self._trials = trials
        self._heads = [trial.parameters for trial in trials]
        self._stacked: dict[str, Tensor] = {}
        for name in self._heads[0]:
            self._stacked[name] = torch.stack([head[name].detach() for head in self._heads])
            for head, own in zip(self._heads, self._stacked[name], strict=True):
                head[name].data = own
        device, dtype = group.features.device, group.features.dtype
        # What computes is a copy in the precision of training, as in `trial.compute`.
        self._computing = self._stacked
        if dtype != torch.float32:
            self._computing = {name: v.to(dtype) for name, v in self._stacked.items()}
        for value in self._computing.values():
            value.requires_grad_()
        self._device = device
        targets = []
        for trial in trials:
            with _blaming(trial):
                targets.append(trial.loss.soft_targets(group.num_labels))
        self._targets = functional.pad(torch.stack(targets), (0, 0, 0, 1)).to(device)
        limits = [trial.parts.recipe.max_grad_norm for trial in trials]
        self._limits = torch.tensor(limits, device=device)

    def backward(self) -> tuple[Tensor, Tensor]:
        """Give each head the gradients of its next batch, clipped to the recipe's norm.

        Returns:
            Mean loss of each batch in nats and norm of its gradients before clipping, shape (G,).
        """
        batches: list[npt.NDArray[np.int64]] = []
        weights: list[float] = []
        for trial in self._trials:
            with _blaming(trial):
                rows = trial.rows()
                trial.masks.begin(trial.state.step)
                weights.append(trial.loss.weight(torch.from_numpy(self._group.labels[rows])))
                batches.append(rows)
        divisors = to_device(torch.tensor(weights), self._device)
        if self._computing is not self._stacked:
            with torch.no_grad():
                torch._foreach_copy_(list(self._computing.values()), list(self._stacked.values()))
        losses = torch.zeros(len(batches), device=self._device)
        gradients: list[Tensor] = []
        for micro in zip_longest(*map(_micro_batches, self._trials, batches), fillvalue=_NO_ROWS):
            part = self._losses(micro) / divisors
            found = torch.autograd.grad(part.sum(), list(self._computing.values()))
            losses += part.detach()
            # The fused optimiser takes gradients for laid out as the parameters are.
            more = [gradient.float().contiguous() for gradient in found]
            if gradients:
                torch._foreach_add_(gradients, more)
            else:
                gradients = more
        return losses, self._hand_out(gradients)

    def _losses(self, rows: Sequence[npt.NDArray[np.int64]]) -> Tensor:
        """Return the summed losses of one micro-batch of each trial, shape (G,)."""
        group, longest = self._group, max(map(len, rows))
        # Padding is row 0 with a class of its own, whose targets are 0.
        places = np.zeros((len(rows), longest), dtype=np.int64)
        classes = np.full((len(rows), longest), group.num_labels, dtype=np.int64)
        for index, own in enumerate(rows):
            places[index, : len(own)] = own
            classes[index, : len(own)] = group.labels[own]
        classes += (group.num_labels + 1) * np.arange(len(rows))[:, None]
        features = group.features.index_select(0, self._placed(places))
        targets = self._targets.flatten(0, 1).index_select(0, self._placed(classes))
        drop = partial(self._drop, [len(own) for own in rows])
        values = features.view(len(rows), longest, -1)
        scores = group.chain.scores(values, self._computing, drop).float()
        return -(targets.view_as(scores) * scores.log_softmax(-1)).sum((1, 2))

    def _placed(self, indices: npt.NDArray[np.int64]) -> Tensor:
        return to_device(torch.from_numpy(indices.reshape(-1)), self._device)

    def _drop(self, num_rows: Sequence[int], name: str, values: Tensor) -> Tensor:
        """Drop values, each trial by its own masks."""
        chances = [trial.dropouts[name] for trial in self._trials]
        if not any(chances):
            return values
        width = values.shape[-1]
        masks: list[Tensor] = []
        for trial, p, number in zip(self._trials, chances, num_rows, strict=True):
            shape = torch.Size((number, width))
            if p > 0 and number > 0:
                with _blaming(trial):
                    mask = trial.masks.draw(shape, p, values.dtype)
            else:
                mask = values.new_ones(shape)
            masks.append(functional.pad(mask, (0, 0, 0, values.shape[1] - number)))
        return (values * torch.stack(masks)).to(values.dtype)

    def _hand_out(self, gradients: Sequence[Tensor]) -> Tensor:
        """Clip the gradients of each head, as `torch.nn.utils.clip_grad_norm_` does."""
        norm = torch.linalg.vector_norm
        parts = [norm(gradient.flatten(1), dim=1) for gradient in gradients]
        norms: Tensor = norm(torch.stack(parts), dim=0)
        factors = (self._limits / (norms + 1e-6)).clamp(max=1)
        # On a GPU looking would cost more than multiplying.
        is_clipped = self._device.type != "cpu" or not bool((factors == 1).all())
        for name, gradient in zip(self._stacked, gradients, strict=True):
            if is_clipped:
                gradient *= factors.view(-1, *[1] * (gradient.ndim - 1))
            for head, own in zip(self._heads, gradient, strict=True):
                head[name].grad = own
        return norms


def _micro_batches(
    trial: HeadTrial, rows: npt.NDArray[np.int64]
) -> Iterator[npt.NDArray[np.int64]]:
    """Yield the rows that the trial alone would pass through its head at once."""
    size = trial.parts.memory.record.micro_batch_size
    for start in range(0, len(rows), size):
        yield rows[start : start + size]
