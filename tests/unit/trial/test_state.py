"""The state of a trial survives being written, and knows its best validation."""

from __future__ import annotations

import dataclasses
import json

import pytest

from automl_ft.specs.decision import Evaluation
from automl_ft.trial.state import TrainingState


def evaluation(step: int, **metrics: float) -> Evaluation:
    return Evaluation(step=step, epoch=step / 10, metrics=metrics, seconds=1.5)


@pytest.fixture
def state() -> TrainingState:
    state = TrainingState(epoch=1, batch=2, step=7, examples_seen=50, stage=1, seconds=2.25)
    state.peak_memory_mib, state.loss_sum, state.loss_steps = 120.5, 3.1, 4
    state.note_validation(evaluation(10, validation_f1_macro=0.1 + 0.2), 0.1 + 0.2)
    state.note_validation(evaluation(20, validation_f1_macro=0.1), 0.1)
    return state


def test_a_state_survives_json(state: TrainingState) -> None:
    assert TrainingState.from_plain(json.loads(json.dumps(state.to_plain()))) == state


def test_a_fresh_state_survives(state: TrainingState) -> None:
    assert TrainingState.from_plain(TrainingState().to_plain()) == TrainingState()


def test_every_field_is_written(state: TrainingState) -> None:
    assert set(state.to_plain()) == {field.name for field in dataclasses.fields(TrainingState)}


def test_the_first_validation_is_the_best() -> None:
    state = TrainingState()
    assert state.note_validation(evaluation(10, a=0.0), 0.0)
    assert (state.best_value, state.best_step, state.best_metrics) == (0.0, 10, {"a": 0.0})


def test_a_better_one_takes_over_and_resets_the_patience(state: TrainingState) -> None:
    assert state.validations_without_gain == 1
    assert state.note_validation(evaluation(30, a=0.9), 0.9)
    assert (state.best_value, state.best_step, state.best_metrics) == (0.9, 30, {"a": 0.9})
    assert state.validations_without_gain == 0


def test_an_equal_one_does_not_displace_the_earlier(state: TrainingState) -> None:
    assert not state.note_validation(evaluation(30, a=0.3), 0.1 + 0.2)
    assert (state.best_step, state.validations_without_gain) == (10, 2)


def test_nan_is_never_the_best() -> None:
    state = TrainingState()
    assert not state.note_validation(evaluation(10), float("nan"))
    assert state.best_value is None
    assert state.note_validation(evaluation(20), -1.0)


def test_every_validation_is_kept_in_order(state: TrainingState) -> None:
    assert [e.step for e in state.evaluations] == [10, 20]


def test_the_mean_training_loss_starts_anew_after_a_validation(state: TrainingState) -> None:
    assert (state.loss_sum, state.loss_steps) == (0.0, 0)
