"""Losses arrive, are summed up once, and end a trial that has lost its way."""

from __future__ import annotations

import math

import pytest
import torch

from automl_ft.trial.losses import DivergedError, LossLog
from automl_ft.trial.state import TrainingState

CPU = torch.device("cpu")


def of(value: float) -> torch.Tensor:
    return torch.tensor(value)


def test_the_latest_loss_is_there_at_once_on_a_cpu() -> None:
    log = LossLog(CPU)
    assert math.isnan(log.latest)
    log.add(of(0.75), of(1.0), 1)
    log.add(of(0.5), of(1.0), 2)
    assert log.latest == 0.5


def test_losses_are_summed_up_once() -> None:
    log, state = LossLog(CPU), TrainingState()
    for step, loss in enumerate((0.75, 0.5), 1):
        log.add(of(loss), of(1.0), step)
    log.drain(state)
    log.drain(state)
    assert (state.loss_sum, state.loss_steps) == (1.25, 2)
    log.add(of(0.25), of(1.0), 3)
    log.drain(state)
    assert (state.loss_sum, state.loss_steps) == (1.5, 3)


@pytest.mark.parametrize(
    ("loss", "norm"), [(math.nan, 1.0), (math.inf, 1.0), (1.0, math.nan), (1.0, math.inf)]
)
def test_what_is_not_finite_ends_the_trial_and_names_the_step(loss: float, norm: float) -> None:
    log = LossLog(CPU)
    log.add(of(1.0), of(1.0), 6)
    with pytest.raises(DivergedError, match=rf"loss {loss} and gradient norm {norm} at step 7"):
        log.add(of(loss), of(norm), 7)


def test_a_bf16_loss_with_a_graph_is_taken_too() -> None:
    log = LossLog(CPU)
    log.add(torch.tensor(0.5, dtype=torch.bfloat16, requires_grad=True), of(1.0), 1)
    assert log.latest == 0.5


class FakeEvent:
    """Stands for a copy that is done when it is told so."""

    def __init__(self) -> None:
        self.is_done = False
        self.waits = 0

    def record(self) -> None:
        pass

    def query(self) -> bool:
        return self.is_done

    def synchronize(self) -> None:
        self.waits += 1


@pytest.fixture
def events(monkeypatch: pytest.MonkeyPatch) -> list[FakeEvent]:
    """Pretend that there is a GPU; return the events of its copies."""
    made: list[FakeEvent] = []
    empty = torch.empty

    def make() -> FakeEvent:
        made.append(FakeEvent())
        return made[-1]

    monkeypatch.setattr(torch.cuda, "Event", make)
    monkeypatch.setattr(torch, "empty", lambda *shape, pin_memory=False: empty(*shape))
    return made


def test_on_a_gpu_nothing_waits_for_a_loss(events: list[FakeEvent]) -> None:
    log = LossLog(torch.device("cuda"))
    log.add(of(0.75), of(1.0), 1)
    assert math.isnan(log.latest)
    events[0].is_done = True
    log.add(of(0.5), of(1.0), 2)
    assert log.latest == 0.75
    assert not any(event.waits for event in events)


def test_before_it_is_summed_up_every_loss_is_waited_for(events: list[FakeEvent]) -> None:
    log, state = LossLog(torch.device("cuda")), TrainingState()
    for step, loss in enumerate((0.75, 0.5), 1):
        log.add(of(loss), of(1.0), step)
    log.drain(state)
    assert (state.loss_sum, state.loss_steps) == (1.25, 2)
    assert [event.waits for event in events] == [1, 1]


def test_a_loss_that_is_not_finite_is_found_when_it_arrives(events: list[FakeEvent]) -> None:
    log = LossLog(torch.device("cuda"))
    log.add(of(math.nan), of(1.0), 1)
    with pytest.raises(DivergedError, match="at step 1"):
        log.drain(TrainingState())
