"""On a GPU a trial takes what was forecast, and goes on where its memory really runs out."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch

from automl_ft.config.study import DataConfig, ModelConfig, StudyConfig, TrainingConfig
from automl_ft.specs.decision import Decision
from automl_ft.specs.hyperparameters import complete
from automl_ft.specs.trial import Outcome, TrialResult, TrialSpec
from automl_ft.trial.prepare import PreparedStudy, prepare_study
from automl_ft.trial.runner import run_trial
from automl_ft.trial.study_memory import StudyMemory

pytestmark = pytest.mark.gpu
LENGTH = 128
ROWS = 64


class Reporter:
    def progress(self, progress: object) -> Decision:
        return Decision.CONTINUE

    def report(self, evaluation: object) -> Decision:
        return Decision.CONTINUE


def write_long_rows(path: Path, number: int) -> str:
    lines = [f"{' '.join([f'w{row % 60}'] * LENGTH)},{'ab'[row % 2]}" for row in range(number)]
    path.write_text("\n".join(["text,label", *lines]) + "\n", encoding="utf-8")
    return str(path)


@pytest.fixture
def study(save_checkpoint: Callable[..., Path], tmp_path: Path) -> PreparedStudy:
    checkpoint = save_checkpoint(
        "bert", hidden_size=512, num_hidden_layers=6, num_attention_heads=8,
        intermediate_size=2048, max_position_embeddings=LENGTH,
    )  # fmt: skip
    config = StudyConfig(
        model=ModelConfig(checkpoint=str(checkpoint)),
        data=DataConfig(
            train=write_long_rows(tmp_path / "train.csv", 2 * ROWS),
            validation=write_long_rows(tmp_path / "validation.csv", 4),
            test=None,
            max_length=LENGTH,
        ),
        device="cuda",
        training=TrainingConfig(validations_per_epoch=1, batching="packed"),
    )
    return prepare_study(config, (config.model.checkpoint,), None)


@pytest.fixture
def run(tmp_path: Path) -> Callable[..., TrialResult]:
    def run_one(study: PreparedStudy, **recipe: object) -> TrialResult:
        recipe = {"batch_size": ROWS, "epochs": 1, **recipe}
        folder = tmp_path / f"trial-{len(list(tmp_path.iterdir()))}"
        spec = TrialSpec(
            number=0, hyperparameters=complete(recipe), seed=1, folder=str(folder)
        )  # fmt: skip
        return run_trial(spec, study, Reporter())

    return run_one


@pytest.fixture
def limit() -> Iterator[Callable[[float], None]]:
    """Return a function that bounds what this process may allocate, in MiB."""
    total = torch.cuda.get_device_properties(0).total_memory

    def bound(mib: float) -> None:
        torch.cuda.empty_cache()
        torch.cuda.set_per_process_memory_fraction(mib * 2**20 / total)

    yield bound
    torch.cuda.set_per_process_memory_fraction(1.0)


@pytest.mark.parametrize("freezing", ["none", "bottom_layers", "gradual_unfreezing"])
def test_the_peak_is_what_was_forecast(
    study: PreparedStudy, run: Callable[..., TrialResult], freezing: str
) -> None:
    half = {"frozen_layers": 3} if freezing == "bottom_layers" else {}
    run(study, freezing="head_only")  # the device's libraries take their memory once
    result = run(study, freezing=freezing, **half)
    assert result.failure is None
    assert result.cost.peak_memory_mib / 1.5 < result.cost.forecast_mib
    assert result.cost.forecast_mib < 1.5 * result.cost.peak_memory_mib


def test_a_trial_goes_on_where_memory_really_runs_out(
    study: PreparedStudy, run: Callable[..., TrialResult], limit: Callable[[float], None]
) -> None:
    whole = run(study, dropout=0.0)
    training = dataclasses.replace(study.config.training, micro_batch_size=ROWS)
    forced = dataclasses.replace(
        study,
        config=dataclasses.replace(study.config, training=training),
        memory=StudyMemory(),
    )
    limit(0.75 * whole.cost.peak_memory_mib)
    small = run(forced, dropout=0.0)
    assert (small.outcome, small.failure) == (Outcome.COMPLETE, None)
    assert small.memory.num_out_of_memory >= 1
    assert small.memory.micro_batch_size < ROWS
    assert small.memory.correction > 1
    losses = [result.evaluations[0].metrics["train_loss"] for result in (whole, small)]
    assert losses[1] == pytest.approx(losses[0], abs=0.02)
