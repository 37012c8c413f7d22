"""What goes wrong in a group of heads: whose failure it is, and how the others go on."""

from __future__ import annotations

import dataclasses
import logging
import math
from collections.abc import Callable, Iterator, Mapping
from itertools import zip_longest
from pathlib import Path
from typing import Any

import pytest
import torch

from automl_ft.errors import DiskError
from automl_ft.specs.decision import Decision
from automl_ft.specs.failure import FailureKind
from automl_ft.specs.trial import Outcome, TrialResult
from automl_ft.trial import loop, stacked
from automl_ft.trial.checkpoint import load_last
from automl_ft.trial.device import DeviceLostError
from automl_ft.trial.heads import HeadTrial
from automl_ft.trial.losses import DivergedError
from automl_ft.trial.prepare import PreparedStudy
from tests.fakes.head_groups import GroupBench, assert_equal, with_cache

RECIPES: list[dict[str, Any]] = [
    {"dropout": 0.3, "lr_schedule": "cosine"},
    {"batch_size": 16, "l1": 0.1, "learning_rate": 1e-2},
    {"epochs": 3, "batch_size": 4, "weight_decay": 0.3},
]
NUM_STEPS = [12, 6, 33]
"""Steps of each, of 41 rows."""


@pytest.fixture
def bench(study: PreparedStudy, tmp_path: Path, script: Any) -> GroupBench:
    return GroupBench(with_cache(study, tmp_path), tmp_path, script)


class Quiet:
    """A reporter that never interferes."""

    def progress(self, _: Any) -> Decision:
        return Decision.CONTINUE

    def report(self, _: Any) -> Decision:
        return Decision.CONTINUE


@pytest.fixture(scope="module")
def alone(study: PreparedStudy, tmp_path_factory: pytest.TempPathFactory) -> list[TrialResult]:
    """The results of trials that were never a group."""
    folder = tmp_path_factory.mktemp("alone")
    return GroupBench(with_cache(study, folder), folder, Quiet).alone(RECIPES)


def full() -> RuntimeError:
    return RuntimeError("CUDA out of memory. Tried to allocate 2.00 MiB")


class Faulty:
    """Does as what it stands for, but raises in one call of one method, or in all from then on."""

    def __init__(
        self,
        real: Any,
        method: str,
        error: Callable[[], Exception],
        *,
        call: int = 0,
        is_lasting: bool = False,
    ) -> None:
        self._real = real
        self._faulty = method
        self._error = error
        self._calls = range(call, 10**9 if is_lasting else call + 1)
        self._count = -1

    def __getattr__(self, name: str) -> Any:
        if name != self._faulty:
            return getattr(self._real, name)

        def run(*args: Any) -> Any:
            self._count += 1
            if self._count in self._calls:
                raise self._error()
            return getattr(self._real, name)(*args)

        return run


def of_member(number: int, **changes: Callable[[Any], Any]) -> Callable[[HeadTrial], HeadTrial]:
    """Return what gives one trial of a group another field, or another part."""

    def change(trial: HeadTrial) -> HeadTrial:
        if trial.spec.number != number:
            return trial
        for name, wrap in changes.items():
            if hasattr(trial, name):
                trial = dataclasses.replace(trial, **{name: wrap(getattr(trial, name))})
            else:
                parts = dataclasses.replace(trial.parts, **{name: wrap(getattr(trial.parts, name))})
                trial = dataclasses.replace(trial, parts=parts)
        return trial

    return change


@pytest.fixture
def fail_at(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Have what trials share raise in one step."""

    def fail(step: int, error: Callable[[], Exception] = full) -> None:
        calls: Iterator[int] = iter(range(step))

        def micro_batches(*batches: Any, fillvalue: Any) -> Any:
            if next(calls, None) is None:
                raise error()
            return zip_longest(*batches, fillvalue=fillvalue)

        monkeypatch.setattr(stacked, "zip_longest", micro_batches)

    return fail


def counts(results: list[TrialResult]) -> list[int]:
    return [-1 if r.memory is None else r.memory.num_out_of_memory for r in results]


def assert_all_equal(results: list[TrialResult], alone: list[TrialResult]) -> None:
    for one, other in zip(results, alone, strict=True):
        assert_equal(one, other)


@pytest.mark.parametrize("step", [0, 1, 3, 4, 8, 14])
def test_where_memory_runs_out_the_trials_go_on_alone(
    bench: GroupBench, alone: list[TrialResult], fail_at: Any, step: int
) -> None:
    fail_at(step)
    results = bench.in_trouble(RECIPES)
    assert_all_equal(results, alone)
    assert counts(results) == [int(number > step) for number in NUM_STEPS]


def test_no_step_is_made_twice(bench: GroupBench, fail_at: Any, script: Any) -> None:
    fail_at(4)
    reporters = {number: script() for number in range(3)}
    bench.in_trouble(RECIPES, reporters=reporters)
    for number, steps in enumerate(NUM_STEPS):
        examples = [progress.examples_seen for progress in reporters[number].progresses]
        assert len(examples) == steps
        assert examples == sorted(examples)


def test_the_checkpoint_tells_of_the_last_step_and_of_memory(
    bench: GroupBench, fail_at: Any
) -> None:
    fail_at(4)
    pauses = iter([False, True, True, True])
    results = bench.in_trouble(RECIPES, is_pausing=lambda: next(pauses))
    assert {result.outcome for result in results} == {Outcome.PAUSED}
    for number, result in enumerate(results):
        saved = load_last(bench.folder / "together" / str(number), torch.device("cpu"))
        assert saved is not None
        assert saved["state"]["step"] == 4
        assert saved["state"]["memory"]["num_out_of_memory"] == 1
        assert result.cost.examples == saved["state"]["examples_seen"]
        assert len(result.evaluations) == len(saved["state"]["evaluations"])


def test_a_pause_that_comes_meanwhile_loses_nothing(
    bench: GroupBench, alone: list[TrialResult], fail_at: Any
) -> None:
    fail_at(4)
    pauses = iter([False, True, True, True])
    bench.in_trouble(RECIPES, is_pausing=lambda: next(pauses))
    resumed = [bench.resume(number, recipe) for number, recipe in enumerate(RECIPES)]
    assert_all_equal(resumed, alone)
    assert counts(resumed) == [1, 1, 1]


def test_trials_that_ended_before_keep_their_results(bench: GroupBench, fail_at: Any) -> None:
    fail_at(8)
    assert counts(bench.in_trouble(RECIPES)) == [1, 0, 1]


def test_the_log_says_once_that_memory_ran_out(
    bench: GroupBench, fail_at: Any, caplog: pytest.LogCaptureFixture
) -> None:
    fail_at(8)
    bench.in_trouble(RECIPES)
    (record,) = caplog.records
    assert record.levelno == logging.WARNING
    assert "on their own from now on: 0, 2. RuntimeError: CUDA out of memory" in record.message
    assert "Traceback" not in record.message


def test_after_any_other_error_that_is_nobodys_each_trial_is_tried_alone(
    bench: GroupBench, alone: list[TrialResult], fail_at: Any, caplog: pytest.LogCaptureFixture
) -> None:
    fail_at(4, lambda: ZeroDivisionError("no such kernel"))
    results = bench.in_trouble(RECIPES)
    assert_all_equal(results, alone)
    assert counts(results) == [0, 0, 0]
    (record,) = caplog.records
    assert "Traceback" in record.message
    assert "ZeroDivisionError: no such kernel" in record.message


@pytest.mark.parametrize("build", [0, 1])
def test_parameters_that_cannot_be_put_together_are_left_apart(
    bench: GroupBench, alone: list[TrialResult], monkeypatch: pytest.MonkeyPatch, build: int
) -> None:
    calls = iter(range(build))

    class Full(stacked._Stack):
        def __init__(self, *args: Any) -> None:
            super().__init__(*args)
            if next(calls, None) is None:
                raise full()

    monkeypatch.setattr(stacked, "_Stack", Full)
    results = bench.in_trouble(RECIPES)
    assert_all_equal(results, alone)
    assert counts(results) == [1, build ^ 1, 1]


@pytest.mark.parametrize(
    ("field", "method", "call"),
    [
        ("loss", "soft_targets", 0),
        ("loss", "weight", 5),
        ("masks", "begin", 5),
        ("masks", "draw", 0),
        ("batches", "order", 0),
        ("batches", "order", 1),
        ("optimizer", "step", 5),
        ("schedule", "step", 5),
        ("losses", "add", 5),
        ("memory", "all_scores", 1),
    ],
)
def test_what_goes_wrong_for_one_trial_fails_that_trial_only(
    bench: GroupBench,
    alone: list[TrialResult],
    caplog: pytest.LogCaptureFixture,
    field: str,
    method: str,
    call: int,
) -> None:
    broken = {field: lambda real: Faulty(real, method, lambda: ValueError("mine"), call=call)}
    results = bench.in_trouble(RECIPES, of_member(1, **broken))
    assert results[1].outcome is Outcome.FAILED
    assert results[1].failure is not None
    assert results[1].failure.kind is FailureKind.ERROR
    assert results[1].failure.message == "ValueError: mine"
    assert "mine" in results[1].failure.traceback
    assert_equal(results[0], alone[0])
    assert_equal(results[2], alone[2])
    assert caplog.records == []


class NotFinite:
    """A loss whose mean is not a number from one step on."""

    def __init__(self, real: Any, step: int, value: float) -> None:
        self._real = real
        self._calls = iter(range(step))
        self._value = value

    def soft_targets(self, num_labels: int) -> Any:
        return self._real.soft_targets(num_labels)

    def weight(self, labels: Any) -> float:
        found: float = self._real.weight(labels)
        return found if next(self._calls, None) is not None else self._value


@pytest.mark.parametrize("value", [0.0, math.nan])
def test_a_loss_that_is_not_finite_fails_its_own_trial_only(
    bench: GroupBench, alone: list[TrialResult], value: float
) -> None:
    results = bench.in_trouble(RECIPES, of_member(0, loss=lambda real: NotFinite(real, 3, value)))
    assert results[0].failure is not None
    assert results[0].failure.kind is FailureKind.DIVERGED
    assert results[0].cost.examples == 3 * 8
    assert_equal(results[1], alone[1])
    assert_equal(results[2], alone[2])


def test_the_last_straw_is_not_the_load(bench: GroupBench, alone: list[TrialResult]) -> None:
    masks = of_member(0, masks=lambda real: Faulty(real, "draw", full, call=5))
    results = bench.in_trouble(RECIPES, masks)
    assert_all_equal(results, alone)
    assert counts(results) == [1, 1, 1]


@pytest.mark.parametrize(
    ("field", "method", "call"),
    [
        ("optimizer", "step", 0),
        ("optimizer", "step", 5),
        ("schedule", "step", 2),
        ("schedule", "step", 7),
        ("score", "__call__", 1),
    ],
)
def test_a_trial_whose_own_step_is_too_much_goes_on_alone_from_its_checkpoint(
    bench: GroupBench,
    alone: list[TrialResult],
    caplog: pytest.LogCaptureFixture,
    field: str,
    method: str,
    call: int,
) -> None:
    def wrap(real: Any) -> Any:
        faulty = Faulty(real, method, full, call=call)
        return faulty if method != "__call__" else lambda scores: getattr(faulty, method)(scores)

    results = bench.in_trouble(RECIPES, of_member(0, **{field: wrap}))
    assert_all_equal(results, alone)
    assert counts(results) == [1, 0, 0]
    (record,) = caplog.records
    assert "on their own from now on: 0. RuntimeError" in record.message


def test_a_validation_is_begun_anew_with_half_the_rows(
    bench: GroupBench, alone: list[TrialResult], caplog: pytest.LogCaptureFixture
) -> None:
    scorer = of_member(0, validation=lambda real: Faulty(real, "all_scores", full, call=1))
    results = bench.in_trouble(RECIPES, scorer)
    assert_all_equal(results, alone)
    assert counts(results) == [1, 0, 0]
    assert caplog.records == []


def test_a_validation_that_never_fits_leaves_the_trial_to_itself(
    bench: GroupBench, alone: list[TrialResult]
) -> None:
    def wrap(real: Any) -> Any:
        return Faulty(real, "all_scores", full, call=1, is_lasting=True)

    results = bench.in_trouble(RECIPES, of_member(0, validation=wrap))
    assert_all_equal(results, alone)
    assert counts(results) == [1, 0, 0]


def test_a_trial_that_cannot_be_written_goes_on_from_the_checkpoint_before(
    bench: GroupBench,
    alone: list[TrialResult],
    fail_at: Any,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    fail_at(5)

    def fail(*_: Any) -> None:
        raise full()

    monkeypatch.setattr(stacked, "save_checkpoint", fail)
    results = bench.in_trouble(RECIPES)
    assert_all_equal(results, alone)
    assert counts(results) == [1, 1, 1]
    assert len(caplog.records) == 4


def test_memory_that_ran_out_counts_once_where_nothing_can_be_written(
    bench: GroupBench, fail_at: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    fail_at(5)

    def fail(*_: Any) -> None:
        raise full()

    monkeypatch.setattr(stacked, "save_checkpoint", fail)
    pauses = iter([False, True, True, True])
    assert counts(bench.in_trouble(RECIPES, is_pausing=lambda: next(pauses))) == [1, 1, 1]


def test_a_full_disk_ends_the_group_that_is_written(
    bench: GroupBench, fail_at: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    fail_at(1)

    def fail(*_: Any) -> None:
        raise DiskError("full")

    monkeypatch.setattr(loop, "save_last", fail)
    with pytest.raises(DiskError, match="full"):
        bench.in_trouble(RECIPES)


def test_a_loss_that_comes_late_still_ends_its_trial(
    bench: GroupBench, alone: list[TrialResult], fail_at: Any
) -> None:
    fail_at(2)

    def late() -> Exception:
        return DivergedError("training loss nan at step 1")

    results = bench.in_trouble(
        RECIPES, of_member(0, losses=lambda real: Faulty(real, "drain", late))
    )
    assert results[0].failure is not None
    assert results[0].failure.kind is FailureKind.DIVERGED
    assert_equal(results[1], alone[1])
    assert_equal(results[2], alone[2])


def test_decisions_after_the_trouble_are_obeyed(
    bench: GroupBench, fail_at: Any, script: Any
) -> None:
    fail_at(4)
    where: Mapping[int, Any] = {
        0: {"steps": {7: Decision.PAUSE}},
        2: {"steps": {9: Decision.PRUNE}},
    }
    results = bench.in_trouble(RECIPES, reporters={n: script(**told) for n, told in where.items()})
    alone = bench.alone(RECIPES, {n: script(**told) for n, told in where.items()})
    assert [r.outcome for r in results] == [Outcome.PAUSED, Outcome.COMPLETE, Outcome.PRUNED]
    assert_all_equal(results, alone)


def test_a_result_is_there_before_another_trial_finds_the_disk_full(
    bench: GroupBench, script: Any
) -> None:
    told: list[int] = []
    recipes = [{"epochs": 1}, {"epochs": 1}]
    reporters = {1: script(reports={2: DiskError("full")})}
    with pytest.raises(DiskError):
        bench.in_trouble(recipes, reporters=reporters, heard=told.append)
    assert told == [0]


def test_a_lost_device_is_nobody_s_failure(
    bench: GroupBench, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Errors of a GPU come late, so the trial in which one shows need not be its cause."""

    def assert_fails(*_: Any) -> None:
        raise RuntimeError("CUDA error: device-side assert triggered")

    monkeypatch.setattr(stacked, "is_lost", lambda device: True)
    monkeypatch.setattr(stacked, "_update", assert_fails)
    with pytest.raises(DeviceLostError, match="RuntimeError: CUDA error: device-side assert"):
        bench.together(RECIPES)
