"""Screening gives the classes of fp32, and computes in fp32 only what is in doubt."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch

from automl_ft.trial.build import build_job
from automl_ft.trial.forward import Forward
from automl_ft.trial.loop import Job, enter_stage, fit
from automl_ft.trial.prefix_cache import PrefixCache
from automl_ft.trial.prepare import PreparedStudy
from automl_ft.trial.screening import settle_doubts
from automl_ft.trial.state import TrainingState

Scores = npt.NDArray[np.float32]


class Exact:
    """Gives exact scores, and remembers for which rows it was asked."""

    def __init__(self, scores: Scores) -> None:
        self.scores = scores
        self.asked: list[list[int]] = []

    def __call__(self, rows: npt.NDArray[np.int64]) -> Scores:
        self.asked.append(rows.tolist())
        return self.scores[rows]


def two_classes(margins: Any) -> Scores:
    """Return scores of two classes that lie so far apart."""
    margins = np.asarray(margins, dtype=np.float32)
    return np.stack([margins / 2, -margins / 2], axis=1).astype(np.float32)


def test_rows_in_doubt_get_their_exact_scores_and_others_keep_theirs() -> None:
    exact = two_classes(np.linspace(0.1, 10, 100))
    rough = two_classes(np.linspace(0.1, 10, 100) + 0.01)
    settled, ask = rough.copy(), Exact(exact)
    settle_doubts(settled, ask)
    asked = sorted(row for rows in ask.asked for row in rows)
    # Margins within four times the least error, a 256th of the largest difference, which is 10:
    # fewer than the first rows, eight of the smallest margins and eight of all.
    assert asked == sorted({*range(8), *np.linspace(0, 99, 8).astype(int).tolist()})
    others = np.setdiff1d(np.arange(100), asked)
    np.testing.assert_array_equal(settled[asked], exact[asked])
    np.testing.assert_array_equal(settled[others], rough[others])


def test_a_large_error_puts_more_rows_in_doubt() -> None:
    margins = np.linspace(0.1, 10, 100)
    settled, ask = two_classes(margins + 1.0), Exact(two_classes(margins))
    settle_doubts(settled, ask)
    asked = {row for rows in ask.asked for row in rows}
    assert set(np.flatnonzero(margins + 1.0 < 4.0).tolist()) <= asked
    assert len(asked) < 40


def test_an_error_that_the_first_rows_hide_is_reckoned_with() -> None:
    margins = np.concatenate([np.full(20, 0.05), np.linspace(0.06, 10, 200)])
    errors = np.where(np.arange(220) < 20, 0.0, 0.1)
    exact = two_classes(margins)
    settled = two_classes(margins - errors)
    assert (settled.argmax(1) != exact.argmax(1)).any()
    settle_doubts(settled, Exact(exact))
    np.testing.assert_array_equal(settled.argmax(1), exact.argmax(1))


@pytest.mark.parametrize("seed", range(10))
@pytest.mark.parametrize("num_labels", [2, 3, 8])
@pytest.mark.parametrize("errors", ["normal", "heavy", "relative"])
def test_no_class_is_wrong_where_many_rows_are_undecided(
    seed: int, num_labels: int, errors: str
) -> None:
    random = np.random.default_rng(seed)
    exact = random.normal(size=(20_000, num_labels)).astype(np.float32)
    noise = {
        "normal": random.normal(scale=0.005, size=exact.shape),
        "heavy": 0.002 * np.clip(random.standard_t(3, size=exact.shape), -12, 12),
        "relative": 0.008 * exact * random.normal(size=exact.shape),
    }[errors]
    rough = exact + noise.astype(np.float32)
    wrong = int((rough.argmax(1) != exact.argmax(1)).sum())
    ask = Exact(exact)
    settle_doubts(rough, ask)
    assert wrong > 0
    np.testing.assert_array_equal(rough.argmax(1), exact.argmax(1))
    assert sum(map(len, ask.asked)) < len(exact)


def test_no_row_is_computed_twice() -> None:
    random = np.random.default_rng(0)
    exact = random.normal(size=(500, 2)).astype(np.float32)
    ask = Exact(exact)
    settle_doubts(exact + random.normal(scale=0.3, size=exact.shape).astype(np.float32), ask)
    rows = [row for part in ask.asked for row in part]
    assert len(ask.asked) > 1
    assert len(set(rows)) == len(rows)


@pytest.mark.parametrize("odd", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("place", [np.s_[0], np.s_[60], np.s_[60, 0], np.s_[99, 1]])
def test_where_bf16_gives_no_numbers_all_rows_are_exact(odd: float, place: Any) -> None:
    exact = two_classes(np.linspace(0.5, 50, 100))
    settled = exact + np.float32(1e-3)
    settled[place] = odd
    settle_doubts(settled, Exact(exact))
    np.testing.assert_array_equal(settled, exact)


def test_a_single_score_has_no_class_and_is_exact() -> None:
    exact = np.arange(40, dtype=np.float32)[:, None]
    settled = exact + np.float32(0.5)
    settle_doubts(settled, Exact(exact))
    np.testing.assert_array_equal(settled, exact)


def test_fewer_rows_than_the_first_are_all_exact() -> None:
    exact = two_classes([0.1, 5.0, 9.0])
    settled = exact + np.float32(0.01)
    settle_doubts(settled, Exact(exact))
    np.testing.assert_array_equal(settled, exact)


@pytest.fixture
def cached(study_with: Any, tmp_path: Path) -> PreparedStudy:
    cache = PrefixCache(tmp_path / "activations", 10**8)
    return dataclasses.replace(study_with(precision="bf16"), cache=cache)


def entered(job: Job) -> Job:
    enter_stage(job, TrainingState())
    job.model.eval()
    return job


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[tuple[torch.dtype, int]]:
    """Precision and rows of every scoring."""
    found: list[tuple[torch.dtype, int]] = []
    real = Forward.scores_of

    def scores_of(self: Forward, rows: Any, batch_size: int) -> Any:
        found.append((self.view.model.dtype, len(rows)))
        return real(self, rows, batch_size)

    monkeypatch.setattr(Forward, "scores_of", scores_of)
    return found


@pytest.mark.parametrize("freezing", ["none", "bottom_layers"])
def test_validation_computes_in_bf16_first(
    cached: PreparedStudy, make_spec: Any, calls: list[Any], freezing: str
) -> None:
    job = entered(build_job(make_spec(freezing=freezing, frozen_layers=1), cached))
    expected = job.validation.exact.all_scores(4)
    calls.clear()
    found = job.validation.all_scores(4)
    num_rows = len(found)
    assert calls[0] == (torch.bfloat16, num_rows)
    assert {dtype for dtype, _ in calls[1:]} == {torch.float32}
    np.testing.assert_array_equal(found.argmax(1), expected.argmax(1))
    np.testing.assert_allclose(found, expected, atol=0.05)


def test_validation_leaves_the_copy_in_eval_mode_and_the_next_step_trains_it(
    study_with: Any, make_spec: Any
) -> None:
    job = entered(build_job(make_spec(dropout=0.5), study_with(precision="bf16")))
    first, again = job.validation.all_scores(4), job.validation.all_scores(4)
    np.testing.assert_array_equal(first, again)
    assert not job.compute.model.training
    enter_stage(job, TrainingState(stage=0))
    assert job.compute.model.training


def test_a_frozen_encoder_leaves_so_little_that_all_is_fp32(
    cached: PreparedStudy, make_spec: Any, calls: list[Any]
) -> None:
    job = entered(build_job(make_spec(freezing="head_only"), cached))
    calls.clear()
    job.validation.all_scores(4)
    assert {dtype for dtype, _ in calls} == {torch.float32}
    assert not job.validation.is_rough


def test_training_in_fp32_is_validated_in_fp32(
    study_with: Any, make_spec: Any, calls: list[Any]
) -> None:
    job = entered(build_job(make_spec(), study_with(precision="fp32")))
    job.validation.all_scores(4)
    assert [dtype for dtype, _ in calls] == [torch.float32]


def test_where_there_is_no_room_for_pooled_states_rows_are_screened(
    study_with: Any, make_spec: Any, calls: list[Any]
) -> None:
    study = dataclasses.replace(study_with(precision="bf16"), cache=None)
    job = entered(build_job(make_spec(freezing="head_only"), study))
    calls.clear()
    job.validation.all_scores(4)
    assert calls[0][0] is torch.bfloat16


def test_gradual_unfreezing_keeps_no_fp32_states_but_the_pooled_ones(
    cached: PreparedStudy, make_spec: Any
) -> None:
    job = entered(build_job(make_spec(freezing="gradual_unfreezing"), cached))
    assert not job.validation.is_rough
    stage = next(s for s in range(job.plan.num_stages) if job.plan.frozen_prefix(s) == 1)
    job.validation.enter(job.plan, stage, num_passes=50)
    assert job.validation.is_rough
    assert job.validation.exact.activations is None
    assert job.validation.rough is not None
    assert job.validation.rough.activations is not None


@pytest.mark.parametrize(("passes", "is_stored"), [(9.0, False), (10.0, True)])
def test_frozen_blocks_are_stored_in_fp32_where_so_many_passes_pay_for_it(
    cached: PreparedStudy, make_spec: Any, passes: float, is_stored: bool
) -> None:
    study = dataclasses.replace(cached, assets={})
    job = build_job(make_spec(freezing="bottom_layers", frozen_layers=1), study)
    job.validation.enter(job.plan, 0, num_passes=passes)
    exact, rough = job.validation.exact, job.validation.rough
    assert job.validation.is_rough
    assert exact.has_filled is is_stored
    assert (exact.activations is not None) is is_stored
    assert rough is not None
    assert rough.activations is not None
    assert rough.activations.values.dtype is torch.bfloat16


def test_trials_that_paid_as_much_as_storing_takes_have_it_stored(
    cached: PreparedStudy, make_spec: Any, calls: list[Any]
) -> None:
    study = dataclasses.replace(cached, assets={})
    spec = make_spec(freezing="bottom_layers", frozen_layers=1)
    paid = 0.0
    for _ in range(30):
        job = build_job(spec, study)
        job.validation.enter(job.plan, 0, num_passes=1.0)
        if job.validation.exact.activations is not None:
            break
        assert paid + 0.1 < 1, "what is expected of the trial counts too"
        job.model.eval()
        calls.clear()
        num_rows = len(job.validation.all_scores(4))
        paid += sum(n for dtype, n in calls if dtype is torch.float32) / num_rows
        assert list(job.validation.fp32_passes) == [1]
        assert job.validation.fp32_passes[1] == pytest.approx(paid)
    assert 0.9 <= paid < 2
    before = dict(job.validation.fp32_passes)
    job.validation.all_scores(4)
    assert job.validation.fp32_passes == before, "nothing is paid for what is stored"
    other = build_job(make_spec(freezing="none"), study)
    other.validation.enter(other.plan, 0, num_passes=1.0)
    other.validation.all_scores(4)
    assert other.validation.fp32_passes == before, "nor where nothing is frozen"


def test_a_validation_is_the_same_whatever_is_stored(
    cached: PreparedStudy, study_with: Any, make_spec: Any, script: Any
) -> None:
    spec, found = make_spec(freezing="bottom_layers", frozen_layers=1, epochs=12), []
    for study in (cached, dataclasses.replace(study_with(precision="bf16"), cache=None), cached):
        job, reporter = build_job(spec, study), script()
        fit(job, TrainingState(), reporter)
        found.append([e.metrics["validation_loss"] for e in reporter.evaluations])
    assert len(found[0]) == 24
    assert found[0] == found[2] == pytest.approx(found[1], abs=1e-6)


def test_an_error_that_no_class_can_change_by_is_not_counted() -> None:
    # The best score is right in both rows; what is off are the others, against each other.
    exact = np.tile(np.asarray([[5.0, 0.0, -5.0]], dtype=np.float32), (100, 1))
    rough = exact.copy()
    rough[:, 1] -= 0.02
    rough[:, 2] += 0.02
    ask = Exact(exact)
    settle_doubts(rough, ask)
    assert sum(map(len, ask.asked)) <= 16


@pytest.fixture
def trained(
    large_study: PreparedStudy, make_spec: Any, script: Any
) -> tuple[Job, dict[str, float]]:
    """A job in bf16 at its end, and its last metrics."""
    job, reporter = build_job(make_spec(epochs=4), large_study), script()
    fit(job, TrainingState(), reporter)
    job.model.eval()
    return job, reporter.evaluations[-1].metrics


def test_of_a_trained_model_only_rows_near_a_border_are_scored_twice(
    trained: tuple[Job, dict[str, float]], calls: list[Any]
) -> None:
    job, metrics = trained
    expected = job.validation.exact.all_scores(8)
    calls.clear()
    found = job.validation.all_scores(8)
    twice = sum(num_rows for dtype, num_rows in calls if dtype is torch.float32)
    assert calls[0] == (torch.bfloat16, 120)
    assert 0 < twice < 120
    np.testing.assert_array_equal(found.argmax(1), expected.argmax(1))
    assert len(set(found.argmax(1).tolist())) > 1
    assert metrics["validation_f1_macro"] == job.score(expected)["f1_macro"]


def test_memory_that_runs_out_in_the_rough_pass_halves_the_batch(
    trained: tuple[Job, dict[str, float]], monkeypatch: pytest.MonkeyPatch
) -> None:
    job, _ = trained
    expected = job.validation.exact.all_scores(8)
    sizes: list[tuple[torch.dtype, int]] = []
    real = Forward.scores_of

    def scores_of(self: Forward, rows: Any, batch_size: int) -> Any:
        sizes.append((self.view.model.dtype, batch_size))
        if len(sizes) == 1:
            raise torch.OutOfMemoryError("CUDA out of memory.")
        return real(self, rows, batch_size)

    monkeypatch.setattr(Forward, "scores_of", scores_of)
    found = job.memory.all_scores(job.validation)
    assert [size for dtype, size in sizes if dtype is torch.bfloat16] == [8, 4]
    assert job.memory.record.num_out_of_memory == 1
    np.testing.assert_array_equal(found.argmax(1), expected.argmax(1))
