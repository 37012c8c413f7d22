"""One look at a model: what is measured, what is not, and what is said of it."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import pytest
import torch

from automl_ft.config.study import StudyConfig
from automl_ft.models.capabilities import find_capabilities
from automl_ft.trial import look
from automl_ft.trial.look import LookedAt, look_at_model
from automl_ft.trial.prepare import PreparedStudy


class Clock:
    """Counts how often it is asked; both layouts take a second."""

    def __init__(self) -> None:
        self.runs: list[str] = []

    def train(self, batching: str) -> float:
        self.runs.append(batching)
        return 1.0


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
    found = Clock()
    monkeypatch.setattr(look, "make_stopwatch", lambda *parts: found)
    return found


def test_the_layout_is_timed_for_auto(
    looked_at: LookedAt, with_training: Any, clock: Clock
) -> None:
    assert look_at_model(with_training(batching="auto"), looked_at).batching == "packed"
    assert clock.runs == ["packed", "bucketed"]


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


def test_where_memory_runs_out_it_is_packed(
    looked_at: LookedAt, with_training: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*parts: object) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory.")

    monkeypatch.setattr(look, "make_stopwatch", refuse)
    config = with_training(batching="auto", precision="bf16", validations_per_epoch="auto")
    assert look_at_model(config, looked_at).batching == "packed"


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
