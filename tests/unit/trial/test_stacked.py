"""Heads that are trained in one computation, against the same trials one by one."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from automl_ft.config.study import ModelConfig
from automl_ft.errors import DiskError
from automl_ft.specs.decision import Decision
from automl_ft.specs.failure import FailureKind
from automl_ft.specs.trial import Outcome
from automl_ft.trial.checkpoint import BEST, LAST, LOGITS, load_last
from automl_ft.trial.heads import UnstackableError, build_heads
from automl_ft.trial.prepare import PreparedStudy, prepare_study
from tests.fakes.head_groups import GroupBench, assert_equal, specs_of, with_cache

RECIPES: dict[str, dict[str, Any]] = {
    "plain": {},
    "rate": {"learning_rate": 3e-2},
    "weight decay": {"weight_decay": 0.3, "learning_rate": 3e-2},
    "dropout": {"dropout": 0.4},
    "no dropout": {"dropout": 0.0},
    "label smoothing": {"label_smoothing": 0.2},
    "schedule": {"lr_schedule": "cosine", "warmup_ratio": 0.3},
    "clipping": {"max_grad_norm": 0.01},
}
OTHERS: dict[str, dict[str, Any]] = {
    "small batches": {"batch_size": 4},
    "large batches": {"batch_size": 32, "dropout": 0.3},
    "one epoch": {"epochs": 1},
    "three epochs": {"epochs": 3, "lr_schedule": "constant"},
    "l1": {"l1": 0.3, "learning_rate": 3e-2},
    "layer-wise rates": {"layerwise_lr_decay": 0.5},
}


@pytest.fixture
def cached(study: PreparedStudy, tmp_path: Path) -> PreparedStudy:
    """The study with room for activations."""
    return with_cache(study, tmp_path)


@pytest.fixture
def bench(cached: PreparedStudy, tmp_path: Path, script: Any) -> GroupBench:
    return GroupBench(cached, tmp_path, script)


@pytest.mark.parametrize("recipes", [RECIPES, OTHERS], ids=["eight recipes", "other lengths"])
def test_each_trial_ends_as_it_would_alone(bench: GroupBench, recipes: Mapping[str, Any]) -> None:
    together = bench.together(list(recipes.values()))
    for one, other in zip(together, bench.alone(list(recipes.values())), strict=True):
        assert one.outcome is Outcome.COMPLETE
        assert_equal(one, other)


def test_what_differs_between_recipes_shows(bench: GroupBench) -> None:
    results = bench.together(list(RECIPES.values()))
    losses = [result.evaluations[-1].metrics["train_loss"] for result in results]
    assert len({round(loss, 6) for loss in losses}) == len(RECIPES)


@pytest.mark.parametrize("architecture", ["roberta", "xlnet", "gpt2", "modernbert", "distilbert"])
def test_other_heads_are_trained_as_one_too(
    bench: GroupBench, config: Any, save_checkpoint: Any, tmp_path: Path, architecture: str
) -> None:
    names = {
        "xlnet": {
            "d_model": 32, "n_layer": 2, "n_head": 2, "d_inner": 48, "hidden_size": None,
            "num_attention_heads": None, "num_hidden_layers": None, "intermediate_size": None,
            "max_position_embeddings": None,
        },
        "gpt2": {
            "n_embd": 32, "n_layer": 2, "n_head": 2, "n_positions": 32, "hidden_size": None,
            "num_attention_heads": None, "num_hidden_layers": None, "pad_token_id": None,
        },
        "modernbert": {"global_attn_every_n_layers": 2, "local_attention": 4},
        "distilbert": {
            "dim": 32, "n_layers": 2, "n_heads": 2, "hidden_dim": 48, "hidden_size": None,
            "num_attention_heads": None, "num_hidden_layers": None,
        },
    }  # fmt: skip
    checkpoint = str(save_checkpoint(architecture, **names.get(architecture, {})))
    config = dataclasses.replace(config, model=ModelConfig(checkpoint=checkpoint))
    bench.study = with_cache(prepare_study(config, (checkpoint,), None), tmp_path)
    recipes = [{"dropout": 0.2}, {"dropout": 0.0, "learning_rate": 1e-2}, {"batch_size": 16}]
    for one, other in zip(bench.together(recipes), bench.alone(recipes), strict=True):
        assert_equal(one, other)


def test_bf16_agrees_within_its_rounding(
    bench: GroupBench, study_with: Any, tmp_path: Path
) -> None:
    bench.study = with_cache(study_with(precision="bf16"), tmp_path)
    recipes = list(RECIPES.values())
    for one, other in zip(bench.together(recipes), bench.alone(recipes), strict=True):
        for here, there in zip(one.evaluations, other.evaluations, strict=True):
            wanted = there.metrics["validation_loss"]
            assert here.metrics["validation_loss"] == pytest.approx(wanted, abs=2e-3)


@pytest.mark.parametrize("micro_batch_size", [3, "auto"])
def test_masks_are_those_of_the_micro_batches_that_a_trial_alone_makes(
    bench: GroupBench, study_with: Any, tmp_path: Path, micro_batch_size: int | str
) -> None:
    bench.study = with_cache(study_with(micro_batch_size=micro_batch_size), tmp_path)
    recipes = [{"dropout": 0.5}, {"dropout": 0.3, "batch_size": 5}]
    for one, other in zip(bench.together(recipes), bench.alone(recipes), strict=True):
        assert_equal(one, other)


def test_class_weights_count(bench: GroupBench, study_with: Any, tmp_path: Path) -> None:
    study = study_with()
    data = dataclasses.replace(study.config.data, class_weights="balanced")
    bench.study = with_cache(study_with(data=data), tmp_path)
    recipes = [{"label_smoothing": 0.2}, {}]
    for one, other in zip(bench.together(recipes), bench.alone(recipes), strict=True):
        assert_equal(one, other)


def test_everything_at_once_counts_for_each_trial(
    bench: GroupBench, study_with: Any, tmp_path: Path
) -> None:
    study = study_with()
    data = dataclasses.replace(study.config.data, class_weights="balanced")
    settings = {"micro_batch_size": 3, "validations_per_epoch": 3, "early_stopping_patience": 2}
    bench.study = with_cache(study_with(data=data, **settings), tmp_path)
    recipes: list[dict[str, Any]] = [
        {"label_smoothing": 0.3, "dropout": 0.0, "batch_size": 4, "epochs": 3},
        {"label_smoothing": 0.1, "dropout": 0.5, "batch_size": 16, "l1": 0.2},
        {"dropout": 0.2, "batch_size": 32, "epochs": 4, "max_grad_norm": 0.1},
        {"dropout": None, "learning_rate": 1e-9, "epochs": 4, "weight_decay": 0.2},
        {"label_smoothing": 0.2, "dropout": 0.0, "batch_size": 41, "epochs": 1},
    ]
    for one, other in zip(bench.together(recipes), bench.alone(recipes), strict=True):
        assert_equal(one, other)


def test_heads_without_any_dropout_agree(bench: GroupBench) -> None:
    recipes = [{"dropout": 0.0}, {"dropout": 0.0, "learning_rate": 1e-2, "batch_size": 5}]
    for one, other in zip(bench.together(recipes), bench.alone(recipes), strict=True):
        assert_equal(one, other)


@pytest.mark.parametrize("validations_per_epoch", [0.5, 1, 4])
def test_validations_come_as_often_as_for_a_trial_alone(
    bench: GroupBench, study_with: Any, tmp_path: Path, validations_per_epoch: float
) -> None:
    study = study_with(validations_per_epoch="auto")
    facts = dataclasses.replace(study.facts, validations_per_epoch=validations_per_epoch)
    bench.study = with_cache(dataclasses.replace(study, facts=facts), tmp_path)
    recipes = [{"epochs": 1}, {"epochs": 3}, {"epochs": 2, "batch_size": 32}]
    for one, other in zip(bench.together(recipes), bench.alone(recipes), strict=True):
        assert_equal(one, other)


def test_the_checkpoints_own_dropout_is_known(bench: GroupBench) -> None:
    recipes = [{"dropout": 0.3}, {"dropout": None}]
    for one, other in zip(bench.together(recipes), bench.alone(recipes), strict=True):
        assert_equal(one, other)


def test_the_best_model_and_its_scores_are_written(bench: GroupBench) -> None:
    bench.together([{}, {"learning_rate": 3e-2}])
    bench.alone([{}, {"learning_rate": 3e-2}])
    for number in (0, 1):
        here, there = (bench.folder / side / str(number) for side in ("together", "alone"))
        one, other = load_file(here / BEST), load_file(there / BEST)
        assert one.keys() == other.keys()
        for name, value in one.items():
            torch.testing.assert_close(value, other[name], rtol=1e-4, atol=1e-5)
        np.testing.assert_allclose(np.load(here / LOGITS), np.load(there / LOGITS), atol=1e-4)


def test_a_checkpoint_is_laid_out_as_that_of_a_trial_alone(bench: GroupBench) -> None:
    recipes = [{}, {"weight_decay": 0.1}]
    bench.together(recipes)
    bench.alone(recipes)
    here, there = (bench.folder / side / "1" for side in ("together", "alone"))
    one, other = load_last(here, torch.device("cpu")), load_last(there, torch.device("cpu"))
    assert shape_of(one) == shape_of(other)
    assert (here / LAST).stat().st_size == pytest.approx((there / LAST).stat().st_size, rel=0.1)


def shape_of(value: Any) -> Any:
    """Return a checkpoint's structure."""
    if isinstance(value, dict):
        measured = ("peak_memory_mib", "forecast_mib")
        return {key: shape_of(item) for key, item in value.items() if key not in measured}
    if isinstance(value, (list, tuple)):
        return [shape_of(item) for item in value]
    return value.shape if isinstance(value, torch.Tensor) else type(value)


@pytest.mark.parametrize(
    "where",
    [{"reports": {2: Decision.PAUSE}}, {"steps": {7: Decision.PAUSE}}],
    ids=["at a validation", "between two"],
)
def test_a_paused_trial_goes_on_alone_as_if_nothing_had_happened(
    bench: GroupBench, script: Any, where: Mapping[str, Any]
) -> None:
    recipes = [{}, {"dropout": 0.3, "lr_schedule": "cosine", "l1": 0.1}, {"batch_size": 4}]
    results = bench.together(recipes, {1: script(**where)})
    assert [result.outcome for result in results] == [
        Outcome.COMPLETE, Outcome.PAUSED, Outcome.COMPLETE,
    ]  # fmt: skip
    whole = bench.alone(recipes)
    assert_equal(bench.resume(1, recipes[1]), whole[1])
    assert_equal(results[2], whole[2])


def test_a_pruned_trial_leaves_and_the_others_go_on(bench: GroupBench, script: Any) -> None:
    recipes = [{}, {}, {"learning_rate": 1e-2}]
    prune = {"reports": {1: Decision.PRUNE}}
    together = bench.together(recipes, {0: script(**prune)})
    alone = bench.alone(recipes, {0: script(**prune)})
    assert together[0].outcome is Outcome.PRUNED
    for one, other in zip(together, alone, strict=True):
        assert_equal(one, other)


def test_trials_of_other_lengths_may_leave_at_any_step(bench: GroupBench, script: Any) -> None:
    recipes = [
        {"batch_size": 16}, {"epochs": 3}, {"batch_size": 4}, {"epochs": 1},
        {"batch_size": 32, "epochs": 3},
    ]  # fmt: skip
    leaving = {
        0: {"steps": {1: Decision.PRUNE}},
        1: {"reports": {3: Decision.PAUSE}},
        2: {"steps": {9: Decision.PAUSE}},
        4: {"reports": {2: Decision.PRUNE}},
    }
    sides = [
        run(recipes, {number: script(**where) for number, where in leaving.items()})
        for run in (bench.together, bench.alone)
    ]
    for one, other in zip(*sides, strict=True):
        assert_equal(one, other)
    whole = bench.alone(recipes, place="whole")
    for number in (1, 2):
        assert sides[0][number].outcome is Outcome.PAUSED
        assert_equal(bench.resume(number, recipes[number]), whole[number])


def test_each_trial_stops_early_by_itself(
    bench: GroupBench, study_with: Any, tmp_path: Path
) -> None:
    bench.study = with_cache(study_with(early_stopping_patience=1), tmp_path)
    recipes = [{"learning_rate": rate, "epochs": 4} for rate in (1e-9, 1e-3, 1e-2)]
    together, alone = bench.together(recipes), bench.alone(recipes)
    assert together[0].cost.examples < 4 * 41
    for one, other in zip(together, alone, strict=True):
        assert_equal(one, other)


def test_a_trial_that_diverges_fails_alone(bench: GroupBench) -> None:
    recipes = [{}, {"learning_rate": 1e38}, {"learning_rate": 1e-2}]
    results = bench.together(recipes)
    assert results[1].outcome is Outcome.FAILED
    assert results[1].failure is not None
    assert results[1].failure.kind is FailureKind.DIVERGED
    assert math.isfinite(results[1].cost.seconds)
    alone = bench.alone(recipes)
    assert_equal(results[0], alone[0])
    assert_equal(results[2], alone[2])


def test_an_error_in_one_trials_validation_is_its_own(bench: GroupBench, script: Any) -> None:
    results = bench.together([{}, {}], {0: script(reports={1: ValueError("no such trial")})})
    assert [result.outcome for result in results] == [Outcome.FAILED, Outcome.COMPLETE]
    assert "no such trial" in results[0].failure.message


def test_a_full_disk_ends_the_group(bench: GroupBench, monkeypatch: pytest.MonkeyPatch) -> None:
    def fill(*_: Any) -> None:
        raise DiskError("full")

    monkeypatch.setattr("automl_ft.trial.loop.save_last", fill)
    with pytest.raises(DiskError, match="full"):
        bench.together([{}, {}])


def test_trials_share_the_seconds(bench: GroupBench) -> None:
    results = bench.together([{}, {}, {}])
    seconds = [result.cost.seconds for result in results]
    assert max(seconds) < 2 * min(seconds)
    assert results[0].cost.peak_memory_mib > 0


@pytest.fixture
def lost(bench: GroupBench, study: PreparedStudy) -> Callable[..., PreparedStudy]:
    """Return the study without what stacking needs."""

    def lose(what: str) -> PreparedStudy:
        if what == "cache":
            return dataclasses.replace(study, cache=None)
        if what == "device":
            return dataclasses.replace(bench.study, device=torch.device("mps"))
        return dataclasses.replace(bench.study, task=Plain(study.task))

    return lose


class Plain:
    """A task whose loss can only be computed as a whole."""

    def __init__(self, task: Any) -> None:
        self._task = task

    def loss(self, *_: Any, **__: Any) -> object:
        return object()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._task, name)


@pytest.mark.parametrize(
    ("what", "why"),
    [("cache", "no kept activations"), ("device", "`mps`"), ("loss", "loss of trial 0")],
)
def test_without_what_it_needs_there_is_no_group(
    lost: Callable[..., PreparedStudy], script: Any, tmp_path: Path, what: str, why: str
) -> None:
    with pytest.raises(UnstackableError, match=why):
        build_heads(specs_of(tmp_path, [{}, {}]), lost(what), lambda _: script())
