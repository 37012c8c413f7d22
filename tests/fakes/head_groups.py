"""The same head-only trials trained as one and one by one, to be compared."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest

from automl_ft.specs.hyperparameters import complete
from automl_ft.specs.trial import TrialResult, TrialSpec
from automl_ft.trial.group import run_group
from automl_ft.trial.heads import HeadGroup, HeadTrial, build_heads
from automl_ft.trial.prefix_cache import PrefixCache
from automl_ft.trial.prepare import PreparedStudy
from automl_ft.trial.runner import run_trial
from automl_ft.trial.stacked import train_heads

__all__ = ["GroupBench", "assert_equal", "specs_of", "with_cache"]

TOLERANCE = 1e-5
"""How far losses in nats may lie apart in fp32, in models this small; ten times that elsewhere."""
PLAIN = {"freezing": "head_only", "learning_rate": 3e-3, "batch_size": 8, "epochs": 2}


def with_cache(study: PreparedStudy, folder: Path) -> PreparedStudy:
    """Return the study with room for activations."""
    return dataclasses.replace(study, cache=PrefixCache(folder / "cache", 2**24), assets={})


def specs_of(folder: Path, recipes: Sequence[Mapping[str, Any]]) -> list[TrialSpec]:
    """Return head-only trials, each with a seed and a folder of its own."""
    return [
        TrialSpec(
            number=number,
            hyperparameters=complete({**PLAIN, "dropout": 0.1, **recipe}),
            seed=7 + number,
            folder=str(folder / str(number)),
        )
        for number, recipe in enumerate(recipes)
    ]


class GroupBench:
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

        def emit(result: TrialResult) -> None:
            found[result.number] = result

        assert train_heads(group, self.study, emit) == ()
        return [found[spec.number] for spec in specs]

    def in_trouble(
        self,
        recipes: Sequence[Mapping[str, Any]],
        change: Callable[[HeadTrial], HeadTrial] = lambda trial: trial,
        *,
        reporters: Mapping[int, Any] | None = None,
        is_pausing: Callable[[], bool] = lambda: False,
        heard: Callable[[int], None] = lambda number: None,
    ) -> list[TrialResult]:
        """Run them as a group of which some go on alone; `change` prepares the trouble."""
        found: dict[int, TrialResult] = {}
        scripts = {n: self.script() for n in range(len(recipes))} | dict(reporters or {})

        def build(*args: Any) -> HeadGroup:
            group = build_heads(*args)
            return dataclasses.replace(group, trials=tuple(map(change, group.trials)))

        def emit(result: TrialResult) -> None:
            assert result.number not in found
            heard(result.number)
            found[result.number] = result

        specs = specs_of(self.folder / "together", recipes)
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr("automl_ft.trial.group.build_heads", build)
            run_group(specs, self.study, lambda n: scripts[n], emit, is_pausing=is_pausing)
        return [found[spec.number] for spec in specs]

    def alone(
        self,
        recipes: Sequence[Mapping[str, Any]],
        reporters: Mapping[int, Any] | None = None,
        *,
        place: str = "alone",
    ) -> list[TrialResult]:
        """Run them one by one."""
        specs = specs_of(self.folder / place, recipes)
        scripts = {n: self.script() for n in range(len(recipes))} | dict(reporters or {})
        return [run_trial(spec, self.study, scripts[spec.number]) for spec in specs]

    def resume(self, number: int, recipe: Mapping[str, Any]) -> TrialResult:
        """Go on with a paused trial, alone."""
        recipes = [*[{}] * number, recipe]
        spec = specs_of(self.folder / "together", recipes)[number]
        return run_trial(spec, self.study, self.script())


def assert_equal(one: TrialResult, other: TrialResult, tolerance: float = TOLERANCE) -> None:
    """Compare results of one trial that was run in two ways."""
    assert (one.number, one.outcome, one.failure) == (other.number, other.outcome, other.failure)
    assert (one.value, one.best_step) == (other.value, other.best_step)
    assert one.cost.examples == other.cost.examples
    assert [e.step for e in one.evaluations] == [e.step for e in other.evaluations]
    for here, there in zip(one.evaluations, other.evaluations, strict=True):
        for key in ("train_loss", "validation_loss"):
            assert here.metrics[key] == pytest.approx(there.metrics[key], abs=tolerance), key
