"""A trial on a GPU: bf16 by default, the same losses after an interruption, weights as exported."""

from __future__ import annotations

import dataclasses

import pytest
import torch

from automl_ft.specs.decision import Decision
from automl_ft.specs.hyperparameters import complete
from automl_ft.specs.trial import Outcome, TrialSpec
from automl_ft.trial.heads import build_heads
from automl_ft.trial.prefix_cache import PrefixCache
from automl_ft.trial.prepare import prepare_study
from automl_ft.trial.runner import run_trial
from automl_ft.trial.stacked import train_heads

pytestmark = pytest.mark.gpu


class Script:
    """A reporter that pauses at one validation."""

    def __init__(self, pause_at=None):
        self.pause_at, self.evaluations = pause_at, []

    def progress(self, progress):
        return Decision.CONTINUE

    def report(self, evaluation):
        self.evaluations.append(evaluation)
        is_here = len(self.evaluations) == self.pause_at
        return Decision.PAUSE if is_here else Decision.CONTINUE


@pytest.fixture
def gpu_study(config):
    config = dataclasses.replace(config, device="cuda")
    return prepare_study(config, (config.model.checkpoint,), None)


def spec_in(folder, **changes):
    recipe = {"learning_rate": 3e-3, "batch_size": 8, "epochs": 2, "dropout": 0.1, **changes}
    return TrialSpec(number=0, hyperparameters=complete(recipe), seed=3, folder=str(folder))


def test_a_trial_runs_in_bf16_and_tells_the_devices_peak_memory(gpu_study, tmp_path):
    result = run_trial(spec_in(tmp_path), gpu_study, Script())
    assert (result.outcome, result.failure) == (Outcome.COMPLETE, None)
    assert 0 < result.cost.peak_memory_mib < 1024
    assert gpu_study.facts.device.startswith("cuda")


@pytest.mark.parametrize("freezing", ["none", "head_only", "gradual_unfreezing"])
def test_an_interrupted_trial_goes_on_with_the_same_losses(gpu_study, tmp_path, freezing):
    whole = run_trial(spec_in(tmp_path / "whole", freezing=freezing), gpu_study, Script())
    place = spec_in(tmp_path / "parts", freezing=freezing)
    first = run_trial(place, gpu_study, Script(pause_at=2))
    assert first.outcome is Outcome.PAUSED
    second = run_trial(place, gpu_study, Script())
    losses = [e.metrics["train_loss"] for e in whole.evaluations]
    assert [e.metrics["train_loss"] for e in second.evaluations] == pytest.approx(losses, abs=1e-6)


def test_memory_that_runs_out_is_a_failure_of_the_trial_only(gpu_study, tmp_path, monkeypatch):
    def no_memory(*args, **kwargs):
        return torch.empty(2**50, dtype=torch.uint8, device="cuda")

    monkeypatch.setattr("automl_ft.trial.step.StepRunner.backward", no_memory)
    result = run_trial(spec_in(tmp_path), gpu_study, Script())
    assert result.failure is not None
    assert result.failure.kind == "out_of_memory"


def test_heads_that_are_trained_as_one_have_the_losses_of_each_alone(gpu_study, tmp_path):
    cache = PrefixCache(tmp_path / "cache", 2**24)
    study = dataclasses.replace(gpu_study, cache=cache, assets={})
    recipes = [
        {"dropout": p, "learning_rate": r} for p, r in ((0.0, 3e-3), (0.1, 1e-2), (0.5, 3e-3))
    ]
    together, specs = {}, []
    for number, recipe in enumerate(recipes):
        spec = spec_in(tmp_path / "together" / str(number), freezing="head_only", **recipe)
        specs.append(dataclasses.replace(spec, number=number, seed=number))
    group = build_heads(specs, study, lambda number: Script())
    train_heads(group, study, lambda result: together.update({result.number: result}))
    for spec in specs:
        own = dataclasses.replace(spec, folder=str(tmp_path / "alone" / str(spec.number)))
        alone = run_trial(own, study, Script())
        for key in ("train_loss", "validation_loss"):
            losses = [e.metrics[key] for e in alone.evaluations]
            found = [e.metrics[key] for e in together[spec.number].evaluations]
            assert found == pytest.approx(losses, abs=2e-3), key
