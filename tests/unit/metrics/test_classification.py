"""Our metrics are scikit-learn's, and the fast objective is the same number."""

from __future__ import annotations

import math
import warnings
from typing import Any

import numpy as np
import pytest
import torch
from sklearn import metrics as sk

from automl_ft.config.study import OBJECTIVES
from automl_ft.metrics.classification import (
    classification_metrics,
    cross_entropy,
    objective_value,
)

LABELS = ("a", "b", "c", "d")
AVERAGES = ("macro", "micro", "weighted")


def draw(seed: int, num_rows: int, num_labels: int, present: int | None = None) -> Any:
    """Return targets among the first `present` classes, and logits that lean to them."""
    generator = np.random.default_rng(seed)
    targets = generator.integers(0, present or num_labels, num_rows)
    logits = generator.normal(size=(num_rows, num_labels)).astype(np.float32)
    logits[np.arange(num_rows), targets] += generator.uniform(-1, 3)
    return targets, logits


def one_hot(predictions: list[int], num_labels: int) -> Any:
    return np.eye(num_labels, dtype=np.float32)[predictions]


@pytest.fixture(params=range(5))
def case(request: pytest.FixtureRequest) -> Any:
    return draw(request.param, 60, len(LABELS))


def test_accuracy_and_mcc_are_scikit_learns(case: Any) -> None:
    targets, logits = case
    found = classification_metrics(targets, logits, LABELS)
    predictions = logits.argmax(axis=1)
    assert found["accuracy"] == sk.accuracy_score(targets, predictions)
    assert found["mcc"] == pytest.approx(sk.matthews_corrcoef(targets, predictions), abs=1e-12)


@pytest.mark.parametrize("average", AVERAGES)
def test_averages_are_scikit_learns(case: Any, average: str) -> None:
    targets, logits = case
    found = classification_metrics(targets, logits, LABELS)
    predictions = logits.argmax(axis=1)
    for name, score in (
        ("precision", sk.precision_score), ("recall", sk.recall_score), ("f1", sk.f1_score)
    ):  # fmt: skip
        expected = score(targets, predictions, average=average, zero_division=0)
        assert found[f"{name}_{average}"] == pytest.approx(expected, abs=1e-12)


def test_each_class_has_its_own_scores(case: Any) -> None:
    targets, logits = case
    found = classification_metrics(targets, logits, LABELS)
    predictions = logits.argmax(axis=1)
    expected = sk.f1_score(targets, predictions, average=None, labels=range(4), zero_division=0)
    assert [found[f"f1/{label}"] for label in LABELS] == pytest.approx(list(expected))
    recalls = sk.recall_score(targets, predictions, average=None, zero_division=0)
    assert [found[f"recall/{label}"] for label in LABELS] == pytest.approx(list(recalls))


def test_binary_scores_are_those_of_the_positive_class() -> None:
    targets, logits = draw(3, 50, 2)
    found = classification_metrics(targets, logits, ("no", "yes"), "no")
    expected = sk.f1_score(targets, logits.argmax(axis=1), pos_label=0)
    assert found["f1_binary"] == found["f1/no"] == pytest.approx(expected)
    assert found["precision_binary"] == found["precision/no"]


def test_without_a_positive_class_there_are_no_binary_scores(case: Any) -> None:
    assert not any("binary" in name for name in classification_metrics(*case, LABELS))


def test_every_metric_is_a_plain_number(case: Any) -> None:
    found = classification_metrics(*case, LABELS, "b")
    assert {type(value) for value in found.values()} == {float}
    assert all(0 <= value <= 1 for name, value in found.items() if name not in ("mcc", "loss"))


def test_a_class_that_is_neither_present_nor_predicted_counts_zero() -> None:
    targets = np.array([0, 1, 0, 1])
    found = classification_metrics(targets, one_hot([0, 1, 0, 1], 3), ("a", "b", "c"))
    assert (found["f1/c"], found["f1/a"]) == (0.0, 1.0)
    assert found["f1_macro"] == pytest.approx(2 / 3)
    assert (found["f1_weighted"], found["accuracy"], found["mcc"]) == (1.0, 1.0, 1.0)


def test_no_rows_are_an_error() -> None:
    with pytest.raises(ValueError, match="at least one row"):
        classification_metrics(np.empty(0, int), np.empty((0, 2), np.float32), ("a", "b"))
    with pytest.raises(ValueError, match="at least one row"):
        objective_value("accuracy", np.empty(0, int), np.empty(0, int), 2)


def test_the_fast_objective_is_the_metric_of_that_name() -> None:
    generator = np.random.default_rng(11)
    for seed in range(60):
        num_labels = int(generator.integers(2, 7))
        present = int(generator.integers(1, num_labels + 1))
        targets, logits = draw(seed, int(generator.integers(1, 40)), num_labels, present)
        positive = int(generator.integers(0, num_labels))
        labels = [str(number) for number in range(num_labels)]
        expected = classification_metrics(targets, logits, labels, str(positive))
        for objective in OBJECTIVES:
            found = objective_value(objective, targets, logits.argmax(axis=1), num_labels, positive)
            assert found == pytest.approx(expected[objective], abs=1e-12), (objective, seed)


@pytest.mark.filterwarnings("ignore:A single label was found")
def test_mcc_is_scikit_learns_for_any_classes() -> None:
    generator = np.random.default_rng(5)
    for _ in range(100):
        num_labels = int(generator.integers(2, 6))
        targets, predictions = generator.integers(0, num_labels, (2, int(generator.integers(1, 9))))
        expected = sk.matthews_corrcoef(targets, predictions)
        found = objective_value("mcc", targets, predictions, num_labels)
        assert found == pytest.approx(expected, abs=1e-9)


@pytest.mark.parametrize(
    ("targets", "predictions", "expected"),
    [
        ([0, 0, 0], [0, 0, 0], 0.0),
        ([0, 1, 0], [1, 1, 1], 0.0),
        ([1, 1, 1], [0, 1, 0], 0.0),
        ([0, 1, 0, 1], [1, 0, 1, 0], -1.0),
        ([0, 1, 2], [0, 1, 2], 1.0),
    ],
    ids=["one class", "constant prediction", "constant target", "all wrong", "all right"],
)
def test_mcc_at_its_edges(targets: list[int], predictions: list[int], expected: float) -> None:
    found = objective_value("mcc", np.array(targets), np.array(predictions), 3)
    assert found == pytest.approx(expected)


def test_a_single_class_is_scored_without_a_warning() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = classification_metrics(np.zeros(4, int), one_hot([0] * 4, 3), ("a", "b", "c"))
    assert (found["accuracy"], found["mcc"]) == (1.0, 0.0)


@pytest.mark.parametrize(("objective", "positive"), [("f1_binary", None), ("bleu", 1)])
def test_an_objective_that_cannot_be_computed_is_an_error(
    objective: str, positive: int | None
) -> None:
    with pytest.raises(ValueError, match=f"`{objective}` is no objective"):
        objective_value(objective, np.array([0, 1]), np.array([0, 1]), 2, positive)


def test_cross_entropy_is_torchs(case: Any) -> None:
    targets, logits = case
    expected = torch.nn.functional.cross_entropy(torch.tensor(logits), torch.tensor(targets))
    assert cross_entropy(targets, logits) == pytest.approx(expected.item(), abs=1e-6)


def test_cross_entropy_of_large_scores_does_not_overflow() -> None:
    logits = np.array([[1e30, 0.0], [-1e30, 0.0]], dtype=np.float32)
    assert cross_entropy(np.array([0, 1]), logits) == 0.0


@pytest.mark.parametrize(
    ("scores", "expected"),
    [([math.nan, 0.0], math.nan), ([math.inf, 0.0], math.nan), ([-math.inf, 0.0], math.inf)],
)
def test_broken_scores_give_a_broken_loss_without_a_warning(
    scores: list[float], expected: float
) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = cross_entropy(np.array([0]), np.array([scores], dtype=np.float32))
    assert found == pytest.approx(expected, nan_ok=True)
    assert not math.isfinite(found)
