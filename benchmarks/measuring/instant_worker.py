"""What does a search cost when training costs nothing? A worker that answers at once."""

from __future__ import annotations

import itertools
import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from automl_ft.config.study import BudgetConfig, DataConfig, ModelConfig, StudyConfig
from automl_ft.specs.decision import Decision, Evaluation, Progress
from automl_ft.specs.facts import CheckpointFacts, DataFacts, StudyFacts
from automl_ft.specs.trial import Outcome, ParamValue, TrialCost, TrialResult, TrialSpec
from automl_ft.workers.base import EventQueue, WorkerEvent
from automl_ft.workers.protocol import (
    Decide,
    Keep,
    Message,
    Pause,
    Prepare,
    Prepared,
    Ready,
    Run,
    TrialEvaluation,
    TrialProgress,
    TrialResulted,
    decode,
    encode,
)

__all__ = ["InstantWorker", "InstantWorkers", "search_of"]

_ROWS = 1000
_VALIDATIONS_PER_EPOCH = 2
_SPACE: Mapping[str, Any] = {
    "freezing": "head_only",
    "learning_rate": {"low": 1e-5, "high": 1e-1, "log": True, "default": 1e-3},
    "weight_decay": {"low": 0.0, "high": 0.1, "default": 0.01},
    "dropout": {"low": 0.0, "high": 0.5, "default": 0.1},
    "label_smoothing": {"low": 0.0, "high": 0.2, "default": 0.0},
    "batch_size": {"choices": [8, 16, 32, 64], "default": 16},
    "epochs": {"low": 1, "high": 4, "default": 2},
}


def search_of(folder: Path, sampler: str, pruner: str, *, trials: int) -> StudyConfig:
    """Build a study of head-only trials, which a worker gets in groups.

    Args:
        folder: Where its files and its database lie.
        sampler: One of `config.study.SAMPLERS`.
        pruner: One of `config.study.PRUNERS`.
        trials: The budget.

    Returns:
        The study.
    """
    return StudyConfig(
        name="supervisor",
        model=ModelConfig(checkpoint="tiny"),
        data=DataConfig(path="rows.csv"),
        space=_SPACE,
        sampler=sampler,
        pruner=pruner,
        storage=f"sqlite:///{folder}/studies.db",
        output=str(folder / "files"),
        budget=BudgetConfig(trials=trials),
    )


@dataclass
class InstantWorkers:
    """Starts the workers of a search, and keeps its time without theirs."""

    busy: float = 0.0
    """Seconds that workers took."""
    starts: list[tuple[float, int]] = field(default_factory=list)
    """By group: seconds on the supervisor's clock when it was started, and its trials."""
    waits: list[float] = field(default_factory=list)
    """By group: seconds of the supervisor from the last result before it to its start."""

    def __call__(self, index: int, events: EventQueue, log: Path | None) -> InstantWorker:
        """Start a worker.

        Args:
            index: Its number.
            events: Where its answers go.
            log: Without a meaning here.

        Returns:
            The worker.
        """
        return InstantWorker(index, events, self)

    def clock(self) -> float:
        """Return the supervisor's time.

        Returns:
            Seconds from an arbitrary moment, without what workers took.
        """
        return time.perf_counter() - self.busy

    def milliseconds_at(self, place: int, window: int) -> float:
        """Average the supervisor's cost of a trial, from the start of one group to that of another.

        Args:
            place: Number of trials up to which it looks.
            window: Trials that it looks at, at least; whole groups count.

        Returns:
            Milliseconds a trial.
        """
        trials = list(itertools.accumulate(size for _, size in self.starts))
        last = max(i for i, count in enumerate(trials) if i == 0 or trials[i - 1] <= place)
        first = last - 1
        while first > 0 and sum(size for _, size in self.starts[first:last]) < window:
            first -= 1
        seconds = self.starts[last][0] - self.starts[first][0]
        return seconds / sum(size for _, size in self.starts[first:last]) * 1000


class InstantWorker:
    """A `Worker` whose trials reach a value that their hyperparameters decide."""

    def __init__(self, index: int, events: EventQueue, workers: InstantWorkers) -> None:
        """Store the parts.

        Args:
            index: Its number.
            events: Where its answers go.
            workers: Keeps the time.
        """
        self.index = index
        self._events = events
        self._workers = workers
        self._running: dict[int, tuple[TrialSpec, list[Evaluation]]] = {}
        self._last_result: float | None = None

    def send(self, message: Message) -> None:
        """Answer a request; the time that it takes does not count.

        Args:
            message: The request.
        """
        line = encode(message)  # the supervisor's work, as is reading the answer
        now = self._workers.clock()
        start = time.perf_counter()
        answers = [encode(answer) for answer in self._answers(decode(line), now)]
        self._workers.busy += time.perf_counter() - start
        for answer in answers:
            self._events.put(WorkerEvent(worker=self.index, message=decode(answer)))

    def run(self, specs: Sequence[TrialSpec]) -> None:
        """Run a group of trials.

        Args:
            specs: The group.
        """
        self.send(Run(specs=tuple(specs)))

    def decide(self, number: int, decision: Decision) -> None:
        """Answer a validation.

        Args:
            number: The trial.
            decision: What it does now.
        """
        self.send(Decide(number=number, decision=decision))

    def pause(self) -> None:
        """Do nothing: no trial takes any time."""
        self.send(Pause())

    def log_to(self, path: Path) -> None:
        """Do nothing: there is nothing to log.

        Args:
            path: The log file.
        """

    def close(self, *, at_once: bool = False) -> None:
        """Do nothing: there is no process.

        Args:
            at_once: Without a meaning here.
        """

    def _answers(self, request: Message, now: float) -> list[Message]:
        if isinstance(request, Prepare):
            return [Prepared(facts=_facts())]
        if isinstance(request, Run):
            if self._last_result is not None:
                self._workers.waits.append(now - self._last_result)
            self._workers.starts.append((now, len(request.specs)))
            self._running = {spec.number: (spec, []) for spec in request.specs}
            return [m for spec in request.specs for m in self._go_on(spec.number, now)]
        if isinstance(request, Decide):
            return self._go_on(request.number, now, request.decision)
        if isinstance(request, Keep):
            _write_labels(Path(request.folder))
        return [] if isinstance(request, Pause) else [Ready()]

    def _go_on(
        self, number: int, now: float, decision: Decision = Decision.CONTINUE
    ) -> list[Message]:
        """Train up to the next validation, or end."""
        spec, done = self._running[number]
        epochs = spec.hyperparameters["epochs"]
        assert isinstance(epochs, int)
        outcome = Outcome.PRUNED if decision is Decision.PRUNE else Outcome.COMPLETE
        if outcome is Outcome.PRUNED or len(done) == epochs * _VALIDATIONS_PER_EPOCH:
            del self._running[number]
            self._last_result = None if self._running else now
            return [TrialResulted(result=_result(spec, done, outcome))]
        done.append(_evaluation(spec.hyperparameters, len(done) + 1))
        _write_checkpoint(Path(spec.folder))
        progress = Progress(
            examples_seen=done[-1].step,
            total_examples=epochs * _ROWS,
            train_loss=done[-1].metrics["train_loss"],
            seconds=done[-1].seconds,
        )
        return [
            TrialProgress(number=number, progress=progress),
            TrialEvaluation(number=number, evaluation=done[-1]),
        ]


def _evaluation(hyperparameters: Mapping[str, ParamValue], count: int) -> Evaluation:
    rate = hyperparameters["learning_rate"]
    assert isinstance(rate, float)
    epoch = count / _VALIDATIONS_PER_EPOCH
    value = (0.9 - 0.1 * abs(math.log10(rate) + 3)) * (1 - math.exp(-2 * epoch))
    names = ("accuracy", "f1_macro", "f1_micro", "f1_weighted", "mcc")
    metrics = {f"validation_{name}": value for name in names}
    return Evaluation(
        step=round(epoch * _ROWS),
        epoch=epoch,
        metrics={**metrics, "validation_loss": 1 - value, "train_loss": 1 - value},
        seconds=float(count),
    )


def _result(spec: TrialSpec, done: Sequence[Evaluation], outcome: Outcome) -> TrialResult:
    best = max(done, key=lambda evaluation: evaluation.metrics["validation_f1_macro"])
    return TrialResult(
        number=spec.number,
        outcome=outcome,
        value=best.metrics["validation_f1_macro"],
        best_step=best.step,
        metrics=best.metrics,
        evaluations=tuple(done),
        cost=TrialCost(seconds=float(len(done)), examples=done[-1].step, peak_memory_mib=1.0),
    )


def _write_checkpoint(folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for name in ("best.safetensors", "last.pt"):
        (folder / name).write_bytes(b"weights")


def _write_labels(folder: Path) -> None:
    place = folder / "data" / "encoded" / "tiny" / "validation"
    place.mkdir(parents=True, exist_ok=True)
    np.save(place / "labels.npy", np.arange(20) % 2)


def _facts() -> StudyFacts:
    data = DataFacts(
        labels=("bad", "good"),
        num_examples={"train": _ROWS, "validation": 20, "test": 0},
        class_counts={},
        fingerprint="f" * 64,
        split_fingerprints={name: "f" * 64 for name in ("train", "validation", "test")},
    )
    checkpoint = CheckpointFacts(
        checkpoint="tiny",
        revision="",
        weights_hash="a" * 64,
        architecture="bert",
        num_layers=4,
        num_parameters=1000,
        max_length=16,
        num_truncated=0,
        num_tokens=1000,
    )
    return StudyFacts(data=data, checkpoints=(checkpoint,), device="cpu", versions={})
