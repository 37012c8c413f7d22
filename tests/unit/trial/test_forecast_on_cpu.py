"""The forecast of a small model's training agrees with what its process takes, on a CPU."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from automl_ft.config.study import DataConfig, ModelConfig, StudyConfig, TrainingConfig
from automl_ft.specs.codec import to_plain
from automl_ft.specs.hyperparameters import complete

LENGTH = 128
SCRIPT = """
import json, sys
import torch
torch.set_num_threads(1)
from automl_ft.config.study import StudyConfig
from automl_ft.specs.codec import from_plain
from automl_ft.specs.decision import Decision
from automl_ft.specs.trial import TrialSpec
from automl_ft.trial.memory import reset_peak_memory, used_memory_mib
from automl_ft.trial.prepare import prepare_study
from automl_ft.trial.runner import run_trial

class Reporter:
    def progress(self, progress):
        return Decision.CONTINUE
    def report(self, evaluation):
        return Decision.CONTINUE

given = json.loads(sys.stdin.read())
config = from_plain(StudyConfig, given["config"])
study = prepare_study(config, (config.model.checkpoint,), None)
for number, recipe in enumerate(given["recipes"]):
    reset_peak_memory(study.device)
    base = used_memory_mib(study.device)
    folder = given["folder"] + str(number)
    spec = TrialSpec(number=number, hyperparameters=recipe, seed=1, folder=folder)
    result = run_trial(spec, study, Reporter())
    assert result.failure is None, result.failure
    print(result.cost.forecast_mib - base, result.cost.peak_memory_mib - base)
"""


def write_long_rows(path: Path, number: int) -> str:
    lines = [f"{' '.join([f'w{row}'] * LENGTH)},{'ab'[row % 2]}" for row in range(number)]
    path.write_text("\n".join(["text,label", *lines]) + "\n", encoding="utf-8")
    return str(path)


@pytest.fixture
def config(save_checkpoint: Callable[..., Path], tmp_path: Path) -> StudyConfig:
    checkpoint = save_checkpoint(
        "bert", hidden_size=256, num_hidden_layers=4, num_attention_heads=4,
        intermediate_size=1024, max_position_embeddings=LENGTH,
    )  # fmt: skip
    return StudyConfig(
        model=ModelConfig(checkpoint=str(checkpoint)),
        data=DataConfig(
            train=write_long_rows(tmp_path / "train.csv", 32),
            validation=write_long_rows(tmp_path / "validation.csv", 4),
            test=None,
            max_length=LENGTH,
        ),
        device="cpu",
        training=TrainingConfig(precision="fp32", validations_per_epoch=1, batching="packed"),
    )


def test_the_forecast_of_what_is_added_is_within_a_factor_of_two(
    config: StudyConfig, tmp_path: Path
) -> None:
    recipe = complete({"batch_size": 16, "epochs": 1})
    half = {**recipe, "freezing": "bottom_layers", "frozen_layers": 2}
    given = {
        "config": to_plain(config),
        "folder": str(tmp_path / "trial"),
        "recipes": [recipe, half],
    }
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT],
        input=json.dumps(given),
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    found = [tuple(map(float, line.split())) for line in done.stdout.splitlines()]
    assert len(found) == 2
    for forecast, real in found:
        assert real > 50
        assert 0.5 < forecast / real < 2, found
