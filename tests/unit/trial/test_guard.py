"""A trial that runs out of memory goes on with less at once, to the same gradients."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from automl_ft.models.checkpointing import _Checkpointed
from automl_ft.specs.decision import Decision
from automl_ft.specs.failure import FailureKind
from automl_ft.specs.trial import Outcome, TrialMemory
from automl_ft.trial.build import build_job
from automl_ft.trial.forward import Forward, ModelInputs
from automl_ft.trial.guard import TornStepError, halved
from automl_ft.trial.loop import Job, train_step
from automl_ft.trial.prepare import PreparedStudy
from automl_ft.trial.state import TrainingState
from automl_ft.trial.study_memory import StudyMemory
from automl_ft.trial.techniques import NONE

ROWS = np.arange(13)


class Device:
    """Stands for a device that takes so many rows, or blocks that are checkpointed only."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.most = 10**9
        self.needs_checkpointing = False
        self.tried: list[int] = []
        own, make = Forward.scores, Forward.model_inputs

        def model_inputs(forward: Forward, rows: Any, augmentation: Any, key: Any) -> ModelInputs:
            self.tried.append(len(rows))
            return make(forward, rows, augmentation, key)

        @contextmanager
        def scores(forward: Forward, made: ModelInputs) -> Any:
            with own(forward, made) as found:
                # Late, so that there is something to be dropped and masks were drawn.
                if self.tried[-1] > self.most or (
                    self.needs_checkpointing and not _is_checkpointed(forward)
                ):
                    raise torch.OutOfMemoryError("CUDA out of memory.")
                yield found

        monkeypatch.setattr(Forward, "model_inputs", model_inputs)
        monkeypatch.setattr(Forward, "scores", scores)


def _is_checkpointed(forward: Forward) -> bool:
    # The top block may be computed only where the head reads, which keeps little in any case.
    lowest = forward.view.model.get_submodule(forward.view.layer_map.block_modules[0])
    return isinstance(lowest.__dict__.get("forward"), _Checkpointed)


@pytest.fixture
def own_study(study_with: Callable[..., PreparedStudy]) -> PreparedStudy:
    """A study that has learnt nothing yet."""
    found = study_with(micro_batch_size="auto")
    return dataclasses.replace(found, memory=StudyMemory(profiles=found.memory.profiles))


@pytest.fixture
def job(own_study: PreparedStudy, make_spec: Callable[..., Any]) -> Callable[..., Job]:
    """Return a function that builds a trial, ready for its first step."""

    def make(**recipe: Any) -> Job:
        built = build_job(make_spec(**{"dropout": 0.0, "batch_size": 13, **recipe}), own_study)
        built.compute.enter(built.plan, 0)
        return built

    return make


@pytest.fixture
def device(job: object, monkeypatch: pytest.MonkeyPatch) -> Device:
    return Device(monkeypatch)


def gradients(job: Job) -> dict[str, torch.Tensor]:
    return {n: p.grad.clone() for n, p in job.model.named_parameters() if p.grad is not None}


def assert_close(found: dict[str, torch.Tensor], expected: dict[str, torch.Tensor]) -> None:
    assert found.keys() == expected.keys()
    for name, gradient in expected.items():
        torch.testing.assert_close(found[name], gradient, atol=1e-6, rtol=1e-4, msg=name)


@pytest.mark.parametrize(("size", "half"), [(2, 1), (3, 2), (16, 8), (33, 17)])
def test_an_odd_row_goes_with_the_first_half(size: int, half: int) -> None:
    assert halved(size) == half


@pytest.mark.parametrize(("most", "tried"), [(7, [13, 7, 6]), (3, [13, 7, 4, 2, 2, 2, 2, 2, 2, 1])])
def test_the_step_is_begun_anew_with_half_as_many_rows(
    job: Callable[..., Job], device: Device, most: int, tried: list[int]
) -> None:
    whole = job()
    loss = whole.memory.backward(ROWS, 0, 0)
    small = job()
    device.most, device.tried = most, []
    found = small.memory.backward(ROWS, 0, 0)
    assert device.tried == tried
    assert found.item() == pytest.approx(loss.item(), abs=1e-6)
    assert_close(gradients(small), gradients(whole))


def test_gradients_of_micro_batches_before_the_failure_are_dropped(
    job: Callable[..., Job], device: Device, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = job()
    whole.memory.backward(ROWS, 0, 0)
    small = job()
    small.stepper.micro_batch_size = 8
    small.memory.record = dataclasses.replace(small.memory.record, micro_batch_size=8)
    own, calls = Forward.scores, 0

    @contextmanager
    def second_fails(*args: Any) -> Any:
        nonlocal calls
        calls += 1
        with own(*args) as scores:
            if calls == 2:
                assert gradients(small)
                raise torch.OutOfMemoryError("CUDA out of memory.")
            yield scores

    monkeypatch.setattr(Forward, "scores", second_fails)
    small.memory.backward(ROWS, 0, 0)
    assert calls == 6
    assert_close(gradients(small), gradients(whole))


@pytest.mark.parametrize("techniques", ["all", "none"])
def test_a_step_that_was_begun_anew_draws_what_it_would_have_drawn(
    own_study: PreparedStudy, make_spec: Any, device: Device, techniques: str
) -> None:
    def build() -> Job:
        spec = make_spec(dropout=0.3, batch_size=16, mixup=0.5)
        made = build_job(spec, own_study, *([NONE] if techniques == "none" else []))
        made.compute.enter(made.plan, 0)
        return made

    small = build()
    small.stepper.micro_batch_size = 4
    small.memory.record = dataclasses.replace(small.memory.record, micro_batch_size=4)
    small.memory.backward(ROWS, 0, 5)
    failing = build()
    device.most = 4
    failing.memory.backward(ROWS, 0, 5)
    assert failing.memory.record.micro_batch_size == 4
    assert_close(gradients(failing), gradients(small))


def test_it_is_recorded_and_the_next_step_begins_smaller(
    job: Callable[..., Job], device: Device
) -> None:
    small = job()
    device.most = 4
    small.memory.backward(ROWS, 0, 0)
    device.tried = []
    small.memory.backward(ROWS, 0, 1)
    assert device.tried == [4, 4, 4, 1]
    record = small.memory.record
    assert (record.micro_batch_size, record.num_out_of_memory) == (4, 2)
    assert not record.is_checkpointing
    assert record.correction > 1


def test_forecasts_of_the_study_are_corrected(
    job: Callable[..., Job], device: Device, own_study: PreparedStudy
) -> None:
    small = job()
    device.most = 7
    small.memory.backward(ROWS, 0, 0)
    assert 1.1 <= own_study.memory.correction("cpu") <= 2
    later = job()
    assert later.memory.record.correction == own_study.memory.correction("cpu")
    assert later.memory.forecast.total_mib > small.memory.forecast.total_mib


@pytest.mark.parametrize(("shortfall", "factor"), [(0.2, 1.1), (1.4, 1.4), (50.0, 2.0)])
def test_a_correction_makes_the_failed_size_fit_no_more_within_bounds(
    job: Callable[..., Job], device: Device, shortfall: float, factor: float
) -> None:
    small = job()
    small.memory.shortfall = lambda record: shortfall
    device.most = 7
    small.memory.backward(ROWS, 0, 0)
    assert small.memory.record.correction == pytest.approx(factor)


@pytest.mark.parametrize("dropout", [0.0, 0.2])
def test_blocks_are_checkpointed_when_a_single_row_is_too_much(
    job: Callable[..., Job], device: Device, dropout: float
) -> None:
    plain = job(dropout=dropout)
    plain.stepper.micro_batch_size = 1
    plain.memory.backward(ROWS, 0, 0)
    small = job(dropout=dropout)
    device.needs_checkpointing, device.tried = True, []
    small.memory.backward(ROWS, 0, 0)
    assert device.tried == [13, 7, 4, 2, 1, *[1] * 13]
    assert small.memory.record.is_checkpointing
    assert small.memory.record.micro_batch_size == 1
    assert_close(gradients(small), gradients(plain))


def test_what_does_not_fit_at_all_is_an_error(job: Callable[..., Job], device: Device) -> None:
    small = job()
    device.most = 0
    with pytest.raises(torch.OutOfMemoryError):
        small.memory.backward(ROWS, 0, 0)
    assert small.memory.record.is_checkpointing


def test_other_errors_are_not_retried(
    job: Callable[..., Job], monkeypatch: pytest.MonkeyPatch
) -> None:
    made = job()
    calls = []

    def broken(*args: object) -> None:
        calls.append(args)
        raise ValueError("a fault of ours")

    monkeypatch.setattr("automl_ft.trial.step.StepRunner.backward", broken)
    with pytest.raises(ValueError, match="a fault of ours"):
        made.memory.backward(ROWS, 0, 0)
    assert len(calls) == 1


def test_validation_goes_on_with_half_its_batch(job: Callable[..., Job], device: Device) -> None:
    made = job()
    made.model.eval()
    whole = made.memory.all_scores(made.validation)
    device.most, device.tried = 2, []
    found = made.memory.all_scores(made.validation)
    assert device.tried[:3] == [8, 4, 2]
    np.testing.assert_allclose(found, whole, atol=1e-5)
    assert (made.memory.record.eval_batch_size, made.memory.record.num_out_of_memory) == (2, 2)


def test_a_validation_row_that_does_not_fit_is_an_error(
    job: Callable[..., Job], device: Device
) -> None:
    made = job()
    device.most = 0
    with pytest.raises(torch.OutOfMemoryError):
        made.memory.all_scores(made.validation)


def test_a_resumed_trial_keeps_its_sizes(job: Callable[..., Job]) -> None:
    made = job()
    stored = TrialMemory(
        micro_batch_size=2, eval_batch_size=4, num_out_of_memory=3, is_checkpointing=True
    )
    made.memory.resume(stored)
    assert made.stepper.micro_batch_size == 2
    assert made.memory.record == stored
    assert _is_checkpointed(made.stepper.forward)


def test_a_resumed_trial_is_smaller_where_there_is_less_by_now(job: Callable[..., Job]) -> None:
    made = job()
    made.memory.resume(TrialMemory(micro_batch_size=64, eval_batch_size=64))
    assert (made.stepper.micro_batch_size, made.memory.record.eval_batch_size) == (13, 8)


def test_a_trial_without_a_record_keeps_what_was_chosen(job: Callable[..., Job]) -> None:
    made = job()
    before = made.memory.record
    made.memory.resume(None)
    assert made.memory.record == before


def test_a_trial_tells_how_it_fitted(run: Any, own_study: PreparedStudy, device: Device) -> None:
    device.most = 4
    result = run(study=own_study, batch_size=16)
    assert (result.outcome, result.failure) == (Outcome.COMPLETE, None)
    assert result.memory.micro_batch_size == 4
    assert result.memory.eval_batch_size == 4
    assert result.memory.num_out_of_memory == 3
    assert result.cost.forecast_mib > 0


def test_its_losses_are_those_of_a_trial_with_memory(
    run: Any, own_study: PreparedStudy, device: Device, tmp_path: Path
) -> None:
    whole = run(study=own_study, dropout=0.0, folder=tmp_path / "whole")
    device.most = 4
    small = run(study=own_study, dropout=0.0, folder=tmp_path / "small")
    losses = [[e.metrics["train_loss"] for e in r.evaluations] for r in (whole, small)]
    assert losses[1] == pytest.approx(losses[0], abs=1e-4)


def test_how_it_fitted_outlives_an_interruption(
    run: Any, own_study: PreparedStudy, device: Device, script: Any, tmp_path: Path
) -> None:
    device.most = 4
    folder = tmp_path / "parts"
    first = run(script(reports={1: Decision.PAUSE}), study=own_study, folder=folder)
    assert first.outcome is Outcome.PAUSED
    device.most, device.tried = 10**9, []
    second = run(study=dataclasses.replace(own_study, memory=StudyMemory()), folder=folder)
    assert second.memory.num_out_of_memory == first.memory.num_out_of_memory > 0
    assert second.memory.micro_batch_size == 4
    assert max(device.tried) <= 64


def test_a_trial_that_does_not_fit_fails_as_out_of_memory(
    run: Any, own_study: PreparedStudy, device: Device
) -> None:
    device.most = 0
    result = run(study=own_study)
    assert result.outcome is Outcome.FAILED
    assert result.failure.kind is FailureKind.OUT_OF_MEMORY
    assert result.memory.is_checkpointing
    assert result.memory.num_out_of_memory == 4


class OptimizerMemory:
    """Stands for a device that has no room for the optimiser's state, so many times."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, times: int) -> None:
        self.left = times
        own, calls = torch.zeros_like, 0

        def zeros_like(*args: Any, **options: Any) -> torch.Tensor:
            nonlocal calls
            calls += 1
            # Not at once, so that some state is there already.
            if "memory_format" in options and calls > 5 and self.left:
                self.left -= 1
                raise torch.OutOfMemoryError("CUDA out of memory.")
            return own(*args, **options)

        monkeypatch.setattr(torch, "zeros_like", zeros_like)


def take_steps(job: Job, number: int) -> dict[str, torch.Tensor]:
    state, order = TrainingState(), job.batches.order(0)
    for _ in range(number):
        train_step(job, state, order)
    return {name: p.detach().clone() for name, p in job.model.named_parameters()}


def test_an_optimiser_without_room_steps_once_and_as_the_plain_path(
    job: Callable[..., Job], monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = {"layerwise_lr_decay": 0.5, "weight_decay": 0.1, "l1": 1e-5}
    plain = take_steps(job(**recipe), 1)
    failing = job(**recipe)
    memory = OptimizerMemory(monkeypatch, 1)
    found = take_steps(failing, 1)
    assert memory.left == 0
    assert plain.keys() == found.keys()
    assert all(torch.equal(found[name], plain[name]) for name in plain)
    steps = {int(state["step"]) for state in failing.optimizer.state.values()}
    assert steps == {1}


def test_an_optimiser_without_room_is_recorded_and_later_steps_are_smaller(
    job: Callable[..., Job],
    own_study: PreparedStudy,
    device: Device,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    made = job()
    OptimizerMemory(monkeypatch, 1)
    take_steps(made, 2)
    record = made.memory.record
    assert (record.num_out_of_memory, record.micro_batch_size) == (1, 7)
    assert record.correction == own_study.memory.correction("cpu") > 1
    assert device.tried == [13, 7, 6]


def test_an_optimiser_that_never_has_room_is_an_error(
    job: Callable[..., Job], monkeypatch: pytest.MonkeyPatch
) -> None:
    made = job()
    OptimizerMemory(monkeypatch, 2)
    with pytest.raises(torch.OutOfMemoryError):
        take_steps(made, 1)


def test_a_trial_that_is_as_small_as_can_be_only_counts(
    job: Callable[..., Job], monkeypatch: pytest.MonkeyPatch
) -> None:
    made = job()
    made.memory.resume(TrialMemory(micro_batch_size=1, eval_batch_size=1, is_checkpointing=True))
    OptimizerMemory(monkeypatch, 1)
    take_steps(made, 1)
    record = made.memory.record
    assert (record.micro_batch_size, record.is_checkpointing) == (1, True)
    assert record.num_out_of_memory == 1


@pytest.mark.parametrize(
    ("error", "raised"),
    [(torch.OutOfMemoryError("CUDA out of memory."), TornStepError), (KeyError("x"), KeyError)],
)
def test_memory_that_runs_out_while_parameters_move_tears_the_step(
    job: Callable[..., Job], error: Exception, raised: type[Exception]
) -> None:
    made = job()

    def change() -> None:
        raise error

    with pytest.raises(raised):
        made.memory.update(made.optimizer, change, 13)
    assert made.memory.record.num_out_of_memory == 0


def test_a_run_that_took_less_lowers_the_correction(
    job: Callable[..., Job], own_study: PreparedStudy
) -> None:
    own_study.memory.correct("cpu", 4.0)
    made = job()
    fixed = made.memory.forecast.total_mib - made.memory.forecast.batch_mib
    made.memory.settle(fixed + made.memory.forecast.batch_mib)
    assert own_study.memory.correction("cpu") == 4.0
    made.memory.settle(fixed + made.memory.forecast.batch_mib / 4)
    assert own_study.memory.correction("cpu") == pytest.approx(2.0)


def test_a_run_that_ran_out_of_memory_lowers_nothing(
    job: Callable[..., Job], own_study: PreparedStudy, device: Device
) -> None:
    made = job()
    device.most = 7
    made.memory.backward(ROWS, 0, 0)
    correction = own_study.memory.correction("cpu")
    made.memory.settle(0.0)
    assert own_study.memory.correction("cpu") == correction > 1
