"""Where memory runs out while activations are computed, fewer rows do, and the study learns."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest
import torch

from automl_ft.files import quota
from automl_ft.trial import activations, runner
from automl_ft.trial.prefix_cache import PrefixCache
from automl_ft.trial.prepare import PreparedStudy
from automl_ft.trial.study_memory import StudyMemory
from tests.fakes.head_groups import GroupBench

BOTTOM = {"freezing": "bottom_layers", "frozen_layers": 1}
GRADUAL = {"freezing": "gradual_unfreezing", "unfreezing_pace": 1.0}


@pytest.fixture
def own_study(
    study: PreparedStudy, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> PreparedStudy:
    """A study whose cache and lessons are its own."""
    monkeypatch.setattr(quota, "_SPARE_BYTES", 0)
    cache = PrefixCache(tmp_path / "activations", 10**8)
    return dataclasses.replace(study, cache=cache, memory=StudyMemory())


@pytest.fixture
def tried(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Have no more than 10 rows fit at once; collect how many were tried."""
    sizes: list[int] = []
    compute = activations.prefixes

    def scarce(view: Any, inputs: Any, *args: Any) -> Any:
        sizes.append(inputs.packing.num_rows)
        if inputs.packing.num_rows > 10:
            raise torch.OutOfMemoryError("CUDA out of memory.")
        return compute(view, inputs, *args)

    monkeypatch.setattr(activations, "prefixes", scarce)
    return sizes


@pytest.mark.parametrize("recipe", [BOTTOM, {"freezing": "head_only"}, GRADUAL])
def test_half_the_rows_are_tried_until_they_fit(
    run: Any, own_study: PreparedStudy, tried: list[int], recipe: dict[str, Any], tmp_path: Path
) -> None:
    result = run(study=own_study, folder=tmp_path / "trial", **recipe)
    assert result.failure is None
    # 41 training rows; those of validation begin with what fitted.
    assert tried[:3] == [41, 21, 11]
    assert result.memory.num_out_of_memory == 3
    assert own_study.memory.correction("cpu") > 1
    assert max(tried[3:]) == 6


def test_scores_do_not_depend_on_it(
    run: Any, study: PreparedStudy, own_study: PreparedStudy, tried: list[int], tmp_path: Path
) -> None:
    small = run(study=own_study, folder=tmp_path / "small", dropout=0.0, **BOTTOM)
    plain = run(study=study, folder=tmp_path / "plain", dropout=0.0, **BOTTOM)
    losses = [[e.metrics["train_loss"] for e in r.evaluations] for r in (small, plain)]
    assert losses[0] == pytest.approx(losses[1], abs=1e-4)


def test_trials_of_a_group_tell_of_it(
    own_study: PreparedStudy, tried: list[int], script: Any, tmp_path: Path
) -> None:
    results = GroupBench(own_study, tmp_path, script).together([{}, {}])
    assert all(result.memory.num_out_of_memory == 3 for result in results)
    assert tried


@pytest.mark.parametrize("recipe", [BOTTOM, GRADUAL])
@pytest.mark.parametrize("state", ["refused", "warm", "cold"])
def test_what_was_not_filled_shows_nothing_of_filling(
    run: Any,
    own_study: PreparedStudy,
    recipe: dict[str, Any],
    state: str,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    study = own_study
    if state == "warm":
        run(study=study, folder=tmp_path / "first", **recipe)
    if state == "refused":
        study = dataclasses.replace(study, cache=PrefixCache(tmp_path / "activations", 1))
    forecasts: list[Any] = []
    build = runner.build_job

    def noting(*args: Any) -> Any:
        job = build(*args)
        forecasts.append(job.memory.forecast)
        return job

    # Steps took exactly what a correction of 2 says; filling would have taken more.
    def taken(device: torch.device) -> float:
        forecast = forecasts[-1]
        return float(forecast.base_mib + forecast.held_mib + forecast.steps_mib)

    monkeypatch.setattr(runner, "build_job", noting)
    monkeypatch.setattr(runner, "taken_memory_mib", taken)
    memory = StudyMemory()
    memory.correct("cpu", 2.0, batch_mib=0.0)
    run(study=dataclasses.replace(study, memory=memory), folder=tmp_path / "second", **recipe)
    assert forecasts[-1].filling_mib > forecasts[-1].steps_mib
    assert memory.correction("cpu") == pytest.approx(2.0)
