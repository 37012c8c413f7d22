"""The task's loss is torch's own, exact over micro-batches; the rest is passed on."""

from __future__ import annotations

import csv
import dataclasses
from pathlib import Path

import numpy as np
import pytest
import torch

from automl_ft.config.study import OBJECTIVES, DataConfig, ModelConfig, StudyConfig
from automl_ft.data.encoding import EncodedSplit
from automl_ft.errors import UsageError
from automl_ft.metrics.classification import classification_metrics
from automl_ft.tasks.base import Loss, SoftTargetLoss, Task
from automl_ft.tasks.text_classification import ClassificationLoss, TextClassification

WEIGHTS = (None, (0.5, 1.0, 4.0))


@pytest.fixture
def batch() -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(10, 3, generator=generator, requires_grad=True)
    return logits, torch.tensor([0, 1, 2, 2, 1, 0, 0, 0, 2, 1])


def make(weights: tuple[float, ...] | None, smoothing: float) -> Loss:
    tensor = None if weights is None else torch.tensor(weights)
    return ClassificationLoss(class_weights=tensor, label_smoothing=smoothing)


@pytest.mark.parametrize("smoothing", [0.0, 0.2])
@pytest.mark.parametrize("weights", WEIGHTS)
def test_total_over_weight_is_torchs_mean(batch, weights, smoothing: float) -> None:
    logits, targets = batch
    loss = make(weights, smoothing)
    tensor = None if weights is None else torch.tensor(weights)
    expected = torch.nn.CrossEntropyLoss(weight=tensor, label_smoothing=smoothing)(logits, targets)
    found = loss.total(logits, targets) / loss.weight(targets)
    torch.testing.assert_close(found, expected)


@pytest.mark.parametrize("smoothing", [0.0, 0.2])
@pytest.mark.parametrize("weights", WEIGHTS)
def test_soft_targets_give_the_total(batch, weights, smoothing: float) -> None:
    logits, targets = batch
    loss = make(weights, smoothing)
    assert isinstance(loss, SoftTargetLoss)
    found = -(loss.soft_targets(3)[targets] * logits.log_softmax(-1)).sum()
    torch.testing.assert_close(found, loss.total(logits, targets))


@pytest.mark.parametrize("weights", WEIGHTS)
def test_micro_batches_add_up(batch, weights) -> None:
    logits, targets = batch
    loss = make(weights, 0.1)
    parts = [slice(0, 3), slice(3, 4), slice(4, 10)]
    total = sum(loss.total(logits[part], targets[part]) for part in parts)
    torch.testing.assert_close(total, loss.total(logits, targets))
    assert sum(loss.weight(targets[part]) for part in parts) == pytest.approx(loss.weight(targets))


def test_the_weight_is_the_rows_or_the_sum_of_their_class_weights(batch) -> None:
    targets = batch[1]
    assert make(None, 0.0).weight(targets) == 10
    assert make(WEIGHTS[1], 0.0).weight(targets) == 4 * 0.5 + 3 * 1.0 + 3 * 4.0


def test_the_loss_of_bf16_scores_is_computed_in_fp32(batch) -> None:
    logits, targets = batch
    rough = logits.detach().bfloat16()
    found = make(None, 0.0).total(rough, targets)
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, make(None, 0.0).total(rough.float(), targets))


def test_gradients_flow_to_the_scores(batch) -> None:
    logits, targets = batch
    make(WEIGHTS[1], 0.1).total(logits, targets).backward()
    assert logits.grad is not None
    assert (logits.grad.abs().sum(dim=1) > 0).all()


def test_metrics_are_those_of_classification(batch) -> None:
    logits, targets = batch
    scores, labels = logits.detach().numpy(), ("a", "b", "c")
    found = TextClassification().metrics(targets.numpy(), scores, labels, "b")
    assert found == classification_metrics(targets.numpy(), scores, labels, "b")


def test_rows_are_read_and_split_with_the_studys_seed(tmp_path: Path) -> None:
    rows = [(f"some text number {i}", "even" if i % 2 == 0 else "odd") for i in range(40)]
    with (tmp_path / "rows.csv").open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([("text", "label"), *rows])
    data = DataConfig(path=str(tmp_path / "rows.csv"), validation=0.25, test=None)

    def train(seed: int) -> tuple[tuple[str, ...], ...]:
        config = StudyConfig(model=ModelConfig(checkpoint="x"), data=data, seed=seed)
        return TextClassification().read(config).train.texts

    assert len(train(0)) == 30
    assert train(0) == train(0) != train(1)


def test_the_class_is_a_task_and_its_loss_a_loss() -> None:
    task: Task = TextClassification()
    loss: Loss = ClassificationLoss(class_weights=None, label_smoothing=0.0)
    assert task.name == "text-classification"
    assert loss.weight(torch.tensor([1])) == np.float64(1)


def test_classes_are_weighed_on_request_only(tmp_path: Path) -> None:
    split = EncodedSplit(
        input_ids=np.zeros(4, np.int32), offsets=np.arange(5), labels=np.array([0, 0, 0, 1]),
        word_ids=np.zeros(4, np.int32), token_type_ids=None, num_truncated=0,
    )  # fmt: skip
    data = DataConfig(path="rows.csv")
    config = StudyConfig(model=ModelConfig(checkpoint="x"), data=data)
    plain = TextClassification().loss(config, split, 2, 0.1)
    assert plain == ClassificationLoss(class_weights=None, label_smoothing=0.1)
    config = dataclasses.replace(config, data=dataclasses.replace(data, class_weights="balanced"))
    weighed = TextClassification().loss(config, split, 2, 0.0)
    assert weighed.weight(torch.tensor([0])) == pytest.approx(4 / (2 * 3))
    assert weighed.weight(torch.tensor([1])) == pytest.approx(4 / (2 * 1))


def test_a_positive_label_that_the_data_lacks_is_refused() -> None:
    config = StudyConfig(
        model=ModelConfig(checkpoint="x"), data=DataConfig(path="rows.csv"), positive_label="yep"
    )
    with pytest.raises(UsageError, match=r"positive_label: `yep` is no label.*accepted: no, yes"):
        TextClassification().check(config, ("no", "yes"))
    TextClassification().check(config, ("no", "yep"))


def test_every_objective_of_the_config_is_one_of_the_tasks() -> None:
    assert TextClassification().objectives == OBJECTIVES
