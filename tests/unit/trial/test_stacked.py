"""Heads that are trained in one computation, against the same trials one by one."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Mapping, Sequence
from itertools import zip_longest
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
from automl_ft.specs.hyperparameters import complete
from automl_ft.specs.trial import Outcome, TrialResult, TrialSpec
from automl_ft.trial.checkpoint import BEST, LAST, LOGITS, load_last
from automl_ft.trial.heads import build_heads
from automl_ft.trial.prefix_cache import PrefixCache
from automl_ft.trial.prepare import PreparedStudy, prepare_study
from automl_ft.trial.runner import run_trial
from automl_ft.trial.stacked import UnstackableError, train_heads

TOLERANCE = 1e-5
"""How far losses in nats may lie apart in fp32, in models this small; ten times that elsewhere."""
PLAIN = {"freezing": "head_only", "learning_rate": 3e-3, "batch_size": 8, "epochs": 2}
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


def with_cache(study: PreparedStudy, folder: Path) -> PreparedStudy:
    return dataclasses.replace(study, cache=PrefixCache(folder / "cache", 2**24), assets={})


def specs_of(folder: Path, recipes: Sequence[Mapping[str, Any]]) -> list[TrialSpec]:
    return [
        TrialSpec(
            number=number,
            hyperparameters=complete({**PLAIN, "dropout": 0.1, **recipe}),
            seed=7 + number,
            folder=str(folder / str(number)),
        )
        for number, recipe in enumerate(recipes)
    ]


class Bench:
    """Runs the same trials together and alone."""

    def __init__(self, study: PreparedStudy, folder: Path, script: Any) -> None:
        self.study = study
        self.folder = folder
        self.script = script

    def together(
        self, recipes: Sequence[Mapping[str, Any]], reporters: Mapping[int, Any] | None = None
    ) -> list[TrialResult]:
        """Run them as one, or fail."""
        found: dict[int, TrialResult] = {}
        scripts = {n: self.script() for n in range(len(recipes))} | dict(reporters or {})
        specs = specs_of(self.folder / "together", recipes)
        group = build_heads(specs, self.study, lambda n: scripts[n])
        assert group is not None

        def emit(result: TrialResult) -> None:
            found[result.number] = result

        train_heads(group, self.study, emit)
        return [found[spec.number] for spec in specs]

    def alone(
        self, recipes: Sequence[Mapping[str, Any]], reporters: Mapping[int, Any] | None = None
    ) -> list[TrialResult]:
        """Run them one by one."""
        specs = specs_of(self.folder / "alone", recipes)
        scripts = {n: self.script() for n in range(len(recipes))} | dict(reporters or {})
        return [run_trial(spec, self.study, scripts[spec.number]) for spec in specs]

    def resume(self, number: int, recipe: Mapping[str, Any]) -> TrialResult:
        """Go on with a paused trial, alone."""
        recipes = [*[{}] * number, recipe]
        spec = specs_of(self.folder / "together", recipes)[number]
        return run_trial(spec, self.study, self.script())


@pytest.fixture
def bench(cached: PreparedStudy, tmp_path: Path, script: Any) -> Bench:
    return Bench(cached, tmp_path, script)


def assert_equal(one: TrialResult, other: TrialResult, tolerance: float = TOLERANCE) -> None:
    assert (one.number, one.outcome, one.failure) == (other.number, other.outcome, other.failure)
    assert (one.value, one.best_step) == (other.value, other.best_step)
    assert one.cost.examples == other.cost.examples
    assert [e.step for e in one.evaluations] == [e.step for e in other.evaluations]
    for here, there in zip(one.evaluations, other.evaluations, strict=True):
        for key in ("train_loss", "validation_loss"):
            assert here.metrics[key] == pytest.approx(there.metrics[key], abs=tolerance), key


@pytest.mark.parametrize("recipes", [RECIPES, OTHERS], ids=["eight recipes", "other lengths"])
def test_each_trial_ends_as_it_would_alone(bench: Bench, recipes: Mapping[str, Any]) -> None:
    together = bench.together(list(recipes.values()))
    for one, other in zip(together, bench.alone(list(recipes.values())), strict=True):
        assert one.outcome is Outcome.COMPLETE
        assert_equal(one, other)


def test_what_differs_between_recipes_shows(bench: Bench) -> None:
    results = bench.together(list(RECIPES.values()))
    losses = [result.evaluations[-1].metrics["train_loss"] for result in results]
    assert len({round(loss, 6) for loss in losses}) == len(RECIPES)


@pytest.mark.parametrize("architecture", ["roberta", "xlnet", "gpt2", "modernbert", "distilbert"])
def test_other_heads_are_trained_as_one_too(
    bench: Bench, config: Any, save_checkpoint: Any, tmp_path: Path, architecture: str
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


def test_bf16_agrees_within_its_rounding(bench: Bench, study_with: Any, tmp_path: Path) -> None:
    bench.study = with_cache(study_with(precision="bf16"), tmp_path)
    recipes = list(RECIPES.values())
    for one, other in zip(bench.together(recipes), bench.alone(recipes), strict=True):
        for here, there in zip(one.evaluations, other.evaluations, strict=True):
            wanted = there.metrics["validation_loss"]
            assert here.metrics["validation_loss"] == pytest.approx(wanted, abs=2e-3)


@pytest.mark.parametrize("micro_batch_size", [3, "auto"])
def test_masks_are_those_of_the_micro_batches_that_a_trial_alone_makes(
    bench: Bench, study_with: Any, tmp_path: Path, micro_batch_size: int | str
) -> None:
    bench.study = with_cache(study_with(micro_batch_size=micro_batch_size), tmp_path)
    recipes = [{"dropout": 0.5}, {"dropout": 0.3, "batch_size": 5}]
    for one, other in zip(bench.together(recipes), bench.alone(recipes), strict=True):
        assert_equal(one, other)


def test_class_weights_count(bench: Bench, study_with: Any, tmp_path: Path) -> None:
    study = study_with()
    data = dataclasses.replace(study.config.data, class_weights="balanced")
    bench.study = with_cache(study_with(data=data), tmp_path)
    recipes = [{"label_smoothing": 0.2}, {}]
    for one, other in zip(bench.together(recipes), bench.alone(recipes), strict=True):
        assert_equal(one, other)


def test_the_checkpoints_own_dropout_is_known(bench: Bench) -> None:
    recipes = [{"dropout": 0.3}, {"dropout": None}]
    for one, other in zip(bench.together(recipes), bench.alone(recipes), strict=True):
        assert_equal(one, other)


def test_the_best_model_and_its_scores_are_written(bench: Bench) -> None:
    bench.together([{}, {"learning_rate": 3e-2}])
    bench.alone([{}, {"learning_rate": 3e-2}])
    for number in (0, 1):
        here, there = (bench.folder / side / str(number) for side in ("together", "alone"))
        one, other = load_file(here / BEST), load_file(there / BEST)
        assert one.keys() == other.keys()
        for name, value in one.items():
            torch.testing.assert_close(value, other[name], rtol=1e-4, atol=1e-5)
        np.testing.assert_allclose(np.load(here / LOGITS), np.load(there / LOGITS), atol=1e-4)


def test_a_checkpoint_is_laid_out_as_that_of_a_trial_alone(bench: Bench) -> None:
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
        return {key: shape_of(item) for key, item in value.items() if key != "peak_memory_mib"}
    if isinstance(value, (list, tuple)):
        return [shape_of(item) for item in value]
    return value.shape if isinstance(value, torch.Tensor) else type(value)


@pytest.mark.parametrize(
    "where",
    [{"reports": {2: Decision.PAUSE}}, {"steps": {7: Decision.PAUSE}}],
    ids=["at a validation", "between two"],
)
def test_a_paused_trial_goes_on_alone_as_if_nothing_had_happened(
    bench: Bench, script: Any, where: Mapping[str, Any]
) -> None:
    recipes = [{}, {"dropout": 0.3, "lr_schedule": "cosine", "l1": 0.1}, {"batch_size": 4}]
    results = bench.together(recipes, {1: script(**where)})
    assert [result.outcome for result in results] == [
        Outcome.COMPLETE, Outcome.PAUSED, Outcome.COMPLETE,
    ]  # fmt: skip
    whole = bench.alone(recipes)
    assert_equal(bench.resume(1, recipes[1]), whole[1])
    assert_equal(results[2], whole[2])


def test_a_pruned_trial_leaves_and_the_others_go_on(bench: Bench, script: Any) -> None:
    recipes = [{}, {}, {"learning_rate": 1e-2}]
    prune = {"reports": {1: Decision.PRUNE}}
    together = bench.together(recipes, {0: script(**prune)})
    alone = bench.alone(recipes, {0: script(**prune)})
    assert together[0].outcome is Outcome.PRUNED
    for one, other in zip(together, alone, strict=True):
        assert_equal(one, other)


def test_each_trial_stops_early_by_itself(bench: Bench, study_with: Any, tmp_path: Path) -> None:
    bench.study = with_cache(study_with(early_stopping_patience=1), tmp_path)
    recipes = [{"learning_rate": rate, "epochs": 4} for rate in (1e-9, 1e-3, 1e-2)]
    together, alone = bench.together(recipes), bench.alone(recipes)
    assert together[0].cost.examples < 4 * 41
    for one, other in zip(together, alone, strict=True):
        assert_equal(one, other)


def test_a_trial_that_diverges_fails_alone(bench: Bench) -> None:
    recipes = [{}, {"learning_rate": 1e38}, {"learning_rate": 1e-2}]
    results = bench.together(recipes)
    assert results[1].outcome is Outcome.FAILED
    assert results[1].failure is not None
    assert results[1].failure.kind is FailureKind.DIVERGED
    assert math.isfinite(results[1].cost.seconds)
    alone = bench.alone(recipes)
    assert_equal(results[0], alone[0])
    assert_equal(results[2], alone[2])


def test_an_error_in_one_trials_validation_is_its_own(bench: Bench, script: Any) -> None:
    results = bench.together([{}, {}], {0: script(reports={1: ValueError("no such trial")})})
    assert [result.outcome for result in results] == [Outcome.FAILED, Outcome.COMPLETE]
    assert "no such trial" in results[0].failure.message


def fail_at(step: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Have what trials share run out of memory."""
    calls = iter(range(step))

    def micro_batches(*batches: Any, fillvalue: Any) -> Any:
        if next(calls, None) is None:
            raise RuntimeError("out of memory")
        return zip_longest(*batches, fillvalue=fillvalue)

    monkeypatch.setattr("automl_ft.trial.stacked.zip_longest", micro_batches)


def test_an_error_in_what_they_share_fails_all(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    fail_at(3, monkeypatch)
    results = bench.together([{}, {}])
    assert [result.cost.examples for result in results] == [24, 24]
    failures = [result.failure for result in results]
    assert {failure.kind for failure in failures if failure} == {FailureKind.OUT_OF_MEMORY}


def test_an_error_in_the_first_step_leaves_the_trials_to_themselves(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    fail_at(0, monkeypatch)
    with pytest.raises(UnstackableError, match="out of memory"):
        bench.together([{}, {}])


def test_a_full_disk_ends_the_group(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    def fill(*_: Any) -> None:
        raise DiskError("full")

    monkeypatch.setattr("automl_ft.trial.loop.save_last", fill)
    with pytest.raises(DiskError, match="full"):
        bench.together([{}, {}])


def test_trials_share_the_seconds(bench: Bench) -> None:
    results = bench.together([{}, {}, {}])
    seconds = [result.cost.seconds for result in results]
    assert max(seconds) < 2 * min(seconds)
    assert results[0].cost.peak_memory_mib > 0


@pytest.fixture
def lost(bench: Bench, study: PreparedStudy) -> Callable[..., PreparedStudy]:
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


@pytest.mark.parametrize("what", ["cache", "device", "loss"])
def test_without_what_it_needs_there_is_no_group(
    lost: Callable[..., PreparedStudy], script: Any, tmp_path: Path, what: str
) -> None:
    assert build_heads(specs_of(tmp_path, [{}, {}]), lost(what), lambda _: script()) is None
