"""As many rows at once as fit are taken, and building a trial changes nothing else."""

from __future__ import annotations

import dataclasses
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from automl_ft.config.study import ModelConfig
from automl_ft.trial import build
from automl_ft.trial.allocations import recorded_allocations
from automl_ft.trial.budget import MemoryBudget
from automl_ft.trial.build import build_job
from automl_ft.trial.loop import Job
from automl_ft.trial.prefix_cache import PrefixCache
from automl_ft.trial.prepare import PreparedStudy, prepare_study
from automl_ft.trial.sizing import held_tensors, whole_eval_batch, whole_micro_batch
from automl_ft.trial.study_memory import StudyMemory
from automl_ft.trial.techniques import ALL, NONE, Techniques

BASE = 1000.0
MIB = 1024 * 1024


@pytest.fixture
def job_with(
    study_with: Callable[..., PreparedStudy],
    make_spec: Callable[..., Any],
    monkeypatch: pytest.MonkeyPatch,
) -> Callable[..., Job]:
    """Return a function that builds a trial where so much memory is free."""
    profiles: dict[Any, Any] = {}

    def make(
        free_mib: float | None,
        *,
        micro_batch_size: int | str = "auto",
        eval_batch_size: int | str = 8,
        correction: float = 1.0,
        **recipe: Any,
    ) -> Job:
        budget = MemoryBudget(base_mib=BASE, free_mib=free_mib)
        monkeypatch.setattr(build, "memory_budget", lambda *args, **options: budget)
        memory = StudyMemory(profiles=profiles)
        memory.correct("cpu", correction)
        study = study_with(micro_batch_size=micro_batch_size, eval_batch_size=eval_batch_size)
        return build_job(make_spec(**recipe), dataclasses.replace(study, memory=memory))

    return make


@pytest.fixture
def needed(job_with: Callable[..., Job]) -> Callable[..., float]:
    """Return a function that gives the forecast of what a micro-batch adds."""

    def need(size: int, **options: Any) -> float:
        job = job_with(None, **{"micro_batch_size": size, "batch_size": 32, **options})
        return job.memory.forecast.total_mib - BASE

    return need


@pytest.mark.parametrize(
    ("setting", "batch_size", "size"),
    [
        ("auto", 1, 1), ("auto", 16, 16), ("auto", 64, 64), ("auto", 65, 33), ("auto", 256, 64),
        (5, 64, 5), (100, 64, 100),
    ],
)  # fmt: skip
def test_where_memory_is_no_question(setting: int | str, batch_size: int, size: int) -> None:
    assert whole_micro_batch(setting, batch_size) == size


def test_mixup_keeps_the_micro_batch_that_it_always_had() -> None:
    assert whole_micro_batch("auto", 64, is_mixing=True) == 32
    assert whole_micro_batch("auto", 16, is_mixing=True) == 16


@pytest.mark.parametrize(
    ("lengths", "cpu", "elsewhere"),
    [
        ([16] * 5000, 128, 1024),
        ([128] * 5000, 16, 128),
        ([512] * 100, 4, 32),
        ([4096] * 8, 1, 4),
        ([16] * 7, 7, 7),  # there are no more
        ([1] * 4096 + [64] * 64, 63, 504),  # half of the tokens are in long rows
    ],
)
def test_validation_takes_the_rows_that_hold_enough_tokens(
    lengths: list[int], cpu: int, elsewhere: int
) -> None:
    found = np.asarray(lengths, dtype=np.int64)
    assert whole_eval_batch("auto", found, "cpu") == cpu
    assert whole_eval_batch("auto", found, "cuda") == elsewhere
    assert whole_eval_batch(5, found, "cpu") == whole_eval_batch(5, found, "cuda") == 5


@pytest.mark.parametrize("mixup", [0.0, 0.2])
@pytest.mark.parametrize("free", [None, 10_000.0])
def test_a_batch_that_fits_passes_whole(
    job_with: Callable[..., Job], free: float | None, mixup: float
) -> None:
    job = job_with(free, batch_size=64, mixup=mixup)
    assert job.stepper.micro_batch_size == (32 if mixup else 64)
    assert job.memory.record.micro_batch_size == job.stepper.micro_batch_size
    assert not job.memory.record.is_checkpointing


@pytest.mark.parametrize(("size", "taken"), [(16, 16), (8, 8), (3, 2)])
def test_the_largest_part_of_the_batch_that_fits_is_taken(
    job_with: Callable[..., Job], needed: Callable[..., float], size: int, taken: int
) -> None:
    free = needed(size, eval_batch_size=1) + 0.001
    job = job_with(free, batch_size=32, eval_batch_size=1)
    assert job.memory.record.micro_batch_size == taken
    assert job.memory.forecast.total_mib <= BASE + free


def test_more_rows_take_more(needed: Callable[..., float]) -> None:
    found = [needed(size) for size in (4, 8, 16, 32)]
    assert found == sorted(set(found))


def test_frozen_blocks_take_less(needed: Callable[..., float]) -> None:
    whole = needed(32)
    half = needed(32, freezing="bottom_layers", frozen_layers=1)
    head = needed(32, freezing="head_only")
    assert whole > half > head


def test_gradual_unfreezing_is_forecast_as_it_ends(needed: Callable[..., float]) -> None:
    assert needed(32, freezing="gradual_unfreezing") == pytest.approx(needed(32), rel=0.01)


def test_a_correction_makes_the_next_trial_smaller(
    job_with: Callable[..., Job], needed: Callable[..., float]
) -> None:
    free = needed(16, eval_batch_size=1) + 0.001
    job = job_with(free, batch_size=32, eval_batch_size=1, correction=1.5)
    assert job.memory.record.micro_batch_size < 16
    assert job.memory.record.correction == 1.5


def test_a_number_is_taken_as_it_is(job_with: Callable[..., Job]) -> None:
    assert job_with(0.0, micro_batch_size=8).stepper.micro_batch_size == 8


def test_the_validation_batch_fits_too(
    job_with: Callable[..., Job], needed: Callable[..., float]
) -> None:
    head = {"freezing": "head_only"}
    free = needed(1, eval_batch_size=4, **head) + 0.001
    job = job_with(free, batch_size=32, eval_batch_size=16, **head)
    assert job.memory.record.eval_batch_size == 4


def test_validation_takes_all_rows_of_a_small_split(job_with: Callable[..., Job]) -> None:
    job = job_with(None, eval_batch_size="auto")
    assert job.memory.record.eval_batch_size == len(job.validation.exact.maker.split) == 18


def test_a_validation_batch_that_is_chosen_fits_too(
    job_with: Callable[..., Job], needed: Callable[..., float]
) -> None:
    head = {"freezing": "head_only"}
    free = needed(1, eval_batch_size=9, **head) + 0.001
    job = job_with(free, batch_size=32, eval_batch_size="auto", **head)
    assert job.memory.record.eval_batch_size == 9


def test_checkpointing_comes_only_where_not_even_a_row_fits(
    job_with: Callable[..., Job], needed: Callable[..., float]
) -> None:
    single = needed(1, eval_batch_size=1)
    fitting = job_with(single + 0.001, batch_size=8, eval_batch_size=1)
    tight = job_with(single - 0.001, batch_size=8, eval_batch_size=1)
    assert (fitting.memory.record.micro_batch_size, fitting.memory.record.is_checkpointing) == (
        1, False,
    )  # fmt: skip
    assert tight.memory.record.is_checkpointing
    blocks = [
        tight.compute.model.get_submodule(name) for name in tight.plan.layer_map.block_modules
    ]
    assert all("forward" in block.__dict__ for block in blocks)


def test_a_trial_that_cannot_fit_is_tried_in_its_smallest_size(
    job_with: Callable[..., Job],
) -> None:
    record = job_with(0.0).memory.record
    assert (record.micro_batch_size, record.eval_batch_size, record.is_checkpointing) == (
        1, 1, True,
    )  # fmt: skip


def test_a_trial_that_cannot_fit_is_told_of_once(
    job_with: Callable[..., Job], caplog: pytest.LogCaptureFixture
) -> None:
    job_with(None)
    assert caplog.messages == []
    job = job_with(0.0)
    (message,) = caplog.messages
    assert f"forecast to take {job.memory.forecast.total_mib:.0f} MiB" in message
    assert "`training.memory_gib`" in message


def test_a_forecast_leaves_the_trial_as_it_was(job_with: Callable[..., Job]) -> None:
    torch.set_num_threads(2)
    job_with(None, dropout=0.1, batch_size=16)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    assert threads == 2
    known = torch.get_rng_state()  # profiles are known from here on
    job_with(None, dropout=0.1, batch_size=16)
    after_known = torch.get_rng_state()
    fresh = job_with(None, dropout=0.1, batch_size=16, freezing="embeddings")
    assert torch.equal(known, after_known)
    assert torch.equal(torch.get_rng_state(), known)
    assert all(p.grad is None for p in fresh.model.parameters())
    assert all(p.requires_grad for p in fresh.model.parameters())
    assert not any(module.training for module in fresh.compute.model.modules())
    assert not fresh.optimizer.state


def test_trials_of_a_process_share_what_was_measured(
    job_with: Callable[..., Job], monkeypatch: pytest.MonkeyPatch
) -> None:
    first = job_with(None, batch_size=16)
    monkeypatch.setattr(
        "automl_ft.trial.sizing.profile_of", lambda *args, **options: pytest.fail("again")
    )
    again = job_with(None, batch_size=16)
    assert again.memory.forecast.total_mib == first.memory.forecast.total_mib


@pytest.mark.parametrize("techniques", [ALL, NONE])
@pytest.mark.parametrize(
    "recipe",
    [
        {"dropout": 0.1},
        {"dropout": 0.0, "label_smoothing": 0.1},
        {"freezing": "bottom_layers", "frozen_layers": 1},
        {"freezing": "head_only"},
    ],
)
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_the_forecast_is_what_the_longest_rows_take(
    study_with: Callable[..., PreparedStudy],
    make_spec: Callable[..., Any],
    techniques: Techniques,
    recipe: dict[str, Any],
    precision: str,
) -> None:
    study = study_with(precision=precision, micro_batch_size="auto")
    study = dataclasses.replace(study, memory=StudyMemory())
    job = build_job(make_spec(**{"batch_size": 24, **recipe}), study, techniques)
    job.compute.enter(job.plan, 0)
    lengths = job.stepper.forward.maker.split.lengths
    rows = np.argsort(lengths)[::-1][:24].copy()
    with recorded_allocations(held_tensors(job.compute)) as live:
        job.stepper.backward(rows, 0, 0)
    # Rows of this study are so short that packing rounds the tiny batches up, which costs a little.
    ratio = job.memory.forecast.training_mib / (max(live) / MIB)
    # On a CPU packed rows are padded in groups, and forecast as if they were not.
    assert 0.95 <= ratio <= (1.7 if techniques.packed else 1.05)


FROZEN = (
    {"freezing": "bottom_layers", "frozen_layers": 1},
    {"freezing": "head_only"},
    {"freezing": "gradual_unfreezing"},
)


@pytest.mark.parametrize("recipe", FROZEN)
def test_stored_activations_are_computed_in_as_many_rows_as_fit(
    study_with: Callable[..., PreparedStudy],
    make_spec: Callable[..., Any],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    recipe: dict[str, Any],
) -> None:
    cache = PrefixCache(tmp_path, 10**8)
    study = dataclasses.replace(study_with(eval_batch_size=1), memory=StudyMemory(), cache=cache)

    def job_where(free_mib: float | None) -> Job:
        budget = MemoryBudget(base_mib=BASE, free_mib=free_mib)
        monkeypatch.setattr(build, "memory_budget", lambda *args, **options: budget)
        return build_job(make_spec(batch_size=1, **recipe), study)

    whole = job_where(None)
    forecast = whole.memory.forecast
    assert whole.stepper.forward.source.rows_at_once == 64
    assert forecast.batch_mib == forecast.filling_mib > forecast.training_mib
    held = forecast.weights_mib + forecast.optimizer_mib
    less = job_where(held + forecast.filling_mib / 3)
    assert 1 < less.stepper.forward.source.rows_at_once < 64
    assert less.validation.exact.source.rows_at_once == less.stepper.forward.source.rows_at_once
    assert less.memory.forecast.filling_mib <= forecast.filling_mib / 3
    for job in (whole, less):
        job.compute.enter(job.plan, 0)
        with recorded_allocations(held_tensors(job.compute)) as live:
            job.stepper.forward.enter(job.plan, 0, num_passes=1)
        assert job.stepper.forward.activations is not None
        mapped = sum(path.stat().st_size for path in tmp_path.rglob("*") if path.is_file())
        assert 0 < (max(live) - mapped) / MIB <= job.memory.forecast.filling_mib
        cache.close()
        shutil.rmtree(tmp_path)


def test_copies_at_every_boundary_are_reckoned_with(
    config: Any, save_checkpoint: Any, make_spec: Callable[..., Any], tmp_path: Path
) -> None:
    checkpoint = str(save_checkpoint("bert", num_hidden_layers=9))
    config = dataclasses.replace(config, model=ModelConfig(checkpoint=checkpoint))
    cache = PrefixCache(tmp_path / "activations", 10**8)
    study = dataclasses.replace(prepare_study(config, (checkpoint,), None), cache=cache)
    found = {}
    for strategy in ("head_only", "gradual_unfreezing"):
        job = build_job(make_spec(batch_size=1, freezing=strategy), study)
        found[strategy] = job.memory.forecast.filling_mib
    with recorded_allocations(held_tensors(job.compute)) as live:
        job.stepper.forward.enter(job.plan, 0, num_passes=1)
    mapped = sum(p.stat().st_size for p in tmp_path.rglob("activations/**/*") if p.is_file())
    assert job.stepper.forward.has_filled
    assert found["head_only"] < (max(live) - mapped) / MIB <= found["gradual_unfreezing"]


def test_nothing_is_reckoned_for_activations_where_none_are_stored(
    study_with: Callable[..., PreparedStudy], make_spec: Callable[..., Any], tmp_path: Path
) -> None:
    cached = dataclasses.replace(study_with(), cache=PrefixCache(tmp_path, 10**8))
    jobs = (
        build_job(make_spec(freezing="none"), cached),
        build_job(make_spec(freezing="head_only"), dataclasses.replace(cached, cache=None)),
    )
    assert [job.memory.forecast.filling_mib for job in jobs] == [0.0, 0.0]


def test_kernels_of_bf16_are_reckoned_with_until_a_process_has_trained(
    study_with: Callable[..., PreparedStudy],
    make_spec: Callable[..., Any],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    budget = MemoryBudget(base_mib=BASE, free_mib=10.0)
    monkeypatch.setattr(build, "memory_budget", lambda *args, **options: budget)

    def job_in(precision: str, memory: StudyMemory) -> Job:
        study = study_with(precision=precision, micro_batch_size="auto")
        return build_job(make_spec(batch_size=16), dataclasses.replace(study, memory=memory))

    memory = StudyMemory()
    first = job_in("bf16", memory)
    assert first.memory.forecast.kernels_mib == 300
    assert first.memory.forecast.total_mib > BASE + 300
    assert first.memory.record.micro_batch_size == 1  # 10 MiB hold no kernels
    memory.has_trained = True
    second = job_in("bf16", memory)
    assert second.memory.forecast.kernels_mib == 0
    assert second.memory.record.micro_batch_size == 16
    assert job_in("fp32", StudyMemory()).memory.forecast.kernels_mib == 0


def test_memory_is_divided_by_the_workers_on_the_trial_s_device(
    study_with: Callable[..., PreparedStudy],
    make_spec: Callable[..., Any],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    asked: list[Any] = []

    def look(*args: Any, mapped_mib: float) -> MemoryBudget:
        asked.append((*args, mapped_mib))
        return MemoryBudget(base_mib=BASE, free_mib=None)

    monkeypatch.setattr(build, "memory_budget", look)
    monkeypatch.setattr(build, "num_sharing", lambda wanted, device, workers: workers - 2)
    study = study_with(workers=5, memory_gib=3.0)
    build_job(make_spec(), study)
    (weights,) = study.weights.values()
    assert weights.size_mib > 0
    assert asked == [(study.device, 3, 3.0, study.memory.most_free_mib, weights.size_mib)]
