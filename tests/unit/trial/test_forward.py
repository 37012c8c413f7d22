"""Rows become scores at each stage of a freezing plan, from stored activations where they pay."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from automl_ft.data.augmentation import Augmentation
from automl_ft.files import quota
from automl_ft.trial.activations import Activations
from automl_ft.trial.build import build_job
from automl_ft.trial.evaluation import predict_logits
from automl_ft.trial.forward import Forward
from automl_ft.trial.prefix_cache import PrefixCache
from automl_ft.trial.prepare import PreparedStudy

BOTTOM = {"freezing": "bottom_layers", "frozen_layers": 1}
HEAD = {"freezing": "head_only"}
GRADUAL = {"freezing": "gradual_unfreezing", "unfreezing_pace": 1.0}


class Source:
    """Remembers what was asked for; has room for it or not."""

    def __init__(self) -> None:
        self.asked: list[tuple[int, list[int]]] = []
        self.looked_for: list[int] = []

    def open(
        self, view: Any, num_blocks: int, *, later: list[int], may_fill: bool
    ) -> Activations | None:
        if not may_fill:
            self.looked_for.append(num_blocks)
            return None
        self.asked.append((num_blocks, later))
        return Activations(values=None, offsets=None, num_blocks=num_blocks)  # type: ignore[arg-type]


@pytest.fixture
def entered(study: PreparedStudy, make_spec: Any):
    """Enter stages of a plan; return what was asked of the source."""

    def enter(recipe: dict[str, Any], *stages: int, passes: float = 1, **changes: Any):
        job = build_job(make_spec(dropout=0.0, **recipe), study)
        source, own = Source(), job.stepper.forward
        forward = Forward(
            view=own.view,
            maker=own.maker,
            source=source,  # type: ignore[arg-type]
            deepest_prefix=changes.get("deepest", own.deepest_prefix),
        )
        for stage in stages or (0,):
            forward.enter(job.plan, stage, num_passes=passes)
        return source.asked, forward

    return enter


@pytest.mark.parametrize(
    ("recipe", "expected"),
    [
        ({}, []),
        ({"freezing": "embeddings"}, []),
        (BOTTOM, [(1, [])]),
        (HEAD, [(2, [])]),
        ({**HEAD, "reinit_layers": 1}, [(1, [])]),
    ],
)
def test_the_frozen_blocks_are_stood_in_for(entered: Any, recipe: Any, expected: Any) -> None:
    assert entered(recipe)[0] == expected


def test_each_stage_of_unfreezing_asks_for_fewer_blocks(entered: Any) -> None:
    asked, forward = entered(GRADUAL, 0, 1, 2, 3)
    assert asked == [(2, [1]), (1, [])]
    assert forward.activations is None


def test_what_a_later_stage_hardly_reads_is_not_stored_on_the_way(entered: Any) -> None:
    assert entered(GRADUAL, passes=0.09)[0] == [(2, [])]


def test_stages_that_share_a_boundary_pay_for_it_together(entered: Any) -> None:
    for passes, expected in ((0.5, [(1, [])]), (0.4, [])):
        assert entered(GRADUAL, 0, passes=passes, deepest=1)[0] == expected


def test_a_later_stage_fills_only_what_its_own_passes_pay_for(entered: Any) -> None:
    assert entered(GRADUAL, 0, 1, passes=0.9)[0] == [(2, [1])]


def test_a_trial_that_goes_on_fills_what_it_would_have_had(entered: Any) -> None:
    assert entered(GRADUAL, 1, passes=0.9)[0] == [(1, [])]


def test_a_stage_is_entered_once(entered: Any) -> None:
    assert entered(BOTTOM, 0, 0, 0)[0] == [(1, [])]


@pytest.mark.parametrize(("deepest", "expected"), [(1, [(1, [])]), (0, []), (-1, [])])
def test_no_more_is_stored_than_the_model_allows(
    entered: Any, deepest: int, expected: list[tuple[int, list[int]]]
) -> None:
    assert entered(HEAD, deepest=deepest)[0] == expected


def test_what_is_read_less_than_once_is_stored_only_where_it_is_small(entered: Any) -> None:
    assert entered(BOTTOM, passes=0.9)[0] == []
    assert entered(HEAD, passes=0.9)[0] == [(2, [])]
    assert entered(HEAD, passes=0.9, deepest=1)[0] == []


def test_activations_that_cannot_be_read_any_more_are_let_go(
    study: PreparedStudy, make_spec: Any
) -> None:
    forward = build_job(make_spec(), study).validation.exact
    expected = forward.all_scores(4)
    forward.activations = Activations(
        values=None,  # type: ignore[arg-type]
        offsets=None,
        num_blocks=1,
        is_whole=lambda: False,
    )
    np.testing.assert_array_equal(forward.all_scores(4), expected)
    assert forward.activations is None


def test_all_scores_are_those_of_padded_batches_in_the_order_of_the_rows(
    study: PreparedStudy, make_spec: Any
) -> None:
    job = build_job(make_spec(dropout=0.3), study)
    opened = study.checkpoint(None)
    found = {size: job.validation.exact.all_scores(size) for size in (1, 5, 64)}
    expected = predict_logits(
        study.load_model(opened, dropout=0.3, seed=7).model,
        opened.splits["validation"], opened.padding, 8, study.device,
    )  # fmt: skip
    for scores in found.values():
        np.testing.assert_allclose(scores, expected, atol=1e-5, rtol=1e-5)
        assert scores.dtype == np.float32


def test_an_empty_split_has_no_scores(study: PreparedStudy, make_spec: Any, monkeypatch) -> None:
    forward = build_job(make_spec(), study).validation.exact
    monkeypatch.setattr("automl_ft.trial.forward.eval_batches", lambda lengths, size: iter(()))
    with pytest.raises(ValueError, match="at least one row"):
        forward.all_scores(4)


def test_augmentation_is_that_of_seed_and_epoch(study: PreparedStudy, make_spec: Any) -> None:
    forward = build_job(make_spec(dropout=0.0), study).stepper.forward
    augmentation = Augmentation(
        token_dropout=0.5, word_swap=0.0, word_deletion=0.0, replacement_token_id=4
    )

    def scores(seed: int, epoch: int) -> np.ndarray:
        inputs = forward.model_inputs(np.arange(6), augmentation, (seed, epoch))
        with forward.scores(inputs) as found:
            return found.detach().numpy()

    first = scores(1, 0)
    np.testing.assert_array_equal(scores(1, 0), first)
    assert not np.allclose(scores(1, 1), first)
    assert not np.allclose(scores(2, 0), first)


@pytest.mark.parametrize("recipe", [{}, BOTTOM, HEAD], ids=["none", "bottom_layers", "head_only"])
def test_pairs_are_told_apart_by_their_types(
    recipe: dict[str, Any], study: PreparedStudy, make_spec: Any, monkeypatch: Any, tmp_path: Path
) -> None:
    monkeypatch.setattr(quota, "_SPARE_BYTES", 0)
    (name,) = study.checkpoints
    opened = study.checkpoint(None)
    own = opened.splits["train"]
    places = np.arange(own.num_tokens) - np.repeat(own.offsets[:-1], own.lengths)
    types = (places >= np.repeat(own.lengths // 2, own.lengths)).astype(np.int8)
    pairs = dataclasses.replace(own, token_type_ids=types)
    changed = dataclasses.replace(opened, splits={**opened.splits, "train": pairs})
    cache = PrefixCache(tmp_path / "activations", 10**8)
    job = build_job(
        make_spec(dropout=0.0, **recipe),
        dataclasses.replace(study, checkpoints={name: changed}, cache=cache),
    )
    job.compute.enter(job.plan, 0)
    job.stepper.forward.enter(job.plan, 0, num_passes=1)
    rows = np.arange(11)
    loss = job.stepper.backward(rows, 0, 0)

    model = study.load_model(opened, dropout=0.0, seed=7).model.train()
    found = {"input_ids": torch.zeros(11, int(own.lengths[rows].max()), dtype=torch.int64)}
    found["attention_mask"], found["token_type_ids"] = (
        torch.zeros_like(found["input_ids"]) for _ in range(2)
    )
    for row in rows:
        part = slice(int(own.offsets[row]), int(own.offsets[row + 1]))
        length = part.stop - part.start
        found["input_ids"][row, :length] = torch.from_numpy(own.input_ids[part].copy())
        found["token_type_ids"][row, :length] = torch.from_numpy(types[part].copy())
        found["attention_mask"][row, :length] = 1
    labels = torch.from_numpy(np.array(own.labels[rows]))
    expected = torch.nn.functional.cross_entropy(model(**found).logits, labels)
    expected.backward()
    assert loss.item() == pytest.approx(expected.item(), abs=1e-6)
    del found["token_type_ids"]
    untyped = torch.nn.functional.cross_entropy(model(**found).logits, labels)
    assert loss.item() != pytest.approx(untyped.item(), abs=1e-4)
    for parameter, value in model.named_parameters():
        ours = job.model.get_parameter(parameter).grad
        if parameter in job.plan.trainable(0):
            assert ours is not None
            torch.testing.assert_close(ours, value.grad, atol=1e-6, rtol=1e-4, msg=parameter)
        else:
            assert ours is None
