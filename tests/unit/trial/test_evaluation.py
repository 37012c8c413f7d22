"""Scores come in the order of the rows, whatever the batches."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch

from automl_ft.data.encoding import EncodedSplit
from automl_ft.trial.evaluation import predict_logits
from automl_ft.trial.prepare import PreparedStudy

CPU = torch.device("cpu")


@pytest.fixture
def model(study: PreparedStudy):
    return study.load_model(study.checkpoint(None), dropout=0.5, seed=0).model


def scores(model, study: PreparedStudy, batch_size: int) -> np.ndarray:
    opened = study.checkpoint(None)
    return predict_logits(model, opened.splits["validation"], opened.padding, batch_size, CPU)


def test_batches_do_not_matter(model, study: PreparedStudy) -> None:
    one_by_one = scores(model, study, 1)
    assert one_by_one.dtype == np.float32
    np.testing.assert_allclose(scores(model, study, 7), one_by_one, atol=1e-5)


def test_the_scores_are_those_of_each_row(model, study: PreparedStudy) -> None:
    split = study.checkpoint(None).splits["validation"]
    found = scores(model, study, 5)
    for row in (0, 9, len(split) - 1):
        ids = torch.as_tensor(split.row(row).input_ids.astype(np.int64))[None]
        np.testing.assert_allclose(model(input_ids=ids).logits[0].detach(), found[row], atol=1e-5)


def test_the_model_is_scored_without_dropout_and_left_in_eval_mode(
    model, study: PreparedStudy
) -> None:
    model.train()
    first = scores(model, study, 8)
    assert not model.training
    np.testing.assert_array_equal(scores(model, study, 8), first)


def test_an_empty_split_is_refused(model, study: PreparedStudy) -> None:
    opened = study.checkpoint(None)
    empty = dataclasses.replace(
        opened.splits["validation"], labels=np.empty(0, np.int64), offsets=np.zeros(1, np.int64)
    )
    assert isinstance(empty, EncodedSplit)
    with pytest.raises(ValueError, match="at least one row"):
        predict_logits(model, empty, opened.padding, 8, CPU)
