"""What the worker process does with its requests; the training is scripted."""

import contextlib
import logging
import os
import subprocess
import sys
import threading

import pytest
import torch

import automl_ft.trial.device
import automl_ft.trial.group
import automl_ft.trial.prepare
import automl_ft.trial.runner
from automl_ft.errors import DataError, SearchFailedError
from automl_ft.specs.decision import Decision, Evaluation, Progress
from automl_ft.specs.trial import Outcome, TrialCost, TrialResult, TrialSpec
from automl_ft.trial import occupancy
from automl_ft.workers import main as worker
from automl_ft.workers.protocol import (
    CountWorkers,
    Decide,
    Keep,
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
    WorkerNote,
    WorkersCounted,
    decode,
    encode,
)
from tests.fakes.scripted_worker import make_facts

SECONDS = 20
SPEC = TrialSpec(number=3, hyperparameters={}, seed=7, folder="/nowhere")
OTHER = TrialSpec(number=4, hyperparameters={}, seed=8, folder="/nowhere")
EVALUATION = Evaluation(step=50, epoch=0.5, metrics={}, seconds=1.0)


class Exits:
    """Remembers instead of leaving the process."""

    def __init__(self):
        self._came = threading.Event()
        self._code = None

    def __call__(self, code):
        self._code = code
        self._came.set()

    def wait(self):
        assert self._came.wait(SECONDS), "the worker did not leave"
        return self._code


class Pipe:
    """The supervisor's end of a channel."""

    def __init__(self):
        to_worker, from_supervisor = os.pipe()
        to_supervisor, from_worker = os.pipe()
        self._target = os.fdopen(from_supervisor, "w", encoding="utf-8")
        self._source = os.fdopen(to_supervisor, encoding="utf-8")
        self._ends = (os.fdopen(to_worker, encoding="utf-8"), os.fdopen(from_worker, "w"))
        self.channel = worker.Channel(*self._ends)

    def send(self, message):
        self.write(encode(message))

    def write(self, text):
        self._target.write(text)
        self._target.flush()

    def read(self):
        return decode(self._source.readline())

    def hang_up(self):
        self._target.close()

    def close(self):
        for stream in (self._target, *self._ends, self._source):
            with contextlib.suppress(OSError):
                stream.close()


@pytest.fixture
def exits(monkeypatch):
    remembered = Exits()
    monkeypatch.setattr(worker.os, "_exit", remembered)
    return remembered


@pytest.fixture
def pipe(exits):
    ends = Pipe()
    yield ends
    ends.hang_up()
    exits.wait()
    ends.close()


def progress(examples=1):
    return Progress(examples_seen=examples, total_examples=9, train_loss=0.5, seconds=0.1)


def wait_until(condition):
    event = threading.Event()
    for _ in range(SECONDS * 100):
        if condition():
            return
        event.wait(0.01)
    raise AssertionError("it never happened")


def test_worker_ends_when_its_supervisor_is_gone(pipe, exits):
    pipe.hang_up()
    assert exits.wait() == 0


def test_worker_ends_when_its_supervisor_was_killed_in_the_middle_of_a_line(pipe, exits, capsys):
    pipe.write(encode(Keep(folder="/x"))[:12])
    pipe.hang_up()
    assert exits.wait() == 1


def test_requests_wait_in_their_order(pipe):
    pipe.send(Keep(folder="/a"))
    pipe.send(Keep(folder="/b"))
    taken = [pipe.channel.requests.get(timeout=SECONDS) for _ in range(2)]
    assert [request.folder for request in taken] == ["/a", "/b"]


def test_pause_is_seen_while_a_trial_runs(pipe):
    reporter = worker.PipeReporter(pipe.channel, 3)
    assert reporter.progress(progress()) is Decision.CONTINUE
    pipe.send(Pause())
    wait_until(pipe.channel.is_paused.is_set)
    assert reporter.progress(progress()) is Decision.PAUSE


def test_next_run_takes_back_an_earlier_pause_but_not_a_later_one(pipe):
    pipe.send(Pause())
    pipe.send(Run(specs=(SPEC,)))
    pipe.channel.requests.get(timeout=SECONDS)
    assert not pipe.channel.is_paused.is_set()
    pipe.send(Pause())
    wait_until(pipe.channel.is_paused.is_set)


def test_progress_is_sent_a_few_times_a_second_at_most(pipe, monkeypatch):
    clock = iter([100.0, 100.1, 100.19, 100.21, 100.3])
    monkeypatch.setattr(worker.time, "monotonic", lambda: next(clock))
    reporter = worker.PipeReporter(pipe.channel, 3)
    for examples in range(5):
        reporter.progress(progress(examples))
    assert [pipe.read().progress.examples_seen for _ in range(2)] == [0, 3]


@pytest.mark.parametrize("decision", list(Decision))
def test_report_waits_for_the_decision(pipe, decision):
    pipe.send(Decide(number=3, decision=decision))
    assert worker.PipeReporter(pipe.channel, 3).report(EVALUATION) is decision
    assert pipe.read() == TrialEvaluation(number=3, evaluation=EVALUATION)


@pytest.mark.parametrize(
    ("decision", "outcome"),
    [(Decision.CONTINUE, Decision.PAUSE), (Decision.PRUNE, Decision.PRUNE)],
)
def test_pause_that_came_with_the_decision_counts_unless_the_trial_is_given_up(
    pipe, decision, outcome
):
    pipe.send(Pause())
    pipe.send(Decide(number=3, decision=decision))
    assert worker.PipeReporter(pipe.channel, 3).report(EVALUATION) is outcome


def test_decision_is_that_on_the_trial_in_question(pipe):
    """Several trials of one worker have asked."""
    pipe.send(Decide(number=4, decision=Decision.CONTINUE))
    pipe.send(Decide(number=3, decision=Decision.PRUNE))
    assert worker.PipeReporter(pipe.channel, 3).report(EVALUATION) is Decision.PRUNE
    assert worker.PipeReporter(pipe.channel, 4).report(EVALUATION) is Decision.CONTINUE


class Study:
    """Stands for a prepared study."""

    facts = make_facts()
    device = torch.device("cpu")


class Calls(list):
    """How the training code was called; `note` scripts what it answers."""


@pytest.fixture
def calls(monkeypatch):
    """Script what the training code does."""
    seen = Calls()

    def note(name, answer):
        def act(*args, **kwargs):
            seen.append((name, args, kwargs))
            if isinstance(answer, Exception):
                raise answer
            return answer(*args) if callable(answer) else answer

        homes = {"run_trial": automl_ft.trial.runner, "run_group": automl_ft.trial.group}
        monkeypatch.setattr(homes.get(name, automl_ft.trial.prepare), name, act)

    seen.note = note
    study = Study()
    note("prepare_study", lambda *args: study)
    note("open_study", lambda *args: study)
    note("keep_study", None)
    note("run_trial", lambda spec, study, reporter: result(spec.number))
    return seen


def result(number):
    return TrialResult(
        number=number,
        outcome=Outcome.COMPLETE,
        value=0.5,
        best_step=1,
        metrics={},
        evaluations=(),
        cost=TrialCost(seconds=1.0, examples=1, peak_memory_mib=1.0),
    )


@pytest.fixture
def serve(pipe, calls):
    """A loop that serves in a thread of its own."""

    class EndError(BaseException):
        """Ends the thread."""

    def run():
        with contextlib.suppress(EndError):
            loop.serve()

    def end():
        raise EndError

    loop = worker.WorkerLoop(pipe.channel)
    real = loop.handle
    loop.handle = lambda request: end() if request is None else real(request)
    thread = threading.Thread(target=run)
    thread.start()
    yield pipe
    pipe.channel.requests.put(None)
    thread.join()


def prepare(config):
    return Prepare(config=config, checkpoints=("tiny",), kept_in="/kept")


def test_prepare_is_answered_with_the_facts(serve, calls, bare_lab):
    serve.send(prepare(bare_lab.config()))
    assert serve.read() == Prepared(facts=Study.facts)
    (name, args, _) = calls[0]
    assert (name, args[1], str(args[2])) == ("prepare_study", ("tiny",), "/kept")


def test_keep_and_open_are_answered_when_done(serve, calls, bare_lab):
    serve.send(prepare(bare_lab.config()))
    serve.read()
    serve.send(Keep(folder="/files"))
    assert serve.read() == Ready()
    threads = torch.get_num_threads()
    opening = Open(
        config=bare_lab.config(), facts=make_facts(), folder="/files", threads=threads, slot=2
    )
    serve.send(opening)
    assert serve.read() == Ready()
    assert [name for name, _, _ in calls] == ["prepare_study", "keep_study", "open_study"]
    assert calls[2][2]["slot"] == 2
    assert calls[2][2]["prepared"] is calls[1][1][0], "what was prepared is not looked at again"


def test_workers_are_counted_with_what_was_prepared(serve, calls, bare_lab, monkeypatch):
    def choose(study, most):
        return most if isinstance(study, Study) else 0

    monkeypatch.setattr(occupancy, "choose_workers", choose)
    serve.send(prepare(bare_lab.config()))
    serve.read()
    serve.send(CountWorkers(most=3))
    assert serve.read() == WorkersCounted(num_workers=3)


def test_what_validation_needs_is_imported_while_there_is_nothing_to_do(
    pipe, calls, bare_lab, monkeypatch
):
    used = []
    monkeypatch.setattr(worker, "_use_idle_time", lambda: used.append(len(calls)))
    loop = worker.WorkerLoop(pipe.channel)
    for _ in range(2):
        pipe.channel.requests.put(prepare(bare_lab.config()))
    real = loop.handle

    def handle(request):
        if request is None:
            raise KeyboardInterrupt
        real(request)
        if len(calls) == 2:  # both have been carried out
            threading.Timer(0.05, pipe.channel.requests.put, [None]).start()

    loop.handle = handle
    with pytest.raises(KeyboardInterrupt):
        loop.serve()
    assert used == [2], "not before requests that wait"


def test_run_answers_with_the_result_of_the_trial(serve, bare_lab):
    serve.send(prepare(bare_lab.config()))
    serve.read()
    serve.send(Run(specs=(SPEC,)))
    assert serve.read() == TrialResulted(result=result(3))


def test_trial_that_lost_the_device_is_told_first_and_is_the_last(serve, bare_lab, monkeypatch):
    monkeypatch.setattr(automl_ft.trial.device, "is_lost", lambda device: device == Study.device)
    serve.send(prepare(bare_lab.config()))
    serve.read()
    serve.send(Run(specs=(SPEC,)))
    assert serve.read() == TrialResulted(result=result(3), is_last=True)
    assert serve.read() == WorkerNote(
        text="Trial 3 left its GPU unusable; a new worker takes over."
    )
    assert serve.read().kind == "DeviceLostError"


def test_group_ends_with_the_trial_that_lost_the_device(serve, calls, bare_lab, monkeypatch):
    def train(specs, study, reporter_for, emit):
        for spec in specs:
            emit(result(spec.number))

    monkeypatch.setattr(automl_ft.trial.device, "is_lost", lambda device: True)
    calls.note("run_group", train)
    serve.send(prepare(bare_lab.config()))
    serve.read()
    serve.send(Run(specs=(SPEC, OTHER)))
    assert [type(serve.read()) for _ in range(3)] == [TrialResulted, WorkerNote, WorkerError]


def test_group_answers_with_a_result_for_each_trial(serve, calls, bare_lab):
    def train(specs, study, reporter_for, emit):
        for spec in specs:
            reporter_for(spec.number).progress(progress())
        for spec in reversed(specs):
            emit(result(spec.number))

    calls.note("run_group", train)
    serve.send(prepare(bare_lab.config()))
    serve.read()
    serve.send(Run(specs=(SPEC, OTHER)))
    assert [serve.read().number for _ in range(2)] == [3, 4]
    assert [serve.read().result.number for _ in range(2)] == [4, 3]


def test_group_learns_of_a_pause(serve, calls, bare_lab):
    def wait(specs, study, reporter_for, emit):
        (_, _, options) = calls[-1]
        wait_until(options["is_pausing"])
        emit(result(specs[0].number))

    calls.note("run_group", wait)
    serve.send(prepare(bare_lab.config()))
    serve.read()
    serve.send(Run(specs=(SPEC, OTHER)))
    serve.send(Pause())
    assert serve.read() == TrialResulted(result=result(3))


@pytest.mark.parametrize("request_", [Keep(folder="/x"), Run(specs=(SPEC,))])
def test_request_before_anything_was_prepared_is_an_error(serve, request_):
    serve.send(request_)
    error = serve.read()
    assert isinstance(error, WorkerError)
    assert error.message == f"{type(request_).__name__} came before Prepare or Open."


def test_request_that_is_none_is_an_error(serve, bare_lab):
    serve.send(prepare(bare_lab.config()))
    serve.read()
    serve.send(Ready())
    assert "cannot carry out Ready" in serve.read().message


@pytest.mark.parametrize(
    ("error", "has_traceback"),
    [
        (DataError("no rows"), False),
        (SearchFailedError("no luck"), True),
        (RuntimeError("boom"), True),
        (KeyError(), True),
    ],
)
def test_error_is_told_with_its_kind_and_the_worker_goes_on(
    serve, calls, bare_lab, error, has_traceback
):
    calls.note("prepare_study", error)
    serve.send(prepare(bare_lab.config()))
    told = serve.read()
    assert (told.kind, told.message) == (type(error).__name__, str(error) or "KeyError")
    assert ("Traceback" in told.traceback) is has_traceback
    calls.note("prepare_study", lambda *args: Study())
    serve.send(prepare(bare_lab.config()))
    assert isinstance(serve.read(), Prepared)


def test_progress_and_reports_of_a_trial_carry_its_number(serve, calls, bare_lab):
    def train(spec, study, reporter):
        reporter.progress(progress())
        assert reporter.report(EVALUATION) is Decision.PRUNE
        return result(spec.number)

    calls.note("run_trial", train)
    serve.send(prepare(bare_lab.config()))
    serve.read()
    serve.send(Run(specs=(SPEC,)))
    serve.send(Decide(number=3, decision=Decision.PRUNE))
    kinds = [serve.read() for _ in range(3)]
    assert [type(kind) for kind in kinds] == [TrialProgress, TrialEvaluation, TrialResulted]
    assert kinds[0].number == kinds[1].number == 3


def test_warnings_of_ours_become_notes(pipe):
    logger = logging.getLogger("automl_ft.trial.somewhere")
    handler = worker.NoteHandler(pipe.channel)
    logger.addHandler(handler)
    try:
        logger.info("of no interest")
        logger.warning("the cache of %d MiB is too small", 8)
    finally:
        logger.removeHandler(handler)
    assert pipe.read() == WorkerNote(text="the cache of 8 MiB is too small")


def test_what_is_printed_does_not_get_between_the_messages(tmp_path):
    """`main` in a process of its own: prints go to standard error."""
    program = (
        "import automl_ft.workers.main as m\n"
        "class Loop:\n"
        "    def __init__(self, channel): self.channel = channel\n"
        "    def serve(self):\n"
        "        print('printed')\n"
        "        import os; os.write(1, b'written\\n')\n"
        "        self.channel.send(m.Ready())\n"
        "        self.channel.requests.get()\n"
        "m.WorkerLoop = Loop\n"
        "m.main()\n"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", program],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    first = process.stdout.readline()
    out, err = process.communicate(timeout=SECONDS)  # ends its input
    assert (decode(first), out, process.returncode) == (Ready(), "", 0)
    assert "printed" in err
    assert "written" in err
