"""Do steps that are recorded as CUDA graphs give the gradients of others, and are they faster?

Both are found out once, when a study is made, with the very code that trials run.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from automl_ft.models.freezing import FreezingPlan
from automl_ft.trial.forward import Forward
from automl_ft.trial.graphs import RecordedSteps, Recorder
from automl_ft.trial.guard import drop_gradients
from automl_ft.trial.seeding import random_states, restore_random_states
from automl_ft.trial.step import StepRunner
from automl_ft.trial.stopwatch import PACKED, Stopwatch

__all__ = ["GraphLook", "look_at_graphs"]

_ROWS = 16
"""Rows of a step."""
_WARM_UP = 3
"""Steps until the recording is there, and one of it was run."""
_STEPS, _ROUNDS = 5, 3
_CLEARLY = 1.1
"""Recorded steps must be faster by this factor, as some steps of a trial are not recorded."""
_TOLERANCE = 1e-2
"""How far the gradients of a parameter may be from others, relative to their norm: kernels are the
same, but a few of them add up in an order of their own."""


@dataclass(frozen=True, kw_only=True, slots=True)
class GraphLook:
    """What was found."""

    pays: bool
    """Whether recorded steps are faster."""
    problem: str
    """Why there are none; empty where they can be had."""


class _Squares:
    """A loss for any scores."""

    def weight(self, targets: Tensor) -> float:
        return float(len(targets))

    def total(self, logits: Tensor, targets: Tensor) -> Tensor:
        return logits.float().square().sum()


def look_at_graphs(watch: Stopwatch, recorder: Recorder) -> GraphLook:
    """Record a training step, compare its gradients, and time it.

    Args:
        watch: Holds model and rows.
        recorder: Records work of its device.

    Returns:
        What was found; random states stay as they were, the model is left with gradients.
    """
    return _Look(watch, recorder).found()


class _Look:
    """One look; used once."""

    def __init__(self, watch: Stopwatch, recorder: Recorder) -> None:
        self._watch = watch
        self._problems: list[str] = []
        self._rows = watch.rows[:_ROWS]
        maker = watch.maker(PACKED, in_few_shapes=True)
        self._plain = StepRunner(
            forward=Forward(view=watch.view(PACKED), maker=maker, source=None, deepest_prefix=-1),
            compute=watch.compute,
            loss=_Squares(),
            augmentation=None,
            mixup=0.0,
            micro_batch_size=len(self._rows),
            seed=0,
            stream=None,
            precision=watch.precision,
        )
        graphs = RecordedSteps(recorder, watch.compute, self._problems.append)
        self._recorded = dataclasses.replace(self._plain, graphs=graphs)

    def found(self) -> GraphLook:
        watch = self._watch
        plan = FreezingPlan(layer_map=watch.loaded.layer_map, strategy="none")
        watch.compute.enter(plan, 0)
        states = random_states(watch.device)
        try:
            return self._compared(states)
        finally:
            self._recorded.release()
            restore_random_states(states, watch.device)

    def _compared(self, states: dict[str, Any]) -> GraphLook:
        wanted = self._gradients(self._plain, states)
        for _ in range(_WARM_UP):
            found = self._gradients(self._recorded, states)
        if not self._problems and not _are_close(found, wanted):
            self._problems.append("their gradients are others")
        if self._problems:
            return GraphLook(pays=False, problem=self._problems[0])
        times = {id(stepper): float("inf") for stepper in (self._plain, self._recorded)}
        for _ in range(_ROUNDS):
            for stepper in (self._plain, self._recorded):
                times[id(stepper)] = min(times[id(stepper)], self._seconds(stepper))
        pays = times[id(self._recorded)] * _CLEARLY < times[id(self._plain)]
        return GraphLook(pays=pays, problem="")

    def _gradients(self, stepper: StepRunner, states: dict[str, Any]) -> dict[str, Tensor]:
        """Return copies of the gradients of one step, drawn from the same random numbers."""
        restore_random_states(states, self._watch.device)
        drop_gradients(self._watch.compute)
        stepper.backward(self._rows, 0, 0)
        named = self._watch.compute.master.named_parameters()
        return {name: p.grad.clone() for name, p in named if p.grad is not None}

    def _seconds(self, stepper: StepRunner) -> float:
        def run() -> None:
            for _ in range(_STEPS):
                drop_gradients(self._watch.compute)
                stepper.backward(self._rows, 0, 0)

        return self._watch.seconds(run)


def _are_close(found: dict[str, Tensor], wanted: dict[str, Tensor]) -> bool:
    if found.keys() != wanted.keys():
        return False
    return all(
        bool((found[name] - wanted[name]).norm() <= _TOLERANCE * wanted[name].norm() + 1e-12)
        for name in wanted
    )
