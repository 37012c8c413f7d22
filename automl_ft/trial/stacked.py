"""How are the heads of several trials trained in one computation?

Their parameters lie one behind the other, their batches are gathered into one, and a batched
matrix product does for all of them what each would do alone. Rows, dropout masks, loss, clipping,
optimiser and schedule are each trial's own, and so are validations, checkpoints and its end: a
trial that has ended leaves, the others go on.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from itertools import zip_longest

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.nn import functional

from automl_ft.errors import DiskError
from automl_ft.models.packing import to_device
from automl_ft.specs.trial import Outcome, TrialResult
from automl_ft.trial.heads import HeadGroup, HeadTrial
from automl_ft.trial.loop import after_step, is_finished
from automl_ft.trial.optimizer import shrink_l1
from automl_ft.trial.prepare import PreparedStudy
from automl_ft.trial.runner import failure_of, result_of

__all__ = ["UnstackableError", "train_heads"]

_NO_ROWS = np.zeros(0, dtype=np.int64)


class UnstackableError(Exception):
    """The very first step of a group went wrong; nothing has happened yet."""


def train_heads(
    group: HeadGroup, study: PreparedStudy, emit: Callable[[TrialResult], None]
) -> None:
    """Train a group until all of its trials have ended.

    Args:
        group: At its first step.
        study: The prepared study.
        emit: Takes each result as soon as it is there.

    Raises:
        UnstackableError: What the trials share does not run: they must be run one by one.
        DiskError: The disk takes no more checkpoints; the trials without a result did not end.
    """
    active = list(group.trials)
    while active:
        stack = _Stack(group, active)
        results: list[TrialResult] = []
        while not results:
            results = _step(stack, active, study)
        for result in results:
            emit(result)
        ended = {result.number for result in results}
        active = [trial for trial in active if trial.spec.number not in ended]


def _step(stack: _Stack, active: Sequence[HeadTrial], study: PreparedStudy) -> list[TrialResult]:
    """Make one step of each trial; return the results of those that have ended."""
    began = time.perf_counter()
    try:
        losses, norms = stack.backward()
    except Exception as error:  # in what is common to all of them
        if not any(trial.state.step for trial in active):
            raise UnstackableError(str(error)) from error
        failure = failure_of(error)
        return [result_of(t.spec, study, t.state, Outcome.FAILED, failure) for t in active]
    updates = [partial(_update, t, losses[i], norms[i]) for i, t in enumerate(active)]
    ended = [_result(t, study, update) for t, update in zip(active, updates, strict=True)]
    seconds = (time.perf_counter() - began) / len(active)
    for trial in active:
        trial.state.seconds += seconds
    for index, trial in enumerate(active):
        if ended[index] is None:
            ended[index] = _result(trial, study, partial(_after, trial))
    return [result for result in ended if result is not None]


def _result(
    trial: HeadTrial, study: PreparedStudy, run: Callable[[], Outcome | None]
) -> TrialResult | None:
    """Do something for one trial; return its result if the trial has ended with it."""
    failure = None
    try:
        outcome = run()
    except DiskError:
        raise
    except Exception as error:
        outcome, failure = Outcome.FAILED, failure_of(error)
    if outcome is None:
        return None
    trial.state.memory = trial.parts.memory.record
    return result_of(trial.spec, study, trial.state, outcome, failure)


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
        targets = [trial.loss.soft_targets(group.num_labels) for trial in trials]
        self._targets = functional.pad(torch.stack(targets), (0, 0, 0, 1)).to(device)
        limits = [trial.parts.recipe.max_grad_norm for trial in trials]
        self._limits = torch.tensor(limits, device=device)

    def backward(self) -> tuple[Tensor, Tensor]:
        """Give each head the gradients of its next batch, clipped to the recipe's norm.

        Returns:
            Mean loss of each batch in nats and norm of its gradients before clipping, shape (G,).
        """
        batches = [trial.rows() for trial in self._trials]
        for trial in self._trials:
            trial.masks.begin(trial.state.step)
        labels = (torch.from_numpy(self._group.labels[rows]) for rows in batches)
        weights = [t.loss.weight(own) for t, own in zip(self._trials, labels, strict=True)]
        divisors = to_device(torch.tensor(weights), self._device)
        if self._computing is not self._stacked:
            with torch.no_grad():
                torch._foreach_copy_(list(self._computing.values()), list(self._stacked.values()))
        losses = torch.zeros(len(batches), device=self._device)
        gradients: list[Tensor] = []
        for rows in zip_longest(*map(_micro_batches, self._trials, batches), fillvalue=_NO_ROWS):
            part = self._losses(rows) / divisors
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
