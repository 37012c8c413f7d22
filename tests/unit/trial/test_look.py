"""One look at a model: what is measured, what is not, and what is said of it."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import pytest
import torch

from automl_ft.config.study import StudyConfig
from automl_ft.models.capabilities import find_capabilities
from automl_ft.specs.validation import usual_cost
from automl_ft.trial import look
from automl_ft.trial.look import LookedAt, look_at_model, measured_cost
from automl_ft.trial.prepare import PreparedStudy


class Clock:
    """Takes as many seconds as it is told, one number for each run; 100 tokens of each split."""

    def __init__(self, training: list[float], validation: list[float], device: str = "cpu") -> None:
        self._seconds = {"train": list(training), "validate": list(validation)}
        self.device = torch.device(device)
        self.runs: list[str] = []

    def num_tokens(self, split: str) -> int:
        return {"train": 100, "validation": 200}[split]

    def train(self, batching: str) -> float:
        return self._run("train")

    def validate(self, batching: str) -> float:
        return self._run("validate")

    def _run(self, kind: str) -> float:
        self.runs.append(kind)
        seconds = self._seconds[kind]
        return seconds.pop(0) if len(seconds) > 1 else seconds[0]


def test_the_cost_is_that_of_a_token() -> None:
    assert measured_cost(Clock([1.0], [0.8]), "packed", 0.5) == pytest.approx(0.4)


def test_one_warm_run_is_enough_where_validation_is_as_cheap_as_usual() -> None:
    clock = Clock([1.0], [9.0, 0.8])
    assert measured_cost(clock, "packed", 0.5) == pytest.approx(0.4)
    assert clock.runs == ["validate", "train", "validate"]


def test_a_dear_validation_is_looked_at_again() -> None:
    clock = Clock([1.0], [9.0, 4.0, 0.8])
    assert measured_cost(clock, "packed", 0.5) == pytest.approx(0.4)
    assert clock.runs.count("train") == 2


def test_a_validation_that_stays_dear_is_believed() -> None:
    clock = Clock([1.0], [8.0, 7.0, 6.0])
    assert measured_cost(clock, "packed", 0.5) == pytest.approx(3.0)
    assert clock.runs.count("train") == 3


def test_on_a_cpu_what_takes_no_time_is_not_measured() -> None:
    assert measured_cost(Clock([0.001], [0.1]), "packed", 0.5) is None


def test_on_a_gpu_it_is() -> None:
    assert measured_cost(Clock([0.001], [0.006], "cuda"), "packed", 0.5) == pytest.approx(3.0)


@pytest.fixture
def looked_at(study: PreparedStudy) -> LookedAt:
    opened = study.checkpoint(None)
    return LookedAt(
        loaded=study.load_model(opened, dropout=0.0, seed=0),
        splits=opened.splits,
        padding=opened.padding,
        max_length=opened.facts.max_length,
        replacement_token_id=opened.replacement_token_id,
    )


@pytest.fixture
def with_training(config: StudyConfig) -> Callable[..., StudyConfig]:
    def change(**changes: Any) -> StudyConfig:
        training = dataclasses.replace(config.training, **changes)
        return dataclasses.replace(config, training=training)

    return change


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    found = Clock([1.0], [6.0])
    monkeypatch.setattr(look, "make_stopwatch", lambda *parts: found)
    return found


def test_the_cost_is_measured_for_auto_in_less_than_fp32(
    looked_at: LookedAt, with_training: Any, clock: Clock
) -> None:
    config = with_training(validations_per_epoch="auto", precision="bf16", batching="packed")
    assert look_at_model(config, looked_at).validation_cost == pytest.approx(3.0)


@pytest.mark.parametrize(
    "changes",
    [
        {"validations_per_epoch": 3, "precision": "bf16"},
        {"validations_per_epoch": "auto", "precision": "fp32"},
    ],
    ids=["given", "fp32"],
)
def test_nothing_is_timed_that_makes_no_difference(
    looked_at: LookedAt, with_training: Any, clock: Clock, changes: dict[str, Any]
) -> None:
    found = look_at_model(with_training(batching="packed", **changes), looked_at)
    assert found.validation_cost is None
    assert clock.runs == []


def test_a_cost_that_cannot_matter_is_not_measured(
    looked_at: LookedAt, with_training: Any, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = []
    monkeypatch.setattr(look, "may_matter", lambda *tokens: bool(asked.append(tokens)))
    config = with_training(validations_per_epoch="auto", precision="bf16", batching="packed")
    assert look_at_model(config, looked_at).validation_cost is None
    splits = looked_at.splits
    tokens = splits["train"].num_tokens, splits["validation"].num_tokens
    assert asked == [(*tokens, usual_cost("bf16"))]


def test_a_model_that_cannot_be_packed_is_bucketed_without_a_look(
    looked_at: LookedAt, with_training: Any, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    looked_at.loaded.model._supports_attention_backend = False
    assert look_at_model(with_training(batching="auto"), looked_at).batching == "bucketed"
    assert clock.runs == []


def test_a_layout_that_was_asked_for_is_not_timed(
    looked_at: LookedAt, with_training: Any, clock: Clock
) -> None:
    assert look_at_model(with_training(batching="bucketed"), looked_at).batching == "bucketed"
    assert clock.runs == []


def test_where_memory_runs_out_it_is_packed_and_nothing_was_measured(
    looked_at: LookedAt, with_training: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*parts: object) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory.")

    monkeypatch.setattr(look, "make_stopwatch", refuse)
    config = with_training(batching="auto", precision="bf16", validations_per_epoch="auto")
    found = look_at_model(config, looked_at)
    assert (found.batching, found.validation_cost) == ("packed", None)


def test_another_error_is_not_hidden(
    looked_at: LookedAt, with_training: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*parts: object) -> None:
        raise RuntimeError("broken")

    monkeypatch.setattr(look, "make_stopwatch", refuse)
    with pytest.raises(RuntimeError, match="broken"):
        look_at_model(with_training(batching="auto"), looked_at)


def test_a_look_leaves_no_gradient(looked_at: LookedAt, with_training: Any) -> None:
    look_at_model(with_training(batching="auto"), looked_at)
    assert all(p.grad is None for p in looked_at.loaded.model.parameters())


def test_nothing_is_said_of_a_model_that_allows_everything(
    looked_at: LookedAt, with_training: Any
) -> None:
    assert look_at_model(with_training(batching="packed"), looked_at).fallbacks == ()


def test_an_embedding_that_stays_whole_is_told_with_the_other_fallbacks(
    looked_at: LookedAt, with_training: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("automl_ft.models.vocabulary._MATTERS", 1)
    (sentence,) = look_at_model(with_training(batching="packed"), looked_at).fallbacks
    assert "is kept whole, as most of it is needed" in sentence


def test_a_last_block_in_full_for_bucketed_batches_is_told(
    looked_at: LookedAt, with_training: Any
) -> None:
    (sentence,) = look_at_model(with_training(batching="bucketed"), looked_at).fallbacks
    assert "The last block of" in sentence


@pytest.mark.parametrize("setting", ["bf16", "fp32"])
def test_a_model_that_does_not_compute_in_bf16_trains_in_fp32_and_it_is_said(
    looked_at: LookedAt, with_training: Any, monkeypatch: pytest.MonkeyPatch, setting: str
) -> None:
    monkeypatch.setattr(look, "runs_in_bf16", lambda model: False)
    found = look_at_model(with_training(batching="packed", precision=setting), looked_at)
    assert found.can_bf16 == (setting != "bf16")
    notes = [note for note in found.fallbacks if "does not compute in bf16" in note]
    assert len(notes) == (setting == "bf16")
    assert all("though `training.precision` says so" in note for note in notes)


def test_packed_rows_that_cannot_be_had_are_said(
    looked_at: LookedAt, with_training: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain = find_capabilities(looked_at.loaded.model, looked_at.loaded.layer_map)
    plain = dataclasses.replace(plain, packed=None, has_read_block=False)
    monkeypatch.setattr(look, "find_capabilities", lambda *args, **options: plain)
    found = look_at_model(with_training(batching="packed", precision="fp32"), looked_at)
    assert any("`training.batching: packed` cannot be had" in note for note in found.fallbacks)
