"""Recorded steps are the steps that would have been run, to the last bit that rounding leaves."""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from automl_ft.config.study import StudyConfig
from automl_ft.models import packed
from automl_ft.specs.decision import Decision
from automl_ft.specs.trial import Outcome, TrialResult
from automl_ft.trial import build, graphs
from automl_ft.trial.build import build_job
from automl_ft.trial.guard import drop_gradients
from automl_ft.trial.loop import enter_stage
from automl_ft.trial.prefix_cache import PrefixCache
from automl_ft.trial.prepare import PreparedStudy, prepare_study
from automl_ft.trial.runner import run_trial
from automl_ft.trial.state import TrainingState
from automl_ft.trial.techniques import ALL
from tests.fakes.recorders import BrokenRecorder, TapeRecorder

ON_A_GPU = dataclasses.replace(ALL, cheap_dropout=False)
"""There torch draws the masks."""
FREEZING = [
    {},
    {"freezing": "bottom_layers", "frozen_layers": 1},
    {"freezing": "gradual_unfreezing"},
    {"freezing": "head_only"},
]
NAMES = ["none", "bottom_layers", "gradual_unfreezing", "head_only"]


@pytest.fixture(scope="module")
def packed_study(config: StudyConfig) -> PreparedStudy:
    """A study whose batches are packed however fast they are."""
    training = dataclasses.replace(config.training, batching="packed")
    config = dataclasses.replace(config, training=training)
    return prepare_study(config, (config.model.checkpoint,), None)


@pytest.fixture
def packed_with(packed_study: PreparedStudy) -> Callable[..., PreparedStudy]:
    def change(**changes: Any) -> PreparedStudy:
        training = dataclasses.replace(packed_study.config.training, **changes)
        config = dataclasses.replace(packed_study.config, training=training)
        return dataclasses.replace(packed_study, config=config)

    return change


@pytest.fixture(autouse=True)
def _masks_of_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """Have masks made without a look at their values, as `models.packed` does on a GPU."""
    skips = {"allow_is_causal_skip": False, "allow_is_bidirectional_skip": False}
    make = packed.sdpa_mask
    monkeypatch.setattr(packed, "sdpa_mask", lambda *args, **kwargs: make(*args, **kwargs | skips))


@pytest.fixture
def recorder(monkeypatch: pytest.MonkeyPatch) -> TapeRecorder:
    found = TapeRecorder()
    monkeypatch.setattr(build, "recorder_for", lambda device: found)
    return found


@pytest.fixture
def never(monkeypatch: pytest.MonkeyPatch) -> Callable[[], None]:
    """Have the same batches run without ever being recorded."""
    return lambda: monkeypatch.setattr(graphs, "_MOST", 0)


@pytest.fixture
def run_always(
    packed_with: Any, make_spec: Any, script: Any, tmp_path: Path
) -> Callable[..., TrialResult]:
    def run(
        folder: str, reporter: Any = None, *, training: dict[str, Any] | None = None, **changes: Any
    ) -> TrialResult:
        study = packed_with(**{"cuda_graphs": "always", **(training or {})})
        cache = PrefixCache(tmp_path / "activations", 10**8)
        study = dataclasses.replace(study, cache=cache)
        spec = make_spec(tmp_path / folder, **{"epochs": 3, "dropout": 0.2, **changes})
        return run_trial(spec, study, reporter or script(), ON_A_GPU)

    return run


def losses(result: TrialResult) -> list[float]:
    assert result.failure is None
    return [
        evaluation.metrics[name]
        for evaluation in result.evaluations
        for name in ("train_loss", "validation_loss")
    ]


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("micro_batch_size", [8, 3])
@pytest.mark.parametrize("recipe", FREEZING, ids=NAMES)
def test_a_trial_has_the_losses_of_one_that_records_nothing(
    run_always: Any,
    recorder: TapeRecorder,
    never: Any,
    precision: str,
    micro_batch_size: int,
    recipe: dict[str, Any],
) -> None:
    training = {"precision": precision, "micro_batch_size": micro_batch_size}
    found = run_always("recorded", training=training, epochs=6, **recipe)
    assert recorder.num_replayed > recorder.num_recorded > 0
    before = recorder.num_recorded
    never()
    plain = run_always("plain", training=training, epochs=6, **recipe)
    assert recorder.num_recorded == before
    assert losses(found) == pytest.approx(losses(plain), abs=1e-6)


@pytest.mark.parametrize("recipe", FREEZING[:3], ids=NAMES[:3])
def test_an_interrupted_trial_goes_on_with_the_same_losses(
    run_always: Any, recorder: TapeRecorder, script: Any, recipe: dict[str, Any]
) -> None:
    whole = run_always("whole", **recipe)
    first = run_always("parts", script(steps={7: Decision.PAUSE}), **recipe)
    assert first.outcome is Outcome.PAUSED
    second = run_always("parts", **recipe)
    assert recorder.num_replayed > 0
    assert losses(second) == pytest.approx(losses(whole), abs=1e-6)


def test_class_weights_are_part_of_what_is_recorded(
    run_always: Any,
    recorder: TapeRecorder,
    never: Any,
    packed_study: PreparedStudy,
    monkeypatch: Any,
) -> None:
    weighed = lambda *parts: dataclasses.replace(  # noqa: E731 - it is only passed on
        original(*parts), class_weights=torch.tensor([0.3, 2.0, 1.1])
    )
    original = packed_study.task.loss
    monkeypatch.setattr(type(packed_study.task), "loss", lambda self, *parts: weighed(*parts))
    found = run_always("recorded", label_smoothing=0.1)
    assert recorder.num_replayed > 0
    never()
    plain = run_always("plain", label_smoothing=0.1)
    assert losses(found) == pytest.approx(losses(plain), abs=1e-6)


def test_without_dropout_filler_changes_nothing(run_always: Any, recorder: TapeRecorder) -> None:
    found = run_always("few", dropout=0.0)
    assert recorder.num_replayed > 0
    plain = run_always("plain", dropout=0.0, training={"cuda_graphs": "never"})
    assert losses(found) == pytest.approx(losses(plain), abs=1e-4)


@pytest.mark.parametrize(
    ("changes", "training"),
    [
        ({"mixup": 0.4}, {}),
        ({}, {"cuda_graphs": "never"}),
        ({}, {"cuda_graphs": "auto"}),
    ],
    ids=["mixup", "never", "not faster"],
)
def test_nothing_is_recorded_where_it_is_not_wanted(
    run_always: Any, recorder: TapeRecorder, changes: dict[str, Any], training: dict[str, Any]
) -> None:
    assert run_always("trial", training=training, **changes).failure is None
    assert recorder.num_recorded == 0


def test_where_it_was_faster_auto_records(
    run_always: Any,
    recorder: TapeRecorder,
    packed_study: PreparedStudy,
    packed_with: Any,
    monkeypatch: Any,
) -> None:
    opened = packed_study.checkpoint(None)
    facts = dataclasses.replace(opened.facts, cuda_graphs=True)
    faster = dataclasses.replace(opened, facts=facts)
    monkeypatch.setattr(PreparedStudy, "checkpoint", lambda self, name: faster)
    assert run_always("trial", training={"cuda_graphs": "auto"}).failure is None
    assert recorder.num_replayed > 0


def test_a_cpu_records_nothing(run_always: Any, packed_with: Any, make_spec: Any) -> None:
    assert graphs.recorder_for(torch.device("cpu")) is None
    job = build_job(make_spec(), packed_with(cuda_graphs="always"))
    assert job.stepper.graphs is None
    assert not job.stepper.forward.maker.in_few_shapes


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_where_recording_fails_steps_go_on_and_it_is_told_once(
    run_always: Any, monkeypatch: Any, never: Any, caplog: Any, precision: str
) -> None:
    broken = BrokenRecorder()
    monkeypatch.setattr(build, "recorder_for", lambda device: broken)
    training = {"precision": precision, "micro_batch_size": 3}
    with caplog.at_level(logging.WARNING):
        found = run_always("broken", training=training)
    assert broken.num_tried == 1
    (told,) = [record.getMessage() for record in caplog.records]
    assert "(operation not permitted when stream is capturing)" in told
    never()
    assert losses(found) == pytest.approx(losses(run_always("plain", training=training)), abs=1e-6)


@pytest.fixture
def bench(packed_with: Any, make_spec: Any, recorder: TapeRecorder) -> Any:
    """Return the job of a trial at its first step, without dropout."""
    job = build_job(make_spec(dropout=0.0), packed_with(cuda_graphs="always"), ON_A_GPU)
    enter_stage(job, TrainingState())
    job.stepper.micro_batch_size = 16
    return job


def gradients(job: Any, rows: list[int]) -> dict[str, torch.Tensor]:
    drop_gradients(job.compute)
    job.stepper.backward(np.array(rows), 0, 0)
    named = job.model.named_parameters()
    return {name: p.grad.clone() for name, p in named if p.grad is not None}


def test_a_recording_serves_all_rows_of_its_shape(bench: Any, recorder: TapeRecorder) -> None:
    lengths = bench.batches.split.lengths
    order = np.argsort(lengths, kind="stable")
    alike = [order[start : start + 4].tolist() for start in range(0, 12)]
    wanted = [gradients(bench, rows) for rows in alike[:2]]
    for _ in range(2):
        found = [gradients(bench, rows) for rows in alike]
    assert 0 < recorder.num_recorded < len(alike) < recorder.num_replayed + 12
    for one, other in zip(found, wanted, strict=False):
        assert one.keys() == other.keys()
        for name in other:
            torch.testing.assert_close(one[name], other[name], atol=1e-6, rtol=1e-5)


def test_a_shape_is_recorded_when_it_comes_for_the_third_time(
    bench: Any, recorder: TapeRecorder
) -> None:
    for expected in (0, 0, 1, 1):
        gradients(bench, [1, 2, 3])
        assert recorder.num_recorded == expected
    assert (recorder.num_replayed, bench.stepper.graphs.num_recorded) == (2, 1)
    gradients(bench, [1, 2, 3, 4, 5])  # another number of rows
    assert (recorder.num_recorded, recorder.num_replayed) == (1, 2)


def test_the_loss_of_a_recording_is_not_that_of_the_next(
    bench: Any, recorder: TapeRecorder
) -> None:
    short = np.argsort(bench.batches.split.lengths, kind="stable")[:6]
    for _ in range(3):
        first = bench.stepper.backward(short[:3], 0, 0)
        drop_gradients(bench.compute)
    value = first.item()
    other = bench.stepper.backward(short[3:], 0, 0)
    assert recorder.num_replayed == 2
    assert first.item() == value != other.item()


def test_memory_that_runs_out_takes_the_recordings_with_it(
    bench: Any, recorder: TapeRecorder
) -> None:
    for _ in range(3):
        gradients(bench, [1, 2, 3])
    before = recorder.num_released
    bench.memory.shrink(16)
    assert bench.stepper.graphs.num_recorded == 0
    assert recorder.num_released > before


def test_blocks_that_are_computed_again_are_not_recorded(bench: Any) -> None:
    bench.memory.checkpoint_blocks()
    assert bench.stepper.graphs is None


def test_recordings_are_reckoned_with_memory_of_their_own(
    packed_with: Any, make_spec: Any, recorder: TapeRecorder
) -> None:
    plain = build_job(make_spec(), packed_with(), ON_A_GPU).memory.forecast
    found = build_job(make_spec(), packed_with(cuda_graphs="always"), ON_A_GPU).memory.forecast
    assert 1.9 * plain.training_mib < found.training_mib < 3 * plain.training_mib
    assert found.validation_mib == pytest.approx(plain.validation_mib)


def test_what_waits_for_the_device_cannot_be_recorded() -> None:
    values = torch.zeros(2)
    with pytest.raises(RuntimeError, match="not permitted"):
        TapeRecorder().record(lambda: values.add_(values.sum().item()))
