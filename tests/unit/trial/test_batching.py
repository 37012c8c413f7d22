"""Packed or bucketed: measured, and packed in doubt."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from typing import Any

import pytest

from automl_ft.models.capabilities import Capabilities, find_capabilities
from automl_ft.trial import batching
from automl_ft.trial.batching import choose_batching
from automl_ft.trial.prepare import PreparedStudy


@pytest.fixture
def choose(study: PreparedStudy, monkeypatch: pytest.MonkeyPatch):
    """Return a function that chooses while a clock says what each run takes."""
    opened = study.checkpoint(None)
    loaded = study.load_model(opened, dropout=0.0, seed=0)
    capabilities = find_capabilities(loaded.model, loaded.layer_map)

    def run(packed: float, bucketed: float, found: Capabilities = capabilities) -> str:
        def ticks() -> Iterator[float]:
            now = 0.0
            while True:
                for seconds in (packed, bucketed):
                    yield now
                    now += seconds
                    yield now

        clock = ticks()
        monkeypatch.setattr(batching.time, "perf_counter", lambda: next(clock))
        rows = opened.splits["train"], opened.padding
        return choose_batching(loaded.model, loaded.layer_map, found, rows, "bf16")

    run.model = loaded.model
    run.capabilities = capabilities
    return run


def test_the_faster_one_is_taken(choose: Any) -> None:
    assert choose(0.1, 0.2) == "packed"
    assert choose(0.2, 0.1) == "bucketed"


def test_packed_is_taken_where_bucketed_is_hardly_faster(choose: Any) -> None:
    assert choose(0.11, 0.1) == "packed"


def test_packed_is_taken_where_it_hardly_matters(choose: Any) -> None:
    assert choose(0.002, 0.001) == "packed"


def test_a_model_that_cannot_be_packed_is_bucketed(choose: Any) -> None:
    cannot = dataclasses.replace(choose.capabilities, packed=None)
    assert choose(0.1, 0.2, cannot) == "bucketed"


def test_measuring_leaves_no_gradient(choose: Any) -> None:
    choose(0.1, 0.2)
    assert all(p.grad is None for p in choose.model.parameters())
