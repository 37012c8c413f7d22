"""An in-process worker without torch: learning curves are a function of the hyperparameters.

It keeps the promises of a real one: it writes `last.pt` before it reports, goes on from it, repeats
the last report after a resume, and waits for a decision after every validation. Everything
happens in the supervisor's own thread, so that tests are quick and repeatable.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Generator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from automl_ft.specs.codec import from_plain, to_plain
from automl_ft.specs.decision import Decision, Evaluation, Progress
from automl_ft.specs.facts import CheckpointFacts, DataFacts, StudyFacts
from automl_ft.specs.failure import FailureKind, TrialFailure
from automl_ft.specs.trial import Outcome, TrialCost, TrialResult, TrialSpec
from automl_ft.workers.base import EventQueue, WorkerDied, WorkerEvent
from automl_ft.workers.protocol import (
    CountWorkers,
    Decide,
    Keep,
    Message,
    Open,
    Pause,
    Prepare,
    Prepared,
    Ready,
    Run,
    TrialEvaluation,
    TrialProgress,
    TrialResulted,
    WorkerError,
    WorkersCounted,
    decode,
    encode,
)

TRAIN = 100
"""Training rows."""
TARGETS = np.array([0, 1] * 20)
"""Classes of the validation rows."""


def make_facts(**changes: Any) -> StudyFacts:
    """Facts of a study of 100 training rows; `labels`, `split_fingerprints`... may be changed."""
    data = {
        "labels": ("bad", "good"),
        "num_examples": {"train": TRAIN, "validation": len(TARGETS), "test": 0},
        "class_counts": {},
        "fingerprint": "f00",
        "split_fingerprints": {"train": "7a1" * 8, "validation": "da7" * 8, "test": "7e5" * 8},
    }
    checkpoint = {
        "checkpoint": "tiny",
        "revision": "",
        "weights_hash": "ab" * 32,
        "architecture": "bert",
        "num_layers": 4,
        "num_parameters": 1000,
        "max_length": 16,
        "num_truncated": 0,
        "num_tokens": 999,
    }
    for known in (data, checkpoint):
        known.update({key: value for key, value in changes.items() if key in known})
    return StudyFacts(
        data=DataFacts(**data),
        checkpoints=(CheckpointFacts(**checkpoint),),
        device="cpu",
        versions={"torch": "0"},
    )


def smooth_curve(hyperparameters: Mapping[str, Any], epoch: float) -> float:
    """A rising curve whose height depends on the learning rate; best at 1e-3."""
    distance = abs(math.log10(float(hyperparameters["learning_rate"])) + 3)
    return (0.9 - 0.1 * distance) * (1 - math.exp(-2 * epoch))


@dataclass(frozen=True)
class Fault:
    """What goes wrong before one validation of a trial; once for each fault."""

    trial: int
    at: int = 0
    """Index of the validation."""
    kind: FailureKind | None = FailureKind.ERROR
    """How the trial fails; None kills the worker, at once and without a word."""
    message: str = "RuntimeError: scripted"
    loses_device: bool = False
    """Whether the worker can run no other trial after it."""


def dies(trial: int, at: int = 0) -> Fault:
    """Kill the worker before a validation."""
    return Fault(trial=trial, at=at, kind=None)


@dataclass
class Script:
    """What the workers of a search do. It is also the `WorkerFactory`."""

    facts: StudyFacts = field(default_factory=make_facts)
    curve: Callable[[Mapping[str, Any], float], float] = smooth_curve
    validations_per_epoch: int = 2
    faults: list[Fault] = field(default_factory=list)
    num_workers: int = 1
    """What `workers: auto` comes to."""
    setup_errors: dict[type, Message | WorkerDied] = field(default_factory=dict)
    """By request what a worker answers instead of `Prepared` or `Ready`."""
    on_setup: Callable[[Message], None] = lambda message: None
    on_validation: Callable[[TrialSpec, int], None] = lambda spec, index: None
    """Called before each validation with its index; may raise, send signals, change the study."""
    is_stacked: bool = True
    """Whether the trials of a group are trained at once rather than in turn."""
    workers: list[ScriptedWorker] = field(default_factory=list)
    """All that were started."""
    specs: list[TrialSpec] = field(default_factory=list)
    """All that were run, in order."""
    requests: list[Message] = field(default_factory=list)
    """All requests, in order."""

    @property
    def groups(self) -> list[list[int]]:
        """The numbers of the trials of each `Run`, in order."""
        runs = (request for request in self.requests if isinstance(request, Run))
        return [[spec.number for spec in run.specs] for run in runs]

    def __call__(self, index: int, events: EventQueue, log: Path | None) -> ScriptedWorker:
        worker = ScriptedWorker(index, events, self, log)
        self.workers.append(worker)
        return worker

    def fault(self, number: int, at: int) -> Fault | None:
        """Take the next fault of a trial."""
        found = next((f for f in self.faults if (f.trial, f.at) == (number, at)), None)
        if found is not None:
            self.faults.remove(found)
        return found


class _DiedError(Exception):
    """The worker is killed here."""


class ScriptedWorker:
    """A `Worker` that follows a script."""

    def __init__(
        self, index: int, events: EventQueue, script: Script, log: Path | None = None
    ) -> None:
        self.index = index
        self.log = log
        self.is_closed = False
        self.is_killed = False
        self.decisions: list[Decision] = []
        self._events = events
        self._script = script
        self._is_open = False
        self._is_pausing = False
        self._lost_by: set[int] = set()
        self._waiting: list[TrialSpec] = []
        self._training: dict[int, Generator[Evaluation, Decision, TrialResult]] = {}

    def send(self, message: Message) -> None:
        if self.is_closed:
            return
        request = decode(encode(message))  # nothing crosses that JSON cannot carry
        self._script.requests.append(request)
        answer = self._script.setup_errors.get(type(request))
        if answer is not None:
            self._put(answer)
        elif isinstance(request, Run):
            self._is_pausing = False
            self._waiting.extend(request.specs)
            for _ in request.specs if self._script.is_stacked else "1":
                self._next()
        elif isinstance(request, Decide):
            self.decisions.append(request.decision)
            self._go_on(request.number, request.decision)
        elif isinstance(request, Pause):
            self._is_pausing = True
        else:
            self._set_up(request)

    def run(self, specs: Sequence[TrialSpec]) -> None:
        self.send(Run(specs=tuple(specs)))

    def decide(self, number: int, decision: Decision) -> None:
        self.send(Decide(number=number, decision=decision))

    def pause(self) -> None:
        self.send(Pause())

    def log_to(self, path: Path) -> None:
        self.log = path

    def close(self, *, at_once: bool = False) -> None:
        self.is_closed, self.is_killed = True, self.is_killed or at_once

    def die(self) -> None:
        """End without a word."""
        self._training, self._waiting = {}, []
        self._put(WorkerDied(exit_code=-9, last_output="last words\n"))
        self.is_closed = True

    def _put(self, message: Message | WorkerDied) -> None:
        if not self.is_closed:
            self._events.put(WorkerEvent(worker=self.index, message=message))

    def _set_up(self, request: Message) -> None:
        self._script.on_setup(request)
        if isinstance(request, Prepare):
            self._put(Prepared(facts=self._script.facts))
            return
        if isinstance(request, CountWorkers):
            self._put(WorkersCounted(num_workers=self._script.num_workers))
            return
        if isinstance(request, Keep):
            place = Path(request.folder) / "data" / "encoded" / "tiny" / "validation"
            place.mkdir(parents=True, exist_ok=True)
            np.save(place / "labels.npy", TARGETS)
        self._is_open = self._is_open or isinstance(request, Open)
        self._put(Ready())

    def _next(self) -> None:
        if not self._waiting:
            return
        if not self._is_open:
            message = "Run came before Prepare or Open."
            self._put(WorkerError(kind="ValueError", message=message, traceback=""))
            self._waiting = []
            return
        spec = self._waiting.pop(0)
        self._script.specs.append(spec)
        self._training[spec.number] = self._train(spec)
        self._go_on(spec.number, None)

    def _go_on(self, number: int, decision: Decision | None) -> None:
        """Train up to the next validation, or to the end."""
        try:
            evaluation = self._training[number].send(decision)  # type: ignore[arg-type]
        except StopIteration as end:
            del self._training[number]
            is_last = number in self._lost_by
            self._put(TrialResulted(result=end.value, is_last=is_last))
            if is_last:
                self._training, self._waiting = {}, []
                self._put(WorkerError(kind="DeviceLostError", message="lost", traceback=""))
                return
            self._end_unbegun()
            self._next()
        except _DiedError:
            self.die()
        else:
            self._put(TrialEvaluation(number=number, evaluation=evaluation))

    def _end_unbegun(self) -> None:
        """Let the trials of a paused group that have not begun wait, without any work."""
        while self._waiting and self._is_pausing:
            spec = self._waiting.pop(0)
            self._put(TrialResulted(result=self._result(spec, [], Outcome.PAUSED)))

    def _train(self, spec: TrialSpec) -> Generator[Evaluation, Decision, TrialResult]:
        folder = Path(spec.folder)
        done = _load(folder)
        total = int(spec.hyperparameters["epochs"]) * self._script.validations_per_epoch
        if done and len(done) < total:
            outcome = self._obey((yield done[-1]))
            if outcome is not None:
                return self._result(spec, done, outcome)
        while len(done) < total:
            self._script.on_validation(spec, len(done))
            fault = self._script.fault(spec.number, len(done))
            if fault is not None and fault.kind is None:
                raise _DiedError
            if fault is not None:
                if fault.loses_device:
                    self._lost_by.add(spec.number)
                failure = TrialFailure(
                    kind=fault.kind, message=fault.message, traceback="Traceback: here"
                )
                return replace(self._result(spec, done, Outcome.FAILED), failure=failure)
            if self._is_pausing:  # what a real worker learns after a step
                save_checkpoint(folder, done)
                return self._result(spec, done, Outcome.PAUSED)
            done.append(self._validate(spec, len(done) + 1))
            save_checkpoint(folder, done)
            decision = yield done[-1]
            if len(done) < total:
                outcome = self._obey(decision)
                if outcome is not None:
                    return self._result(spec, done, outcome)
        return self._result(spec, done, Outcome.COMPLETE)

    def _validate(self, spec: TrialSpec, count: int) -> Evaluation:
        epoch = count / self._script.validations_per_epoch
        value = self._script.curve(spec.hyperparameters, epoch)
        examples = round(epoch * TRAIN)
        progress = Progress(
            examples_seen=examples,
            total_examples=int(spec.hyperparameters["epochs"]) * TRAIN,
            train_loss=1 - value,
            seconds=float(count),
        )
        self._put(TrialProgress(number=spec.number, progress=progress))
        metrics = {"validation_f1_macro": value, "validation_loss": 1 - value, "train_loss": 0.5}
        return Evaluation(step=examples, epoch=epoch, metrics=metrics, seconds=float(count))

    def _obey(self, decision: Decision) -> Outcome | None:
        if decision is Decision.CONTINUE and self._is_pausing:
            decision = Decision.PAUSE
        outcomes = {Decision.PRUNE: Outcome.PRUNED, Decision.PAUSE: Outcome.PAUSED}
        return outcomes.get(decision)

    def _result(self, spec: TrialSpec, done: list[Evaluation], outcome: Outcome) -> TrialResult:
        known = [e for e in done if not math.isnan(e.metrics["validation_f1_macro"])]
        best = max(known, key=lambda e: e.metrics["validation_f1_macro"], default=None)
        return TrialResult(
            number=spec.number,
            outcome=outcome,
            value=None if best is None else best.metrics["validation_f1_macro"],
            best_step=None if best is None else best.step,
            metrics={} if best is None else best.metrics,
            evaluations=tuple(done),
            cost=TrialCost(
                seconds=float(len(done)),
                examples=len(done) * TRAIN // self._script.validations_per_epoch,
                peak_memory_mib=10.0,
            ),
        )


def _load(folder: Path) -> list[Evaluation]:
    path = folder / "last.pt"
    if not path.is_file():
        return []
    return [from_plain(Evaluation, plain) for plain in json.loads(path.read_text())]


def save_checkpoint(folder: Path, done: list[Evaluation]) -> None:
    """Write a checkpoint, and scores that are right for a share of the rows."""
    folder.mkdir(parents=True, exist_ok=True)
    if done:
        best = np.nanmax([0.0, *(e.metrics["validation_f1_macro"] for e in done)])
        predicted = np.where(np.arange(len(TARGETS)) < best * len(TARGETS), TARGETS, 1 - TARGETS)
        np.save(folder / "validation_logits.npy", np.eye(2, dtype=np.float32)[predicted])
        (folder / "best.safetensors").write_text(str(best))
    (folder / "last.pt").write_text(json.dumps(to_plain(done)))
