"""An interrupted trial goes on as if nothing had happened: same losses and weights, bit by bit."""

from __future__ import annotations

import contextlib
import dataclasses
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import sklearn.metrics  # noqa: F401 - its first import draws from the global generator
import torch
from safetensors.torch import load_file

from automl_ft.config.study import ModelConfig
from automl_ft.files import quota
from automl_ft.specs.decision import Decision, Evaluation, Progress
from automl_ft.specs.trial import Outcome, TrialResult
from automl_ft.trial.checkpoint import BEST, LOGITS, load_last
from automl_ft.trial.prefix_cache import PrefixCache
from automl_ft.trial.prepare import PreparedStudy, prepare_study

RECIPES: dict[str, dict[str, Any]] = {
    "none": {"freezing": "none", "weight_decay": 0.1, "layerwise_lr_decay": 0.8},
    "bottom_layers": {"freezing": "bottom_layers", "frozen_layers": 1, "l1": 1e-3},
    "head_only": {"freezing": "head_only", "lr_schedule": "constant_with_warmup"},
    "gradual_unfreezing": {
        "freezing": "gradual_unfreezing", "unfreezing_pace": 0.8, "lr_schedule": "cosine",
    },
    "augmented": {
        "token_dropout": 0.2, "word_swap": 0.3, "word_deletion": 0.2, "mixup": 0.4,
        "label_smoothing": 0.1, "warmup_ratio": 0.3, "reinit_layers": 1,
    },
}  # fmt: skip
NUM_STEPS, NUM_VALIDATIONS = 12, 4


@dataclasses.dataclass(frozen=True)
class Trace:
    """What a trial did, over all its runs."""

    losses: dict[int, float]
    evaluations: list[Evaluation]
    last: dict[str, Any]
    best: dict[str, torch.Tensor]
    logits: np.ndarray


def untimed(evaluations: Any) -> list[Evaluation]:
    return [dataclasses.replace(evaluation, seconds=0.0) for evaluation in evaluations]


def trace(progresses: list[Progress], result: TrialResult, folder: Path) -> Trace:
    losses: dict[int, float] = {}
    for progress in progresses:  # what is repeated after a kill must repeat exactly
        again = losses.setdefault(progress.examples_seen, progress.train_loss)
        assert again == progress.train_loss
    last = load_last(folder, torch.device("cpu"))
    assert last is not None
    return Trace(
        losses=losses,
        evaluations=untimed(result.evaluations),
        last=last,
        best=load_file(folder / BEST),
        logits=np.load(folder / LOGITS),
    )


def disturb() -> None:
    """Leave every generator as another trial in the same process would."""
    random.seed(99)
    np.random.seed(99)
    torch.manual_seed(99)


@pytest.fixture(scope="module")
def references() -> dict[str, Trace]:
    """Uninterrupted runs, one per recipe."""
    return {}


@pytest.fixture(params=RECIPES)
def recipe(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture
def reference(
    recipe: str, references: dict[str, Trace], run: Any, script: Any, tmp_path: Path
) -> Trace:
    if recipe not in references:
        reporter = script()
        result = run(reporter, folder=tmp_path / "whole", **RECIPES[recipe])
        assert result.outcome is Outcome.COMPLETE
        references[recipe] = trace(reporter.progresses, result, tmp_path / "whole")
        assert len(references[recipe].losses) == NUM_STEPS
        assert len(result.evaluations) == NUM_VALIDATIONS
    return references[recipe]


@pytest.fixture
def interrupted(
    recipe: str, run: Any, script: Any, killed: type[BaseException], tmp_path: Path
) -> Callable[..., Trace]:
    """Run a recipe in several runs, each told how it is interrupted, and one to the end."""

    def run_interrupted(*interruptions: dict[str, Any]) -> Trace:
        progresses: list[Progress] = []
        folder = tmp_path / "interrupted"
        for interruption in interruptions:
            disturb()
            reporter = script(**interruption)
            try:
                result = run(reporter, folder=folder, **RECIPES[recipe])
                assert result.outcome is Outcome.PAUSED
            except killed:
                pass
            progresses += reporter.progresses
        disturb()
        reporter = script()
        result = run(reporter, folder=folder, **RECIPES[recipe])
        assert result.outcome is Outcome.COMPLETE
        return trace(progresses + reporter.progresses, result, folder)

    return run_interrupted


def assert_same(found: Trace, expected: Trace) -> None:
    assert found.losses == expected.losses
    assert found.evaluations == expected.evaluations
    assert_equal_values(found.best, expected.best)
    np.testing.assert_array_equal(found.logits, expected.logits)
    assert found.last["state"].keys() == expected.last["state"].keys()


def assert_equal_values(found: Any, expected: Any) -> None:
    assert type(found) is type(expected)
    if isinstance(expected, torch.Tensor):
        assert torch.equal(found, expected)
    elif isinstance(expected, dict):
        assert found.keys() == expected.keys()
        for key, value in expected.items():
            assert_equal_values(found[key], value)
    elif isinstance(expected, (list, tuple)):
        assert len(found) == len(expected)
        for ours, theirs in zip(found, expected, strict=True):
            assert_equal_values(ours, theirs)
    else:
        assert found == expected


@pytest.mark.parametrize("validation", range(1, NUM_VALIDATIONS + 1))
def test_a_trial_killed_after_any_checkpoint_goes_on_bit_by_bit(
    validation: int, reference: Trace, interrupted: Callable[..., Trace], killed: Any
) -> None:
    assert_same(interrupted({"reports": {validation: killed()}}), reference)


def test_a_trial_paused_between_validations_goes_on_bit_by_bit(
    reference: Trace, interrupted: Callable[..., Trace]
) -> None:
    pauses = [{"steps": {number: Decision.PAUSE}} for number in (1, 4, 3)]
    assert_same(interrupted(*pauses), reference)


def test_a_trial_paused_at_a_validation_goes_on_bit_by_bit(
    reference: Trace, interrupted: Callable[..., Trace]
) -> None:
    # Each later run reports its last validation once more before it trains.
    pauses = [{"reports": {1: Decision.PAUSE}}, {"reports": {2: Decision.PAUSE}}]
    assert_same(interrupted(*pauses), reference)


def test_a_trial_killed_between_checkpoints_repeats_the_same_steps(
    reference: Trace, interrupted: Callable[..., Trace], killed: Any
) -> None:
    kills = [{"steps": {number: killed()}} for number in (2, 5, 4)]
    assert_same(interrupted(*kills), reference)


def test_a_trial_whose_checkpoint_is_torn_starts_again(
    run: Any, script: Any, tmp_path: Path
) -> None:
    folder = tmp_path / "torn"
    run(script(reports={2: Decision.PAUSE}), folder=folder)
    (folder / "last.pt").write_bytes((folder / "last.pt").read_bytes()[:1000])
    reporter = script()
    result = run(reporter, folder=folder)
    assert (result.outcome, len(reporter.progresses)) == (Outcome.COMPLETE, NUM_STEPS)
    whole = run(folder=tmp_path / "whole")
    assert untimed(result.evaluations) == untimed(whole.evaluations)


def test_a_resumed_trial_reports_its_last_validation_once_more(
    run: Any, script: Any, killed: Any
) -> None:
    with pytest.raises(killed):
        run(script(reports={2: killed()}))
    reporter = script()
    result = run(reporter)
    steps = [evaluation.step for evaluation in reporter.evaluations]
    assert steps == [evaluation.step for evaluation in result.evaluations][1:]


def test_a_resumed_trial_may_be_pruned_before_it_trains(run: Any, script: Any, killed: Any) -> None:
    with pytest.raises(killed):
        run(script(reports={1: killed()}))
    reporter = script(reports={1: Decision.PRUNE})
    assert run(reporter).outcome is Outcome.PRUNED
    assert not reporter.progresses


def test_a_trial_killed_after_its_last_checkpoint_is_complete_at_once(
    run: Any, script: Any, killed: Any
) -> None:
    with pytest.raises(killed):
        run(script(reports={NUM_VALIDATIONS: killed()}))
    reporter = script(reports={1: Decision.PRUNE})
    result = run(reporter)
    assert (result.outcome, len(result.evaluations)) == (Outcome.COMPLETE, NUM_VALIDATIONS)
    assert not reporter.progresses
    assert result.value is not None


def test_costs_are_those_of_all_runs(run: Any, script: Any) -> None:
    paused = run(script(steps={5: Decision.PAUSE}))
    result = run(script())
    assert result.cost.examples == 82
    assert result.cost.seconds > paused.cost.seconds > 0
    assert result.cost.peak_memory_mib > 0


DEBERTA = {
    "relative_attention": True, "position_buckets": 8, "norm_rel_ebd": "layer_norm",
    "pos_att_type": "p2c|c2p", "position_biased_input": False,
}  # fmt: skip
BOTTOM = {"freezing": "bottom_layers", "frozen_layers": 1}
GRADUAL = RECIPES["gradual_unfreezing"]
FAST: dict[str, tuple[str, dict[str, Any]]] = {
    "bf16": ("bf16", {"weight_decay": 0.5, "l1": 1e-2}),
    "bf16_cached": ("bf16 cache", BOTTOM),
    "cut_vocabulary": ("cut", {"weight_decay": 0.5, "l1": 1e-2}),
    "cut_vocabulary_unfreezing": ("cut cache", {"weight_decay": 0.5, **GRADUAL}),
    "cached": ("cache", BOTTOM),
    "cached_head": ("cache", {"freezing": "head_only"}),
    "cached_unfreezing": ("cache", GRADUAL),
    "bucketed": ("deberta", {"weight_decay": 0.5}),
    "bucketed_cached": ("deberta cache", BOTTOM),
}


@pytest.fixture
def fast_study(
    study: PreparedStudy,
    study_with: Any,
    save_checkpoint: Any,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> Callable[..., PreparedStudy]:
    """Return a function that opens a study as another process does."""
    monkeypatch.setattr(quota, "_SPARE_BYTES", 0)
    prepared: dict[str, PreparedStudy] = {}

    def prepare(kinds: list[str]) -> PreparedStudy:
        if "deberta" in kinds:
            checkpoint = str(save_checkpoint("deberta-v2", **DEBERTA))
            config = dataclasses.replace(study.config, model=ModelConfig(checkpoint=checkpoint))
            return prepare_study(config, (checkpoint,), None)
        found = study_with(precision="bf16") if "bf16" in kinds else study
        (name,) = found.checkpoints
        opened = found.checkpoint(None)
        if "cut" in kinds:
            splits = {
                key: dataclasses.replace(split, input_ids=np.asarray(split.input_ids) % 30)
                for key, split in opened.splits.items()
            }
            opened = dataclasses.replace(opened, splits=splits)
        return dataclasses.replace(found, checkpoints={name: opened})

    def open_study(kind: str, cache: str) -> PreparedStudy:
        kinds = kind.split()
        if kind not in prepared:
            prepared[kind] = prepare(kinds)
        place = PrefixCache(tmp_path / cache, 10**8) if "cache" in kinds else None
        return dataclasses.replace(prepared[kind], cache=place, assets={})

    return open_study


@pytest.mark.parametrize(
    ("name", "is_warm"),
    [(name, False) for name in FAST] + [(name, True) for name in FAST if "cache" in FAST[name][0]],
)
def test_a_fast_trial_goes_on_bit_by_bit(
    name: str,
    is_warm: bool,
    run: Any,
    script: Any,
    killed: Any,
    fast_study: Callable[..., PreparedStudy],
    tmp_path: Path,
) -> None:
    kind, recipe = FAST[name]
    reporter = script()
    result = run(reporter, study=fast_study(kind, "first"), folder=tmp_path / "whole", **recipe)
    assert result.failure is None
    expected = trace(reporter.progresses, result, tmp_path / "whole")

    progresses: list[Progress] = []
    folder = tmp_path / "interrupted"
    num_misses = 0
    for number, kill in enumerate(({"steps": {5: killed()}}, {"reports": {2: killed()}}, {})):
        disturb()
        reporter = script(**kill)
        # With a cold cache each run computes its activations anew, as if they had been evicted.
        study = fast_study(kind, "first" if is_warm else f"cold{number}")
        with contextlib.suppress(killed):
            result = run(reporter, study=study, folder=folder, **recipe)
        progresses += reporter.progresses
        num_misses += 0 if study.cache is None else study.cache.counts.num_misses
    assert (num_misses > 0) == ("cache" in kind and not is_warm)
    assert result.outcome is Outcome.COMPLETE
    assert_same(trace(progresses, result, folder), expected)
