"""Our side: worker processes of the engine, given trials as a search gives them.

A session starts fresh processes in a folder of its own, so nothing is cached when it begins.
"""

from __future__ import annotations

import argparse
import gc
import sys
import time
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING

from automl_ft.config.study import DataConfig, ModelConfig, StudyConfig, TrainingConfig
from automl_ft.search.folder import StudyFolder
from automl_ft.search.interrupt import Interrupt
from automl_ft.search.team import Team, death_message, error_of, start_process
from automl_ft.specs.decision import Decision, Evaluation, Progress
from automl_ft.specs.grouping import stack_key
from automl_ft.specs.trial import Outcome, TrialResult, TrialSpec
from automl_ft.workers.base import WorkerDied
from automl_ft.workers.protocol import TrialEvaluation, TrialResulted, WorkerError
from measuring.recipes import Configuration
from measuring.rows import BenchData

if TYPE_CHECKING:
    from automl_ft.trial.prepare import PreparedStudy

__all__ = [
    "Session",
    "Setting",
    "Silent",
    "Timed",
    "final_f1",
    "memory_of",
    "open_here",
    "setting_of",
]


@dataclass(frozen=True, kw_only=True, slots=True)
class Setting:
    """What all trials of a benchmark share."""

    checkpoint: str
    """Bundled name or folder of the model."""
    data: BenchData
    """The rows."""
    device: str
    """A torch device."""
    precision: str
    """`auto`, `fp32` or `bf16`."""
    threads: int
    """CPU threads of all workers together."""
    max_length: int
    """Tokens that rows are cut to."""
    epochs: int
    """Passes over the training rows."""
    batch_size: int = 16
    """Rows that pass through the model at once."""

    def config(self, workers: int = 1) -> StudyConfig:
        """Return it as a study.

        Args:
            workers: Worker processes.

        Returns:
            The study; its rows are split already and it is validated once an epoch.
        """
        return StudyConfig(
            name="benchmark",
            model=ModelConfig(checkpoint=self.checkpoint),
            data=DataConfig(
                train=str(self.data.train),
                validation=str(self.data.validation),
                test=None,
                max_length=self.max_length,
            ),
            device=self.device,
            workers=workers,
            training=TrainingConfig(
                precision=self.precision,
                micro_batch_size=self.batch_size,
                validations_per_epoch=1,
                threads=max(1, self.threads // workers),
            ),
        )


def setting_of(options: argparse.Namespace, checkpoint: str, data: BenchData) -> Setting:
    """Return what the command line says.

    Args:
        options: The settled command line.
        checkpoint: Bundled name or folder of the model.
        data: The rows.

    Returns:
        The setting.
    """
    return Setting(
        checkpoint=checkpoint,
        data=data,
        device=options.device,
        precision=options.precision,
        threads=options.threads,
        max_length=options.max_length,
        epochs=options.epochs,
    )


def open_here(setting: Setting, folder: Path) -> PreparedStudy:
    """Open a study in this process, as a worker does.

    Args:
        setting: What the trials share.
        folder: A folder that does not exist yet.

    Returns:
        The study, its rows mapped from disk.
    """
    from automl_ft.trial.prepare import keep_study, open_study, prepare_study

    prepared = prepare_study(setting.config(), (setting.checkpoint,), None)
    keep_study(prepared, folder)
    study = open_study(prepared.config, prepared.facts, folder, prepared)
    # Each trial ends with a garbage collection, which need not look at all imported libraries.
    gc.collect()
    gc.freeze()
    return study


class Silent:
    """A reporter that lets every trial run its full length."""

    def progress(self, progress: Progress) -> Decision:
        """Go on.

        Args:
            progress: How far the trial is.

        Returns:
            CONTINUE.
        """
        return Decision.CONTINUE

    def report(self, evaluation: Evaluation) -> Decision:
        """Go on.

        Args:
            evaluation: The validation.

        Returns:
            CONTINUE.
        """
        return Decision.CONTINUE


@dataclass(frozen=True, kw_only=True, slots=True)
class Timed:
    """Some trials and how long they took together."""

    seconds: float
    """From the first request to the last result."""
    results: tuple[TrialResult, ...]
    """In the order of their numbers."""


class Session:
    """Worker processes that have opened a study; a context manager."""

    def __init__(self, setting: Setting, folder: Path, workers: int = 1) -> None:
        """Store the parts; nothing starts yet.

        Args:
            setting: What the trials share.
            folder: A folder that does not exist yet.
            workers: Worker processes.
        """
        self.setting = setting
        self.folder = StudyFolder(folder)
        self.setup_seconds = 0.0
        self._workers = workers
        self._team = Team(start_process, Interrupt())
        self._next_number = 0
        self._num_layers = 0

    def __enter__(self) -> Session:
        began = time.perf_counter()
        config = self.setting.config(self._workers)
        try:
            facts = self._team.prepare(config, (self.setting.checkpoint,), None)
            self._team.open(config, facts, self.folder)
        except BaseException:
            self._team.close(at_once=True)
            raise
        self._num_layers = facts.checkpoints[0].num_layers
        self.setup_seconds = time.perf_counter() - began
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._team.close(at_once=error is not None)

    def run_list(self, configurations: Sequence[Configuration], seed: int) -> Timed:
        """Run configurations; those that a search would stack go to a worker as one group.

        With several workers the longest begin first. A search of hundreds of trials keeps its
        workers busy all but to the end; in so short a list the order decides for how long one of
        them has nothing left to do.

        Args:
            configurations: What to run.
            seed: Seed of every trial.

        Returns:
            Results in the order of the configurations.
        """
        groups: dict[object, list[TrialSpec]] = {}
        for configuration in configurations:
            spec = self._spec(configuration, seed)
            key = stack_key(spec.hyperparameters)
            groups.setdefault(spec.number if key is None else key, []).append(spec)
        waiting = list(groups.values())
        if self._workers > 1:
            waiting.sort(key=_frozen_blocks)
        return self._run(waiting)

    def run_one(self, configuration: Configuration, seed: int) -> Timed:
        """Run one configuration.

        Args:
            configuration: What to run.
            seed: Seed of the trial.

        Returns:
            Its result.
        """
        return self._run([[self._spec(configuration, seed)]])

    def _spec(self, configuration: Configuration, seed: int) -> TrialSpec:
        number = self._next_number
        self._next_number += 1
        return configuration.spec(
            number,
            self._num_layers,
            epochs=self.setting.epochs,
            seed=seed,
            folder=self.folder.trial(number),
        )

    def _run(self, groups: Sequence[Sequence[TrialSpec]]) -> Timed:
        """Give each worker a group, and the next one when it is done with it."""
        waiting = deque(groups)
        running: dict[int, int] = {}
        results: dict[int, TrialResult] = {}
        wanted = sum(len(group) for group in groups)
        began = time.perf_counter()
        for index in range(self._workers):
            self._give(index, waiting, running)
        while len(results) < wanted:
            index, result = self._next_result()
            results[result.number] = result
            running[index] -= 1
            if running[index] == 0:
                self._give(index, waiting, running)
        seconds = time.perf_counter() - began
        return Timed(seconds=seconds, results=tuple(results[n] for n in sorted(results)))

    def _give(
        self, index: int, waiting: deque[Sequence[TrialSpec]], running: dict[int, int]
    ) -> None:
        if waiting:
            group = waiting.popleft()
            running[index] = len(group)
            self._team.worker(index).run(group)

    def _next_result(self) -> tuple[int, TrialResult]:
        """Wait for a result, and let every trial go on after its validations."""
        while True:
            event = self._team.next_event()
            message = None if event is None else event.message
            if isinstance(message, WorkerDied):
                raise RuntimeError(death_message(message))
            if isinstance(message, WorkerError):
                raise error_of(message)
            if event is not None and isinstance(message, TrialEvaluation):
                self._team.worker(event.worker).decide(message.number, Decision.CONTINUE)
            if event is not None and isinstance(message, TrialResulted):
                return event.worker, _checked(message.result)


def final_f1(result: TrialResult) -> float:
    """Return the macro F1 of a trial's last validation, as the other side reports it.

    Args:
        result: A complete trial.

    Returns:
        F1 in [0, 1], higher is better.
    """
    return result.evaluations[-1].metrics["validation_f1_macro"]


def memory_of(result: TrialResult) -> dict[str, float]:
    """Return everything that a trial's cost says of memory: its peak, and the forecast of it.

    Args:
        result: A trial.

    Returns:
        MiB by field.
    """
    cost = result.cost
    names = [name for name in type(cost).__dataclass_fields__ if name.endswith("_mib")]
    return {name: getattr(cost, name) for name in names}


def _frozen_blocks(group: Sequence[TrialSpec]) -> int:
    """Return what says how short a group is, as all trials have as many steps."""
    hyperparameters = group[0].hyperparameters
    if hyperparameters["freezing"] == "head_only":
        return sys.maxsize
    return int(hyperparameters["frozen_layers"] or 0)


def _checked(result: TrialResult) -> TrialResult:
    if result.outcome is not Outcome.COMPLETE:
        raise RuntimeError(f"Trial {result.number} ended as {result.outcome}: {result.failure}")
    return result
