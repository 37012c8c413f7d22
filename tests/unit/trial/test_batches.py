"""Which rows a step sees depends on seed, epoch and batch only."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from automl_ft.trial.batches import TrainingBatches, evaluation_tensors
from automl_ft.trial.prepare import PreparedStudy

CPU = torch.device("cpu")


@pytest.fixture
def make(study: PreparedStudy):
    opened = study.checkpoint(None)

    def batches(**changes: Any) -> TrainingBatches:
        plain = {
            "split": opened.splits["train"], "batch_size": 8, "seed": 3,
        }  # fmt: skip
        return TrainingBatches(**{**plain, **changes})

    return batches


def test_an_epoch_sees_every_row_once(make) -> None:
    batches = make()
    order = batches.order(0)
    seen = np.concatenate([batches.rows(order, i) for i in range(batches.num_batches)])
    assert sorted(seen) == list(range(batches.num_examples))


def test_the_last_batch_holds_the_rest(make) -> None:
    batches = make()
    assert (batches.num_examples, batches.num_batches) == (41, 6)
    assert len(batches.rows(batches.order(0), 5)) == 1


def test_the_order_does_not_depend_on_the_batch_size(make) -> None:
    np.testing.assert_array_equal(make().order(1), make(batch_size=16).order(1))


def test_epochs_and_seeds_have_orders_of_their_own(make) -> None:
    orders = [make().order(0), make().order(1), make(seed=4).order(0)]
    assert len({tuple(order) for order in orders}) == 3


def test_a_bucketed_epoch_sees_every_row_once_in_batches_of_similar_length(make) -> None:
    plain, bucketed = make(), make(is_bucketed=True)
    order = bucketed.order(2)
    assert sorted(order) == list(range(bucketed.num_examples))
    assert _spread(bucketed, order) < 0.6 * _spread(plain, plain.order(2))
    assert not np.array_equal(order, bucketed.order(3))


def _spread(batches: TrainingBatches, order: np.ndarray) -> float:
    rows = [batches.rows(order, batch) for batch in range(batches.num_batches)]
    return float(np.mean([np.ptp(batches.split.lengths[part]) for part in rows]))


def test_evaluation_sees_every_row_once_without_targets(study: PreparedStudy) -> None:
    opened = study.checkpoint(None)
    split = opened.splits["validation"]
    batches = list(evaluation_tensors(split, opened.padding, 4, CPU))
    assert sorted(np.concatenate([rows for rows, _ in batches])) == list(range(len(split)))
    assert all("labels" not in inputs for _, inputs in batches)
