"""On a GPU recorded steps are CUDA graphs: the same losses, and no trace of a failure."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from automl_ft.config.study import StudyConfig
from automl_ft.specs.trial import Outcome, TrialResult
from automl_ft.trial import graphs
from automl_ft.trial.graphs import CudaRecorder
from automl_ft.trial.prepare import prepare_study
from automl_ft.trial.runner import run_trial

pytestmark = pytest.mark.gpu


@pytest.fixture
def counted(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Count replays."""
    found, record = [0], CudaRecorder.record

    def counting(self: CudaRecorder, work: Callable[[], None]) -> Callable[[], object]:
        replay = record(self, work)

        def counted_replay() -> object:
            found[0] += 1
            return replay()

        return counted_replay

    monkeypatch.setattr(CudaRecorder, "record", counting)
    return found


@pytest.fixture
def run(config: StudyConfig, make_spec: Any, script: Any, tmp_path: Path) -> Any:
    def run_one(folder: str, precision: str, **changes: Any) -> TrialResult:
        training = dataclasses.replace(
            config.training, precision=precision, cuda_graphs="always", batching="packed"
        )
        study_config = dataclasses.replace(config, device="cuda", training=training)
        study = prepare_study(study_config, (config.model.checkpoint,), None)
        spec = make_spec(tmp_path / folder, **{"epochs": 6, "dropout": 0.2, **changes})
        return run_trial(spec, study, script())

    return run_one


@pytest.mark.parametrize("precision", ["fp32", "tf32", "bf16"])
@pytest.mark.parametrize("freezing", ["none", "gradual_unfreezing", "head_only"])
def test_a_trial_has_the_losses_of_one_that_records_nothing(
    run: Any, counted: list[int], monkeypatch: pytest.MonkeyPatch, precision: str, freezing: str
) -> None:
    found = run("recorded", precision, freezing=freezing)
    assert (found.outcome, found.failure) == (Outcome.COMPLETE, None)
    assert counted[0] > 0
    monkeypatch.setattr(graphs, "_MOST", 0)
    plain = run("plain", precision, freezing=freezing)
    losses = [e.metrics["train_loss"] for e in plain.evaluations]
    assert [e.metrics["train_loss"] for e in found.evaluations] == pytest.approx(losses, abs=1e-5)


def test_a_look_finds_no_problem(config: StudyConfig) -> None:
    study_config = dataclasses.replace(config, device="cuda")
    study = prepare_study(study_config, (config.model.checkpoint,), None)
    assert not any("CUDA graphs" in note for note in study.checkpoint(None).facts.fallbacks)


def test_a_recording_that_fails_leaves_stream_and_numbers_as_they_were() -> None:
    stream, values = torch.cuda.current_stream(), torch.ones(1000, device="cuda")
    numbers, dropout = torch.cuda.get_rng_state(), torch.nn.functional.dropout
    wanted = dropout(values)
    torch.cuda.set_rng_state(numbers)
    with pytest.raises(RuntimeError):
        CudaRecorder().record(lambda: print(dropout(values).sum().item()))
    assert torch.cuda.current_stream() == stream
    assert torch.equal(dropout(values), wanted)
    recorder = CudaRecorder()
    replay = recorder.record(lambda: values.add_(1))
    replay()
    assert values.sum().item() == 2000
