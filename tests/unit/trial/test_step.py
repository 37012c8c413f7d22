"""One effective batch gives the same gradients however it is cut into micro-batches."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import pytest
import torch

from automl_ft.tasks.text_classification import ClassificationLoss
from automl_ft.trial.build import build_job
from automl_ft.trial.prepare import PreparedStudy

ROWS = np.arange(13)


@pytest.fixture
def backward(study: PreparedStudy, make_spec: Any):
    """Return a function that runs a batch and returns its loss and gradients."""

    def run(*, step: int = 0, epoch: int = 0, rows: np.ndarray = ROWS, recipe=None, **changes: Any):
        job = build_job(make_spec(**{"dropout": 0.0, **(recipe or {})}), study)
        stepper = dataclasses.replace(job.stepper, **changes)
        job.compute.enter(job.plan, 0)
        loss = stepper.backward(rows, epoch, step).item()
        return loss, {name: p.grad for name, p in job.model.named_parameters()}

    return run


@pytest.mark.parametrize("micro_batch_size", [1, 4, 5, 64])
@pytest.mark.parametrize("weights", [None, [0.5, 2.0, 3.0]])
def test_micro_batches_give_the_gradients_of_the_whole_batch(
    backward: Any, micro_batch_size: int, weights: list[float] | None
) -> None:
    class_weights = None if weights is None else torch.tensor(weights)
    loss = ClassificationLoss(class_weights=class_weights, label_smoothing=0.1)
    whole_loss, whole = backward(micro_batch_size=13, loss=loss)
    found_loss, found = backward(micro_batch_size=micro_batch_size, loss=loss)
    assert found_loss == pytest.approx(whole_loss, abs=1e-6)
    for name, gradient in whole.items():
        torch.testing.assert_close(found[name], gradient, atol=1e-6, rtol=1e-4, msg=name)


def test_the_loss_is_the_mean_cross_entropy(backward: Any, study: PreparedStudy) -> None:
    model = study.load_model(study.checkpoint(None), dropout=0.0, seed=7).model
    split = study.checkpoint(None).splits["train"]
    losses = []
    for row in ROWS:
        ids = torch.as_tensor(split.row(int(row)).input_ids.astype(np.int64))[None]
        logits = model(input_ids=ids).logits
        target = torch.as_tensor(split.labels[[row]])
        losses.append(torch.nn.functional.cross_entropy(logits, target).item())
    loss, _ = backward(micro_batch_size=13)
    assert loss == pytest.approx(np.mean(losses), abs=1e-5)


def test_gradients_accumulate(study: PreparedStudy, make_spec: Any) -> None:
    job = build_job(make_spec(dropout=0.0), study)
    weight = job.model.classifier.weight
    job.stepper.backward(ROWS, 0, 0)
    once = weight.grad.clone()
    job.stepper.backward(ROWS, 0, 0)
    torch.testing.assert_close(weight.grad, 2 * once)


def test_mixup_changes_loss_and_gradients(backward: Any) -> None:
    plain, _ = backward(micro_batch_size=13)
    mixed, _ = backward(micro_batch_size=13, mixup=1.0)
    assert mixed != plain


def test_mixup_is_the_same_for_the_same_step_and_another_for_the_next(backward: Any) -> None:
    first, gradients = backward(mixup=1.0, step=3)
    again, same = backward(mixup=1.0, step=3)
    other, _ = backward(mixup=1.0, step=4)
    assert first == again != other
    assert all(torch.equal(same[name], gradient) for name, gradient in gradients.items())


def test_mixup_with_a_share_of_one_is_the_plain_loss(backward: Any) -> None:
    # Beta(a, a) with a tiny `a` is 0 or 1: the batch as it is, or permuted with its targets.
    plain, _ = backward(micro_batch_size=13)
    mixed, _ = backward(micro_batch_size=13, mixup=1e-9)
    assert mixed == pytest.approx(plain, abs=1e-5)


def test_mixup_mixes_logits_and_losses_by_the_same_share(study: PreparedStudy, make_spec) -> None:
    class Fixed:
        def beta(self, a: float, b: float) -> float:
            return 0.25

        def permutation(self, number: int) -> np.ndarray:
            return np.array([1, 0])

    stepper = dataclasses.replace(build_job(make_spec(), study).stepper, mixup=1.0)
    logits, targets = torch.tensor([[4.0, 0, 0], [0, 0, 8.0]]), torch.tensor([0, 2])
    found = stepper._loss(logits, targets, Fixed())
    mixed = torch.tensor([[1.0, 0, 6.0], [3.0, 0, 2.0]])
    rows = torch.nn.functional.log_softmax(mixed, dim=1)
    expected = -(0.25 * rows[0, 0] + 0.75 * rows[0, 2] + 0.25 * rows[1, 2] + 0.75 * rows[1, 0])
    torch.testing.assert_close(found, expected)


def test_a_single_row_is_not_mixed(backward: Any) -> None:
    rows = np.array([2])
    assert backward(rows=rows, mixup=1.0)[0] == backward(rows=rows)[0]


def test_augmentation_depends_on_the_epoch(backward: Any) -> None:
    recipe = {"word_deletion": 0.5}
    first, again = backward(recipe=recipe, epoch=0)[0], backward(recipe=recipe, epoch=0)[0]
    other, plain = backward(recipe=recipe, epoch=1)[0], backward()[0]
    assert first == again
    assert len({first, other, plain}) == 3


def test_bf16_computes_in_a_copy_and_leaves_fp32_gradients(study_with, make_spec: Any) -> None:
    found = {}
    for precision in ("fp32", "bf16"):
        study = study_with(precision=precision)
        job = build_job(make_spec(dropout=0.0), study)
        job.compute.enter(job.plan, 0)
        loss = job.stepper.backward(ROWS, 0, 0).item()
        found[precision] = loss, {name: p.grad for name, p in job.model.named_parameters()}
    (exact, _), (rough, gradients) = found["fp32"], found["bf16"]
    assert rough != exact
    assert rough == pytest.approx(exact, abs=0.05)
    assert {gradient.dtype for gradient in gradients.values()} == {torch.float32}
