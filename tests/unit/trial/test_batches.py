"""Which rows a step sees depends on seed, epoch and batch only."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from automl_ft.data.augmentation import Augmentation
from automl_ft.trial.batches import TrainingBatches, evaluation_tensors
from automl_ft.trial.prepare import PreparedStudy

CPU = torch.device("cpu")


@pytest.fixture
def make(study: PreparedStudy):
    opened = study.checkpoint(None)

    def batches(**changes: Any) -> TrainingBatches:
        plain = {
            "split": opened.splits["train"], "batch_size": 8, "seed": 3,
            "augmentation": Augmentation(), "padding": opened.padding,
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


def test_tensors_hold_the_rows_padded_and_their_targets(make) -> None:
    batches = make()
    inputs, targets = batches.tensors(np.array([4, 0]), 0, CPU)
    split = batches.split
    assert targets.tolist() == [split.labels[4], split.labels[0]]
    assert inputs["input_ids"].shape == inputs["attention_mask"].shape
    for number, row in enumerate((4, 0)):
        ids = split.row(row).input_ids
        assert inputs["input_ids"][number, : len(ids)].tolist() == ids.tolist()
        assert inputs["attention_mask"][number].sum() == len(ids)


def test_augmented_tensors_depend_on_the_epoch_not_on_the_batch(make) -> None:
    batches = make(augmentation=Augmentation(token_dropout=0.5, replacement_token_id=4))
    alone, _ = batches.tensors(np.array([5]), 1, CPU)
    other, _ = batches.tensors(np.array([5]), 2, CPU)
    together, _ = batches.tensors(np.array([2, 5]), 1, CPU)
    length = alone["input_ids"].shape[1]
    assert torch.equal(together["input_ids"][1, :length], alone["input_ids"][0])
    assert not torch.equal(other["input_ids"], alone["input_ids"])


def test_evaluation_sees_every_row_once_without_targets(study: PreparedStudy) -> None:
    opened = study.checkpoint(None)
    split = opened.splits["validation"]
    batches = list(evaluation_tensors(split, opened.padding, 4, CPU))
    assert sorted(np.concatenate([rows for rows, _ in batches])) == list(range(len(split)))
    assert all("labels" not in inputs for _, inputs in batches)
