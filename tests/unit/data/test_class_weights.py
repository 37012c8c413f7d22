from __future__ import annotations

import numpy as np
import pytest

from automl_ft.data.class_weights import balanced_class_weights


def test_rare_classes_weigh_more_in_proportion() -> None:
    weights = balanced_class_weights(np.asarray([0, 0, 0, 1]), 2)
    assert weights[1] / weights[0] == pytest.approx(3)


def test_mean_weight_of_the_rows_is_one() -> None:
    labels = np.asarray([0, 0, 0, 1, 2, 2])
    assert balanced_class_weights(labels, 3)[labels].mean() == pytest.approx(1)


def test_a_class_without_training_rows_weighs_nothing_and_changes_nothing() -> None:
    labels = np.asarray([0, 0, 2])
    weights = balanced_class_weights(labels, 4)
    assert weights.tolist() == [0.75, 0, 1.5, 0]
