"""All that the stages of a trial need is filled in one pass, from what is stored already."""

from __future__ import annotations

import dataclasses
import errno
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from automl_ft.config.study import ModelConfig
from automl_ft.files import quota
from automl_ft.trial import activations
from automl_ft.trial.build import build_job
from automl_ft.trial.forward import Forward
from automl_ft.trial.prefix_cache import PrefixCache
from automl_ft.trial.prepare import PreparedStudy, prepare_study

NUM_LAYERS = 4
GRADUAL = {"freezing": "gradual_unfreezing", "unfreezing_pace": 1.0}
HEAD = {"freezing": "head_only"}


@pytest.fixture(autouse=True)
def _full_disks_are_fine(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(quota, "_SPARE_BYTES", 0)


@pytest.fixture(scope="module")
def prepare(study: PreparedStudy, save_checkpoint: Any) -> Callable[[str], PreparedStudy]:
    """Return a function that prepares a study of a deeper model."""
    known: dict[str, PreparedStudy] = {}

    def prepare_in(precision: str) -> PreparedStudy:
        if precision not in known:
            checkpoint = str(save_checkpoint(num_hidden_layers=NUM_LAYERS))
            training = dataclasses.replace(study.config.training, precision=precision)
            config = dataclasses.replace(
                study.config, model=ModelConfig(checkpoint=checkpoint), training=training
            )
            known[precision] = prepare_study(config, (checkpoint,), None)
        return known[precision]

    return prepare_in


@pytest.fixture
def deep(prepare: Any, tmp_path: Path) -> Callable[..., PreparedStudy]:
    """Return a function that opens such a study as a process of its own does."""

    def open_deep(
        place: str = "activations", budget: int = 10**8, precision: str = "fp32"
    ) -> PreparedStudy:
        cache = PrefixCache(tmp_path / place, budget)
        return dataclasses.replace(prepare(precision), cache=cache, assets={})

    return open_deep


@pytest.fixture
def training(make_spec: Any) -> Callable[..., Forward]:
    """Return a function that builds a trial and returns what runs its training rows."""

    def build(study: PreparedStudy, **recipe: Any) -> Forward:
        job = build_job(make_spec(dropout=0.0, **recipe), study)
        job.compute.enter(job.plan, 0)
        return job.stepper.forward

    return build


@pytest.fixture
def passes(monkeypatch: pytest.MonkeyPatch) -> list[tuple[list[int], int]]:
    """Return, for each batch that arrays are filled with, the boundaries and where it began."""
    found: list[tuple[list[int], int]] = []
    own = activations.prefixes

    def watched(view: Any, inputs: Any, boundaries: Any, stored: Any = None, num: int = 0) -> Any:
        found.append((sorted(boundaries), num))
        return own(view, inputs, boundaries, stored, num)

    monkeypatch.setattr(activations, "prefixes", watched)
    return found


def bottom(number: int) -> dict[str, Any]:
    return {"freezing": "bottom_layers", "frozen_layers": number}


def values(forward: Forward, num_blocks: int) -> torch.Tensor:
    """Return what is stored at a boundary, and nothing else."""
    assert forward.source is not None
    found = forward.source.open(forward.view, num_blocks, may_fill=False)
    assert found is not None
    assert found.num_blocks == num_blocks
    return found.values.clone()


def test_gradual_unfreezing_passes_over_the_rows_once(
    deep: Any, run: Any, passes: list[Any], tmp_path: Path
) -> None:
    study = deep()
    result = run(study=study, folder=tmp_path / "trial", **GRADUAL)
    assert result.failure is None
    # The rows of training, then those of validation; later stages find what they need.
    assert passes == [([1, 2, 3, 4], 0)] * 2
    assert study.cache.counts.num_misses == 2 * NUM_LAYERS
    again = deep()
    run(study=again, folder=tmp_path / "again", **GRADUAL)
    assert again.cache.counts.num_misses == 0
    assert len(passes) == 2


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_arrays_filled_on_the_way_hold_what_a_pass_of_their_own_gives(
    precision: str, deep: Any, training: Any
) -> None:
    shared = training(deep("shared", precision=precision), **HEAD)
    shared.source.open(shared.view, NUM_LAYERS, later=[3, 2, 1])
    assert (
        str(shared.view.model.dtype)
        == {"fp32": "torch.float32", "bf16": "torch.bfloat16"}[precision]
    )
    for number in range(1, NUM_LAYERS + 1):
        alone = training(deep(f"own{number}", precision=precision), **HEAD)
        alone.source.open(alone.view, number)
        assert torch.equal(values(shared, number), values(alone, number))


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_a_deeper_array_begins_at_what_another_trial_stored(
    precision: str, deep: Any, run: Any, training: Any, passes: list[Any], tmp_path: Path
) -> None:
    run(study=deep(precision=precision), folder=tmp_path / "first", **bottom(1))
    for recipe in (bottom(3), HEAD):
        run(study=deep(precision=precision), folder=tmp_path / str(recipe), **recipe)
    # Each time the rows of training and those of validation, whose pooled states are in fp32.
    last = ([4], 3 if precision == "fp32" else 0)
    assert passes == [([1], 0)] * 2 + [([3], 1)] * 2 + [([4], 3), last]
    continued = training(deep(precision=precision), **HEAD)
    for number in (3, 4):
        cold = training(deep(f"cold{number}", precision=precision), **HEAD)
        cold.source.open(cold.view, number)
        assert torch.equal(values(continued, number), values(cold, number))


def test_arrays_on_both_sides_of_a_stored_one_take_a_pass_each(
    deep: Any, training: Any, passes: list[Any]
) -> None:
    forward = training(deep(), **HEAD)
    forward.source.open(forward.view, 3)
    forward.source.open(forward.view, 4, later=[3, 2, 1])
    assert passes == [([3], 0), ([4], 3), ([1, 2], 0)]
    cold = training(deep("cold"), **HEAD)
    for number in (4, 2, 1):
        cold.source.open(cold.view, number)
        assert torch.equal(values(forward, number), values(cold, number))


def test_where_filling_does_not_pay_a_lower_boundary_stands_in(
    deep: Any, run: Any, training: Any, make_spec: Any, tmp_path: Path
) -> None:
    run(study=deep(), folder=tmp_path / "first", **bottom(1))
    study = deep()
    job = build_job(make_spec(dropout=0.0, **bottom(3)), study)
    job.compute.enter(job.plan, 0)
    forward, rows = job.stepper.forward, np.arange(8)
    with forward.scores(forward.model_inputs(rows, None, (0, 0))) as plain:
        expected = plain.detach().clone()
    forward.enter(job.plan, 0, num_passes=0.5)
    assert forward.activations is not None
    assert forward.activations.num_blocks == 1
    with forward.scores(forward.model_inputs(rows, None, (0, 0))) as scores:
        torch.testing.assert_close(scores.detach(), expected, atol=1e-5, rtol=1e-5)
    assert study.cache.counts.num_misses == 0


def test_what_has_no_room_is_left_out_and_the_rest_is_stored(
    deep: Any, run: Any, script: Any, tmp_path: Path
) -> None:
    plain, short = script(), script()
    run(plain, study=deep(), folder=tmp_path / "plain", dropout=0.0, **GRADUAL)
    tokens = deep().checkpoint(None).splits["train"].num_tokens
    budget = 2 * 41 * 32 * 4 + 1 * tokens * 32 * 4 + 4 * 4096
    study = deep("short", budget)
    result = run(short, study=study, folder=tmp_path / "short", dropout=0.0, **GRADUAL)
    assert result.failure is None
    assert study.cache.counts.num_refused > 0
    losses = [[p.train_loss for p in reporter.progresses] for reporter in (plain, short)]
    assert losses[1] == pytest.approx(losses[0], abs=1e-4)


def test_a_file_that_fails_in_the_middle_of_a_pass_leaves_no_empty_arrays(
    deep: Any, training: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    own, failures = activations.prefixes, [OSError(errno.EIO, "bad sector")]

    def failing(*args: Any) -> Any:
        if failures:
            raise failures.pop()
        return own(*args)

    monkeypatch.setattr(activations, "prefixes", failing)
    forward, cold = training(deep(), **HEAD), training(deep("cold"), **HEAD)
    forward.source.open(forward.view, 3, later=[2, 1])
    for number in (3, 2):
        cold.source.open(cold.view, number)
        assert torch.equal(values(forward, number), values(cold, number))


def test_running_out_of_memory_in_a_shared_pass_halves_the_rows(
    deep: Any, training: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    own, sizes = activations.prefixes, []

    def small(view: Any, inputs: Any, boundaries: Any) -> Any:
        sizes.append(inputs.packing.num_rows)
        if inputs.packing.num_rows > 10:
            raise RuntimeError("DefaultCPUAllocator: can't allocate memory")
        return own(view, inputs, boundaries)

    forward, cold = training(deep(), **HEAD), training(deep("cold"), **HEAD)
    cold.source.open(cold.view, 3, later=[1])
    monkeypatch.setattr(activations, "prefixes", small)
    forward.source.open(forward.view, 3, later=[1])
    assert sizes == [41, 21, 11, *[6] * 6, 5]
    for number in (3, 1):
        torch.testing.assert_close(values(forward, number), values(cold, number))
