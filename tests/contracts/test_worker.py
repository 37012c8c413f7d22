"""What every worker must do, whatever it runs in: a process that trains, or a scripted one.

One worker serves the module: starting a process and importing torch takes seconds.
"""

from __future__ import annotations

import dataclasses
import os
import queue
import signal
import time
from pathlib import Path

import pytest

from automl_ft.specs.decision import Decision
from automl_ft.specs.failure import FailureKind
from automl_ft.specs.hyperparameters import complete
from automl_ft.specs.trial import Outcome, TrialSpec
from automl_ft.workers.base import WorkerDied
from automl_ft.workers.processes import ProcessWorker
from automl_ft.workers.protocol import (
    Keep,
    Open,
    Prepare,
    Prepared,
    Ready,
    TrialEvaluation,
    TrialProgress,
    TrialResulted,
    WorkerError,
    WorkerNote,
)
from tests.fakes.scripted_worker import Script, ScriptedWorker
from tests.fakes.tiny_study import read_study, write_model, write_rows, write_study

SECONDS = 60
LENGTH = 8
"""Validations of one trial."""


class Bench:
    """One worker of one kind, ready to run trials of a tiny study."""

    def __init__(self, kind, folder):
        self.kind = kind
        self.folder = folder
        self.events = queue.Queue()
        if kind == "process":
            write_model(folder / "model")
            write_rows(folder / "rows.csv", count=60)
        changes = {"space": {"epochs": 2}, "name": "bench"}
        self.config = read_study(write_study(folder, **changes))
        self.files = folder / "files"
        self.facts = None
        self.worker = self.start(0)
        self.prepare()

    def start(self, index, events=None):
        events = self.events if events is None else events
        if self.kind == "scripted":
            script = Script(validations_per_epoch=4, is_stacked=False)
            return ScriptedWorker(index, events, script)
        return ProcessWorker(index, events)

    def prepare(self):
        checkpoint = self.config.model.checkpoint
        self.worker.send(Prepare(config=self.config, checkpoints=(checkpoint,), kept_in=None))
        self.facts = self.next(Prepared).facts
        assert not self.files.exists(), "preparing writes nothing"
        self.worker.send(Keep(folder=str(self.files)))
        self.next(Ready)
        self.worker.send(self.opening())
        self.next(Ready)

    def opening(self):
        return Open(config=self.config, facts=self.facts, folder=str(self.files), threads=1)

    def spec(self, number, **hyperparameters):
        values = {"learning_rate": 1e-2, "epochs": 2, "batch_size": 4, **hyperparameters}
        return TrialSpec(
            number=number,
            hyperparameters=complete(values),
            seed=7,
            folder=str(self.files / "trials" / str(number)),
        )

    def next(self, *kinds):
        """Return the next message that is no progress and no note."""
        deadline = time.monotonic() + SECONDS
        while time.monotonic() < deadline:
            event = self.events.get(timeout=SECONDS)
            if not isinstance(event.message, (TrialProgress, WorkerNote)):
                assert isinstance(event.message, kinds), event.message
                return event.message
        raise AssertionError("no message came")

    def finish(self, number, decide=lambda index: Decision.CONTINUE):
        """Answer validations until the result comes; return both."""
        seen = []
        while True:
            message = self.next(TrialEvaluation, TrialResulted)
            if isinstance(message, TrialResulted):
                assert message.result.number == number
                return seen, message.result
            assert message.number == number
            seen.append(message.evaluation)
            self.worker.decide(number, decide(len(seen) - 1))

    def run(self, spec, decide=lambda index: Decision.CONTINUE):
        self.worker.run([spec])
        return self.finish(spec.number, decide)


@pytest.fixture(scope="module", params=["scripted", "process"])
def bench(request, tmp_path_factory):
    place = Bench(request.param, tmp_path_factory.mktemp(request.param))
    yield place
    place.worker.close()


def points(evaluations):
    return [(evaluation.step, dict(evaluation.metrics)) for evaluation in evaluations]


def values(evaluations):
    return [evaluation.metrics["validation_f1_macro"] for evaluation in evaluations]


@pytest.fixture(scope="module")
def whole(bench):
    """A trial that nothing interrupted."""
    return bench.run(bench.spec(100))


def test_prepared_facts_name_data_and_checkpoint(bench):
    assert bench.facts.data.labels == ("bad", "good")
    assert len(bench.facts.checkpoints) == 1


def test_complete_trial_has_a_report_for_each_validation(bench, whole):
    seen, result = whole
    assert result.outcome is Outcome.COMPLETE
    assert len(seen) == LENGTH
    assert points(result.evaluations) == points(seen)
    assert [e.step for e in seen] == sorted({e.step for e in seen})
    assert (result.value, result.failure) == (max(values(seen)), None)
    assert result.best_step == seen[values(seen).index(result.value)].step
    assert result.cost.examples == 2 * bench.facts.data.num_examples["train"]


def test_pruned_trial_ends_at_once(bench):
    seen, result = bench.run(
        bench.spec(1), lambda index: Decision.PRUNE if index == 2 else Decision.CONTINUE
    )
    assert (result.outcome, len(seen)) == (Outcome.PRUNED, 3)


def test_trial_that_is_paused_by_decision_goes_on_as_if_nothing_had_happened(bench, whole):
    spec = bench.spec(2)
    first, paused = bench.run(
        spec, lambda index: Decision.PAUSE if index == 2 else Decision.CONTINUE
    )
    assert (paused.outcome, len(first)) == (Outcome.PAUSED, 3)
    second, result = bench.run(spec)
    assert result.outcome is Outcome.COMPLETE
    assert points(second[:1]) == points(first[-1:]), "the last report is repeated, in case"
    assert points(result.evaluations) == points(whole[1].evaluations)
    assert result.cost.examples == whole[1].cost.examples


def test_trial_that_is_paused_from_outside_goes_on_as_if_nothing_had_happened(bench, whole):
    spec = bench.spec(3)

    def pause(index):
        if index == 1:
            bench.worker.pause()
        return Decision.CONTINUE

    first, paused = bench.run(spec, pause)
    assert paused.outcome is Outcome.PAUSED
    assert 2 <= len(first) < LENGTH
    _, result = bench.run(spec)
    assert points(result.evaluations) == points(whole[1].evaluations)


def test_pause_before_the_first_validation_keeps_the_trial(bench, whole):
    spec = bench.spec(4)
    bench.worker.run([spec])
    bench.worker.pause()
    _, paused = bench.finish(4)
    assert paused.outcome is Outcome.PAUSED
    _, result = bench.run(spec)
    assert points(result.evaluations) == points(whole[1].evaluations)


def test_pause_of_an_idle_worker_does_not_pause_its_next_trial(bench):
    bench.worker.pause()
    assert bench.run(bench.spec(5))[1].outcome is Outcome.COMPLETE


def test_pruning_at_the_last_validation_still_completes(bench):
    def prune_last(index):
        return Decision.PRUNE if index == LENGTH - 1 else Decision.CONTINUE

    assert bench.run(bench.spec(6), prune_last)[1].outcome is Outcome.COMPLETE


def test_trials_of_a_group_all_end(bench):
    specs = [bench.spec(7), bench.spec(8, learning_rate=1e-3)]
    bench.worker.run(specs)
    assert [bench.finish(n)[1].outcome for n in (7, 8)] == [Outcome.COMPLETE] * 2


def test_whole_trial_that_is_run_again_has_nothing_to_report(bench, whole):
    """A kill between the last checkpoint and its report."""
    seen, result = bench.run(bench.spec(100))
    assert seen == []
    assert result.outcome is Outcome.COMPLETE
    assert points(result.evaluations) == points(whole[1].evaluations)


def test_failure_is_a_result_and_the_worker_goes_on(bench, whole):
    if bench.kind == "scripted":
        from tests.fakes.scripted_worker import Fault

        bench.worker._script.faults.append(
            Fault(trial=9, kind=FailureKind.DIVERGED, message="training loss nan")
        )
    # Rates above 1 are refused by search spaces, not by workers.
    seen, result = bench.run(bench.spec(9, learning_rate=1e30, max_grad_norm=1e30))
    assert result.outcome is Outcome.FAILED
    assert result.failure.kind is FailureKind.DIVERGED
    assert result.value is None or seen
    assert bench.run(bench.spec(10))[1].outcome is Outcome.COMPLETE


def test_run_before_open_is_an_error_and_close_is_quiet(bench):
    events = queue.Queue()
    # Nor does a file of the user's that is named like a package get in its way.
    Path("torch.py").write_text("raise ImportError('not this one')\n")
    worker = bench.start(1, events)
    worker.run([bench.spec(11)])
    event = events.get(timeout=SECONDS)
    assert (event.worker, type(event.message)) == (1, WorkerError)
    assert "came before Prepare or Open" in event.message.message
    worker.close()
    worker.close(at_once=True)
    worker.pause()
    assert events.empty(), "a worker that is closed says nothing of its death"


def test_second_worker_opens_what_the_first_kept(bench, whole):
    events = queue.Queue()
    worker = bench.start(2, events)
    worker.send(bench.opening())
    assert isinstance(events.get(timeout=SECONDS).message, Ready)
    spec = bench.spec(12)
    worker.run([spec])
    message = events.get(timeout=SECONDS).message
    while isinstance(message, TrialProgress):
        message = events.get(timeout=SECONDS).message
    assert points([message.evaluation]) == points(whole[0][:1])
    kill(worker)
    message = events.get(timeout=SECONDS)
    assert (message.worker, type(message.message)) == (2, WorkerDied)
    assert message.message.exit_code == -signal.SIGKILL
    worker.decide(12, Decision.CONTINUE)
    worker.close()
    if bench.kind == "process":
        seen, result = bench.run(dataclasses.replace(spec))
        assert points(result.evaluations) == points(whole[1].evaluations)
        assert points(seen[:1]) == points(whole[0][:1])


def kill(worker):
    """Kill a worker as the kernel does when memory runs out."""
    if isinstance(worker, ScriptedWorker):
        worker.die()
    else:
        os.kill(worker._process.pid, signal.SIGKILL)
