"""A trial from the outside: whatever goes wrong inside is a result."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from automl_ft.errors import ModelError
from automl_ft.files import quota
from automl_ft.models.load import LoadedModel
from automl_ft.specs.codec import from_plain, to_plain
from automl_ft.specs.decision import Decision
from automl_ft.specs.failure import FailureKind
from automl_ft.specs.trial import Outcome, TrialResult, TrialSpec
from automl_ft.trial.build import build_job
from automl_ft.trial.prefix_cache import PrefixCache
from automl_ft.trial.prepare import PreparedStudy
from automl_ft.trial.runner import restore, run_trial
from automl_ft.trial.study_memory import StudyMemory


def test_a_complete_trial_tells_value_metrics_and_cost(run: Any) -> None:
    result = run()
    assert (result.number, result.outcome, result.failure) == (3, Outcome.COMPLETE, None)
    best = max(result.evaluations, key=lambda e: e.metrics["validation_f1_macro"])
    assert result.value == best.metrics["validation_f1_macro"]
    assert (result.best_step, result.metrics) == (best.step, best.metrics)
    assert result.cost.examples == 82
    assert result.cost.seconds >= result.evaluations[-1].seconds > 0
    assert 10 < result.cost.peak_memory_mib < 20_000


def test_a_process_that_trained_heads_alone_has_not_all_kernels(
    run: Any, study: PreparedStudy, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(quota, "_SPARE_BYTES", 0)
    cache = PrefixCache(tmp_path / "activations", 10**8)
    study = dataclasses.replace(study, memory=StudyMemory(), cache=cache)
    run(study=study, folder=tmp_path / "head", freezing="head_only")
    assert not study.memory.has_trained
    run(study=study, folder=tmp_path / "full", freezing="none")
    assert study.memory.has_trained


def test_a_result_survives_the_pipe(run: Any) -> None:
    result = run()
    assert from_plain(TrialResult, to_plain(result)) == result


def test_a_pruned_trial_tells_its_best_value(run: Any, script: Any) -> None:
    result = run(script(reports={2: Decision.PRUNE}))
    assert (result.outcome, len(result.evaluations)) == (Outcome.PRUNED, 2)
    assert result.value == max(e.metrics["validation_f1_macro"] for e in result.evaluations)


def test_a_trial_paused_before_any_validation_has_no_value(run: Any, script: Any) -> None:
    result = run(script(steps={1: Decision.PAUSE}))
    assert (result.outcome, result.value, result.best_step) == (Outcome.PAUSED, None, None)
    assert (result.metrics, result.evaluations) == ({}, ())


@pytest.mark.parametrize(
    ("error", "kind", "message"),
    [
        (KeyError("speed"), FailureKind.ERROR, "KeyError: 'speed'"),
        (ValueError(), FailureKind.ERROR, "ValueError"),
        (RuntimeError("a\n b"), FailureKind.ERROR, "RuntimeError: a b"),
        (
            torch.OutOfMemoryError("CUDA out of memory."),
            FailureKind.OUT_OF_MEMORY,
            "OutOfMemoryError: CUDA out of memory.",
        ),
        (MemoryError(), FailureKind.OUT_OF_MEMORY, "MemoryError"),
    ],
    ids=["key", "no text", "lines", "cuda memory", "memory"],
)
def test_an_error_inside_is_a_result_with_its_kind(
    run: Any, script: Any, error: Exception, kind: FailureKind, message: str
) -> None:
    result = run(script(steps={4: error}))
    assert result.outcome is Outcome.FAILED
    assert result.failure is not None
    assert (result.failure.kind, result.failure.message) == (kind, message)
    assert "run_epoch" in result.failure.traceback
    assert len(result.evaluations) == 1, "what was validated before is told"


def test_long_messages_and_tracebacks_are_cut(run: Any, script: Any) -> None:
    result = run(script(steps={1: ValueError("x" * 9000)}))
    assert result.failure is not None
    assert len(result.failure.message) < 600
    assert len(result.failure.traceback) == 4000


def test_a_diverged_trial_says_so_without_a_traceback(run: Any) -> None:
    result = run(learning_rate=1.0, max_grad_norm=1e9, epochs=30, lr_schedule="linear")
    assert result.outcome is Outcome.FAILED
    assert result.failure is not None
    assert result.failure.kind is FailureKind.DIVERGED
    assert "loss" in result.failure.message
    assert result.failure.traceback == ""


def test_a_recipe_that_does_not_fit_the_model_is_a_failed_trial(run: Any) -> None:
    result = run(freezing="bottom_layers", frozen_layers=2)
    assert result.outcome is Outcome.FAILED
    assert result.failure is not None
    assert "`frozen_layers` is 2" in result.failure.message
    assert (result.value, result.evaluations, result.cost.examples) == (None, (), 0)


def test_an_interrupt_is_not_a_result(run: Any, script: Any) -> None:
    with pytest.raises(KeyboardInterrupt):
        run(script(steps={2: KeyboardInterrupt()}))


def test_a_failed_trial_does_not_disturb_the_next(run: Any, script: Any, tmp_path: Path) -> None:
    expected = run(folder=tmp_path / "a")
    run(script(steps={3: KeyError("x")}), folder=tmp_path / "b")
    again = run(folder=tmp_path / "c")
    assert again.metrics == expected.metrics


def test_reinit_layers_changes_the_top_blocks_only(study: PreparedStudy, make_spec: Any) -> None:
    plain = dict(build_job(make_spec(), study).model.named_parameters())
    fresh = dict(build_job(make_spec(reinit_layers=1), study).model.named_parameters())
    changed = {name for name, p in plain.items() if not torch.equal(p, fresh[name])}
    assert changed
    assert all("layer.1." in name or "pooler" in name for name in changed)


def test_dropout_reaches_the_model(study: PreparedStudy, make_spec: Any) -> None:
    model = build_job(make_spec(dropout=0.35), study).model
    assert {m.p for m in model.modules() if hasattr(m, "p")} == {0.35}


def test_balanced_class_weights_reach_the_loss(study_with: Any, make_spec: Any) -> None:
    study = study_with()
    data = type(study.config.data)
    balanced = study_with(data=data(path="x", class_weights="balanced"))
    plain, weighted = (build_job(make_spec(), s).stepper.loss for s in (study, balanced))
    targets = torch.tensor([0, 1, 2])
    assert plain.weight(targets) == 3
    counts = torch.tensor([14.0, 14.0, 13.0])  # 41 rows of three classes in turn
    assert weighted.weight(targets) == pytest.approx(float((41 / (3 * counts)).sum()), rel=1e-6)


def test_label_smoothing_reaches_the_loss(study: PreparedStudy, make_spec: Any) -> None:
    loss = build_job(make_spec(label_smoothing=0.3), study).stepper.loss
    assert loss.label_smoothing == 0.3


def test_an_unknown_hyperparameter_is_a_failed_trial(study: PreparedStudy, script: Any) -> None:
    spec = TrialSpec(number=0, hyperparameters={"speed": 1}, seed=0, folder="trial")
    result = run_trial(spec, study, script())
    assert result.failure is not None
    assert "`speed` is no hyperparameter" in result.failure.message


def test_without_a_checkpoint_there_is_nothing_to_restore(
    study: PreparedStudy, make_spec: Any, tmp_path: Path
) -> None:
    assert restore(build_job(make_spec(), study), tmp_path / "none") is None


def test_a_model_that_is_gone_is_a_failed_trial(
    study: PreparedStudy, run: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Gone:
        def load_model(self, *_: Any, **__: Any) -> LoadedModel:
            raise ModelError("The model folder `x` does not exist.")

    result = run(study=dataclasses.replace(study, task=Gone()))
    assert result.failure is not None
    assert result.failure.message == "ModelError: The model folder `x` does not exist."


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize(
    "recipe",
    [
        {"freezing": "none", "reinit_layers": 2, "l1": 0.1},
        {"freezing": "bottom_layers", "frozen_layers": 1, "reinit_layers": 1, "mixup": 0.4},
        {"freezing": "head_only", "reinit_layers": 1, "token_dropout": 0.2},
        {"freezing": "gradual_unfreezing", "layerwise_lr_decay": 0.7, "weight_decay": 0.3},
        {"freezing": "embeddings"},
    ],
    ids=lambda recipe: str(recipe["freezing"]),
)
def test_trials_leave_the_weights_that_they_share_alone(
    study_with: Any, run: Any, script: Any, recipe: dict[str, Any], precision: str
) -> None:
    study = study_with(precision=precision)
    paused = run(script(steps={2: Decision.PAUSE}), study=study, **recipe)
    assert paused.outcome is Outcome.PAUSED
    assert run(study=study, **recipe).outcome is Outcome.COMPLETE
    opened = study.checkpoint(None)
    shared = study.weights_of(opened).tensors
    stored = load_file(opened.resolved.weight_files[0])
    assert stored.keys() == shared.keys()
    assert all(torch.equal(shared[name], value) for name, value in stored.items())


def test_a_trial_whose_validations_gave_no_value_has_diverged(
    study: PreparedStudy, run: Any
) -> None:
    class NoValue(type(study.task)):
        def metrics(self, *arguments: Any) -> dict[str, float]:
            return {**super().metrics(*arguments), "f1_macro": float("nan")}

    result = run(study=dataclasses.replace(study, task=NoValue()))
    assert result.failure is not None
    assert (result.failure.kind, result.failure.message) == (
        FailureKind.DIVERGED,
        "no validation gave a value",
    )


@pytest.fixture
def own_study(study_with: Callable[..., PreparedStudy]) -> PreparedStudy:
    """A study that has learnt nothing of memory yet."""
    return dataclasses.replace(study_with(micro_batch_size="auto"), memory=StudyMemory())


class Tearing:
    """Stands for a device that runs out of memory in some optimiser steps, too late."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, *steps: int) -> None:
        self.num_steps = 0
        own = torch.optim.AdamW.step

        def step(optimizer: torch.optim.AdamW) -> None:
            self.num_steps += 1
            own(optimizer)
            if self.num_steps in steps:
                raise torch.OutOfMemoryError("CUDA out of memory.")

        monkeypatch.setattr(torch.optim.AdamW, "step", step)


def losses(result: TrialResult) -> list[float]:
    return [evaluation.metrics["train_loss"] for evaluation in result.evaluations]


@pytest.mark.parametrize("torn", [(1,), (5,), (2, 9)], ids=["first", "later", "twice"])
def test_a_torn_step_is_not_done_twice(
    run: Any,
    own_study: PreparedStudy,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    torn: tuple[int, ...],
) -> None:
    whole = run(study=own_study, dropout=0.0, folder=tmp_path / "whole")
    Tearing(monkeypatch, *torn)
    found = run(study=own_study, dropout=0.0, folder=tmp_path / "torn")
    assert (found.outcome, found.cost.examples) == (Outcome.COMPLETE, whole.cost.examples)
    assert [e.step for e in found.evaluations] == [e.step for e in whole.evaluations]
    assert losses(found) == pytest.approx(losses(whole), abs=1e-4)
    assert found.memory.num_out_of_memory == len(torn)
    assert found.memory.micro_batch_size == 8 // 2 ** len(torn)
    assert found.memory.correction == own_study.memory.correction("cpu") > 1


def test_a_torn_step_costs_the_steps_since_the_last_checkpoint(
    run: Any, own_study: PreparedStudy, monkeypatch: pytest.MonkeyPatch
) -> None:
    tearing = Tearing(monkeypatch, 5)
    run(study=own_study)
    assert tearing.num_steps == 12 + 2, "steps 4 and 5 are made again after a validation at 3"


def test_steps_that_tear_again_and_again_fail_the_trial(
    run: Any, own_study: PreparedStudy, monkeypatch: pytest.MonkeyPatch
) -> None:
    Tearing(monkeypatch, *range(99))
    result = run(study=own_study)
    assert (result.outcome, result.failure.kind) == (Outcome.FAILED, FailureKind.OUT_OF_MEMORY)
    assert "CUDA out of memory." in result.failure.message
    assert result.memory.num_out_of_memory == 3


class Builder:
    """Stands for a device that has no room for a model, so many times."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, times: int) -> None:
        self.left, self.num_calls = times, 0

        def build(*args: Any) -> Any:
            self.num_calls += 1
            if self.left:
                self.left -= 1
                raise torch.OutOfMemoryError("CUDA out of memory.")
            return build_job(*args)

        monkeypatch.setattr("automl_ft.trial.runner.build_job", build)


def test_a_trial_that_could_not_be_built_is_built_again(
    run: Any, own_study: PreparedStudy, monkeypatch: pytest.MonkeyPatch
) -> None:
    Builder(monkeypatch, 1)
    result = run(study=own_study)
    assert (result.outcome, result.failure) == (Outcome.COMPLETE, None)
    assert (result.memory.num_out_of_memory, result.memory.micro_batch_size) == (1, 4)
    assert result.memory.correction == own_study.memory.correction("cpu") == pytest.approx(1.1)


def test_a_trial_that_cannot_be_built_fails_as_out_of_memory(
    run: Any, own_study: PreparedStudy, monkeypatch: pytest.MonkeyPatch
) -> None:
    builder = Builder(monkeypatch, 99)
    result = run(study=own_study)
    assert (result.outcome, result.failure.kind) == (Outcome.FAILED, FailureKind.OUT_OF_MEMORY)
    assert builder.num_calls == 4
    assert (result.memory.num_out_of_memory, result.memory.micro_batch_size) == (3, 1)


def test_other_errors_in_building_are_not_tried_again(
    run: Any, own_study: PreparedStudy, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = []

    def build(*args: Any) -> None:
        calls.append(args)
        raise KeyError("x")

    monkeypatch.setattr("automl_ft.trial.runner.build_job", build)
    assert run(study=own_study).failure.kind is FailureKind.ERROR
    assert len(calls) == 1


def test_what_ran_out_while_building_is_added_to_what_the_checkpoint_counted(
    run: Any, own_study: PreparedStudy, script: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    Tearing(monkeypatch, 1)
    first = run(script(reports={1: Decision.PAUSE}), study=own_study)
    assert first.memory.num_out_of_memory == 1
    Builder(monkeypatch, 1)
    second = run(study=own_study)
    assert (second.outcome, second.memory.num_out_of_memory) == (Outcome.COMPLETE, 2)


@pytest.mark.parametrize(
    ("recipe", "script_of", "is_evidence"),
    [
        ({}, {}, True),
        ({"freezing": "gradual_unfreezing"}, {}, True),
        ({"freezing": "gradual_unfreezing", "epochs": 9}, {"reports": {4: "prune"}}, False),
        ({}, {"steps": {2: "prune"}}, False),
    ],
    ids=["whole", "unfrozen in the end", "still frozen", "part of an epoch"],
)
def test_runs_that_took_all_that_they_ever_take_teach_the_study(
    run: Any,
    own_study: PreparedStudy,
    script: Any,
    monkeypatch: pytest.MonkeyPatch,
    recipe: dict[str, Any],
    script_of: dict[str, dict[int, str]],
    is_evidence: bool,
) -> None:
    monkeypatch.setattr("automl_ft.trial.runner.taken_memory_mib", lambda device: 1.0)
    own_study.memory.correct("cpu", 4.0)
    plan = {key: dict.fromkeys(value, Decision.PRUNE) for key, value in script_of.items()}
    run(script(**plan), study=own_study, **recipe)
    assert own_study.memory.correction("cpu") == (2.0 if is_evidence else 4.0)
