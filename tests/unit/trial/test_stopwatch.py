"""A stopwatch runs what trials run, on the same rows for every layout."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch

from automl_ft.models.capabilities import find_capabilities
from automl_ft.trial import stopwatch
from automl_ft.trial.prepare import PreparedStudy
from automl_ft.trial.stopwatch import Stopwatch, make_stopwatch

LAYOUTS = ("packed", "bucketed")


@pytest.fixture
def make(study: PreparedStudy) -> Callable[[str], Stopwatch]:
    def make_one(precision: str) -> Stopwatch:
        opened = study.checkpoint(None)
        loaded = study.load_model(opened, dropout=0.1, seed=0)
        capabilities = find_capabilities(loaded.model, loaded.layer_map)
        return make_stopwatch(
            loaded, capabilities, opened.splits["train"], opened.padding, precision
        )

    return make_one


@pytest.mark.parametrize("batching", LAYOUTS)
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_every_layout_can_be_timed(make: Any, batching: str, precision: str) -> None:
    watch = make(precision)
    assert watch.train(batching) > 0


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_what_computes_in_training_trains(make: Any, precision: str) -> None:
    watch = make(precision)
    watch.train("packed")
    assert watch.compute.model.training
    assert any(p.grad is not None for p in watch.compute.model.parameters())


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_masks_come_from_where_trials_take_them(make: Any, precision: str) -> None:
    watch = make(precision)
    before = watch.stream.position["state"]["state"].tolist()
    random = torch.random.get_rng_state()
    for batching in LAYOUTS:
        watch.train(batching)
        after = watch.stream.position["state"]["state"].tolist()
        assert after != before, batching
        before = after
        if batching == "packed":  # padded attention is torch's own
            assert torch.equal(torch.random.get_rng_state(), random)


def test_rows_are_timed_once_each(make: Any) -> None:
    rows = make("fp32").rows
    assert len(set(rows.tolist())) == len(rows) == 16


def test_training_multiplies_as_its_precision_says(
    make: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = []

    @contextmanager
    def products(precision: str, device: torch.device) -> Iterator[None]:
        asked.append((precision, device.type))
        yield

    monkeypatch.setattr(stopwatch, "training_products", products)
    watch = make("tf32")
    watch.train("packed")
    assert asked == [("tf32", "cpu")] * 2
