"""Activations are computed once for all trials that share them, and never for any other."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from automl_ft.files import quota
from automl_ft.specs.decision import Decision
from automl_ft.trial.activations import Activations, cache_versions
from automl_ft.trial.build import build_job
from automl_ft.trial.prefix_cache import CacheCounts, PrefixCache
from automl_ft.trial.prepare import PreparedStudy

CPU = torch.device("cpu")
BOTTOM = {"freezing": "bottom_layers", "frozen_layers": 1}
HEAD = {"freezing": "head_only"}
RECIPES: dict[str, dict[str, Any]] = {
    "none": {},
    "embeddings": {"freezing": "embeddings"},
    "bottom_layers": BOTTOM,
    "head_only": HEAD,
    "gradual_unfreezing": {"freezing": "gradual_unfreezing", "unfreezing_pace": 1.0},
}


@pytest.fixture(autouse=True)
def _full_disks_are_fine(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(quota, "_SPARE_BYTES", 0)


@pytest.fixture
def cached(study: PreparedStudy, tmp_path: Path) -> Callable[..., PreparedStudy]:
    """Return the study as another process opens it, with a cache under a budget."""

    def open_cached(budget: int = 10**8, base: PreparedStudy = study) -> PreparedStudy:
        return dataclasses.replace(base, cache=PrefixCache(tmp_path / "activations", budget))

    return open_cached


@pytest.fixture
def losses(run: Any, script: Any) -> Callable[..., list[float]]:
    """Run a trial without dropout; return its losses."""

    def run_losses(study: PreparedStudy, folder: Path, **recipe: Any) -> list[float]:
        reporter = script()
        result = run(reporter, study=study, folder=folder, **{"dropout": 0.0, **recipe})
        assert result.failure is None, result.failure
        return [progress.train_loss for progress in reporter.progresses]

    return run_losses


def counts(study: PreparedStudy) -> tuple[int, int]:
    assert study.cache is not None
    return study.cache.counts.num_hits, study.cache.counts.num_misses


@pytest.mark.parametrize("strategy", RECIPES)
def test_a_trial_trains_the_same_with_a_cold_cache_a_warm_one_and_none(
    strategy: str, study: PreparedStudy, cached: Any, losses: Any, tmp_path: Path
) -> None:
    recipe = RECIPES[strategy]
    plain = losses(study, tmp_path / "none", **recipe)
    cold = losses(cached(), tmp_path / "cold", **recipe)
    warm = losses(cached(), tmp_path / "warm", **recipe)
    assert cold == pytest.approx(plain, abs=1e-4)
    assert warm == cold


@pytest.mark.parametrize("strategy", ["bottom_layers", "head_only"])
def test_a_second_trial_finds_what_the_first_computed(
    strategy: str, cached: Any, losses: Any, tmp_path: Path
) -> None:
    first = cached()
    losses(first, tmp_path / "first", **RECIPES[strategy])
    assert counts(first) == (0, 2)  # of training and of validation
    second = cached()
    losses(second, tmp_path / "second", learning_rate=1e-4, seed=9, **RECIPES[strategy])
    assert counts(second) == (2, 0)


def test_trials_of_one_process_share_too(cached: Any, losses: Any, tmp_path: Path) -> None:
    study = cached()
    losses(study, tmp_path / "first", **BOTTOM)
    losses(study, tmp_path / "second", batch_size=4, **BOTTOM)
    assert counts(study) == (2, 2)


def test_trials_of_another_depth_compute_their_own_from_what_is_stored(
    cached: Any, losses: Any, tmp_path: Path
) -> None:
    study = cached()
    losses(study, tmp_path / "first", **BOTTOM)
    losses(study, tmp_path / "second", **HEAD)
    assert counts(study) == (2, 4)


@pytest.mark.parametrize(
    "changes", [{"max_length": 9}, {"weights_hash": "0" * 64}], ids=["length", "weights"]
)
def test_another_length_or_model_computes_its_own(
    changes: dict[str, Any], study: PreparedStudy, cached: Any, losses: Any, tmp_path: Path
) -> None:
    losses(cached(), tmp_path / "first", **BOTTOM)
    (name,) = study.checkpoints
    opened = study.checkpoint(None)
    facts = dataclasses.replace(opened.facts, **changes)
    other = dataclasses.replace(study, checkpoints={name: dataclasses.replace(opened, facts=facts)})
    again = cached(base=other)
    losses(again, tmp_path / "second", **BOTTOM)
    assert counts(again) == (0, 2)


def test_other_rows_compute_their_own(
    study: PreparedStudy, cached: Any, losses: Any, tmp_path: Path
) -> None:
    losses(cached(), tmp_path / "first", **BOTTOM)
    data = dataclasses.replace(
        study.facts.data, split_fingerprints={"train": "a" * 64, "validation": "b" * 64}
    )
    facts = dataclasses.replace(study.facts, data=data)
    again = cached(base=dataclasses.replace(study, facts=facts))
    losses(again, tmp_path / "second", **BOTTOM)
    assert counts(again) == (0, 2)


def test_another_precision_computes_its_own(
    study_with: Any, cached: Any, losses: Any, tmp_path: Path
) -> None:
    losses(cached(), tmp_path / "first", **BOTTOM)
    again = cached(base=study_with(precision="bf16"))
    losses(again, tmp_path / "second", **BOTTOM)
    # Rows of validation that are in doubt begin at what fp32 had stored.
    assert counts(again) == (1, 2)


@pytest.mark.parametrize("strategy", ["none", "embeddings"])
def test_nothing_is_stored_where_no_block_is_frozen(
    strategy: str, cached: Any, losses: Any, tmp_path: Path
) -> None:
    study = cached()
    losses(study, tmp_path / "trial", **RECIPES[strategy])
    assert study.cache.counts == CacheCounts(num_hits=0, num_misses=0, num_refused=0, num_evicted=0)


@pytest.mark.parametrize("augmentation", ["token_dropout", "word_swap", "word_deletion"])
def test_augmented_rows_are_computed_and_validation_is_cached(
    augmentation: str, cached: Any, study: PreparedStudy, losses: Any, tmp_path: Path
) -> None:
    found = cached()
    recipe = {augmentation: 0.4, **BOTTOM}
    augmented = losses(found, tmp_path / "cached", **recipe)
    assert counts(found) == (0, 1)
    assert augmented == pytest.approx(losses(study, tmp_path / "plain", **recipe), abs=1e-4)
    assert augmented != pytest.approx(losses(study, tmp_path / "other", **BOTTOM), abs=1e-3)


@pytest.mark.parametrize("budget", [0, 1, 5000])
def test_a_trial_runs_where_there_is_no_room(
    budget: int, study: PreparedStudy, cached: Any, losses: Any, tmp_path: Path
) -> None:
    found = cached(budget)
    plain = losses(study, tmp_path / "plain", **BOTTOM)
    assert losses(found, tmp_path / "cached", **BOTTOM) == pytest.approx(plain, abs=1e-4)
    assert found.cache.counts.num_misses == 0
    assert found.cache.counts.num_refused > 0


def test_blocks_that_start_from_random_weights_are_never_stored(
    cached: Any, study: PreparedStudy, make_spec: Any, losses: Any, tmp_path: Path
) -> None:
    recipe = {"freezing": "head_only", "reinit_layers": 1}
    job = build_job(make_spec(dropout=0.0, **recipe), cached())
    job.compute.enter(job.plan, 0)
    job.stepper.forward.enter(job.plan, 0, num_passes=1)
    assert job.stepper.forward.activations.num_blocks == 1
    assert job.stepper.forward.activations.offsets is not None
    plain = losses(study, tmp_path / "plain", **recipe)
    for seed in (7, 8):  # the second trial's random block is another than the first's
        folder = tmp_path / f"cached{seed}"
        found = losses(cached(), folder, seed=seed, **recipe)
        assert (found == pytest.approx(plain, abs=1e-4)) == (seed == 7)


def test_all_blocks_started_anew_leave_nothing_to_store(
    cached: Any, losses: Any, tmp_path: Path
) -> None:
    study = cached()
    losses(study, tmp_path / "trial", freezing="head_only", reinit_layers=2)
    assert counts(study) == (0, 0)


@pytest.mark.parametrize("recipe", [BOTTOM, HEAD], ids=["tokens", "pooled"])
def test_what_is_stored_is_what_the_frozen_model_computes(
    recipe: dict[str, Any], cached: Any, make_spec: Any
) -> None:
    job = build_job(make_spec(dropout=0.5, **recipe), cached())
    job.compute.enter(job.plan, 0)
    forward = job.stepper.forward
    forward.enter(job.plan, 0, num_passes=1)
    rows = np.array([5, 0, 17])
    inputs = forward.maker.make(rows)
    stored = forward.activations.take(rows, inputs)
    job.model.eval()
    hidden = job.model.base_model(
        **_padded(forward.maker.split, rows), output_hidden_states=True
    ).hidden_states
    lengths = forward.maker.split.lengths[rows]
    if recipe is HEAD:
        torch.testing.assert_close(stored, hidden[2][:, 0], atol=1e-5, rtol=1e-5)
        return
    expected = torch.cat([hidden[1][row, :length] for row, length in enumerate(lengths)])
    torch.testing.assert_close(stored[: len(expected)], expected, atol=1e-5, rtol=1e-5)
    assert len(stored) == inputs.packing.num_tokens
    assert not stored.requires_grad


def _padded(split: Any, rows: np.ndarray) -> dict[str, torch.Tensor]:
    found = [torch.from_numpy(split.row(int(row)).input_ids.copy()).long() for row in rows]
    pad = torch.nn.utils.rnn.pad_sequence
    mask = pad([torch.ones_like(row) for row in found], batch_first=True)
    return {"input_ids": pad(found, batch_first=True), "attention_mask": mask}


def test_modes_are_as_they_were_after_an_array_is_filled(cached: Any, make_spec: Any) -> None:
    job = build_job(make_spec(dropout=0.5, **BOTTOM), cached())
    job.compute.enter(job.plan, 0)
    before = {name: module.training for name, module in job.model.named_modules()}
    assert set(before.values()) == {True, False}
    job.stepper.forward.enter(job.plan, 0, num_passes=1)
    assert {name: module.training for name, module in job.model.named_modules()} == before


def test_states_of_rows_are_taken_by_row() -> None:
    values = torch.arange(12.0).view(4, 3)
    found = Activations(values=values, offsets=None, num_blocks=2).take(np.array([3, 1]), None)
    assert torch.equal(found, values[[3, 1]])


def test_versions_name_what_computes() -> None:
    assert all(
        name in cache_versions(torch.device("cpu"))
        for name in ("torch", "transformers", "automl-ft")
    )


def test_a_paused_trial_goes_on_with_what_is_stored(
    cached: Any, run: Any, script: Any, tmp_path: Path
) -> None:
    whole = run(study=cached(), folder=tmp_path / "whole", **BOTTOM)
    run(script(steps={4: Decision.PAUSE}), study=cached(), folder=tmp_path / "paused", **BOTTOM)
    again = cached()
    result = run(study=again, folder=tmp_path / "paused", **BOTTOM)
    assert counts(again) == (2, 0)
    assert result.value == whole.value
