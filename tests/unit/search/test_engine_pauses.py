"""How a search is stopped and goes on: Ctrl-C, deadlines, kills."""

import os
import signal

import pytest
from optuna.trial import TrialState

from automl_ft.search import run
from automl_ft.search.checkpoints import Shelf
from automl_ft.search.enqueue import enqueue
from automl_ft.search.events import StopReason
from automl_ft.search.stopping import ActiveClock
from automl_ft.specs.trial import Outcome
from automl_ft.workers.protocol import Keep, Open, Prepare
from tests.fakes.lab import Lab


class Stop(BaseException):
    """Stands for kill -9: nothing of the engine catches it."""


def interrupt(number=signal.SIGINT):
    os.kill(os.getpid(), number)


@pytest.fixture
def at(lab):
    """Do something before a validation of a trial, once."""

    def plan(number, index, action):
        def act(spec, count):
            if (spec.number, count) == (number, index):
                lab.script.on_validation = lambda spec, count: None
                action()

        lab.script.on_validation = act

    return plan


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_one_signal_pauses_the_running_trial(lab, at, number):
    at(1, 2, lambda: interrupt(number))
    outcome = lab.search(trials=3, pruner="none")
    assert outcome.stop_reason is StopReason.INTERRUPTED
    assert lab.states() == ["COMPLETE", "WAITING"]
    paused = lab.trials()[1]
    assert paused.is_paused
    assert len(paused.intermediate_values) in (2, 3)
    assert paused.seconds == len(paused.intermediate_values)
    assert lab.listener.results[-1].outcome is Outcome.PAUSED
    assert (lab.files.trial(1) / "last.pt").is_file()
    assert lab.store().runs()[-1].ended_reason == "interrupted"


def test_paused_trial_goes_on_first_and_ends_as_if_nothing_had_happened(lab, at, tmp_path):
    at(1, 2, interrupt)
    lab.search(trials=3, pruner="none")
    enqueue(lab.store(), {"dropout": 0.4})
    lab.search(trials=4, pruner="none")
    assert [spec.number for spec in lab.script.specs] == [0, 1, 1, 2, 3]
    assert (1, True) in lab.listener.started
    trial = lab.trials()[1]
    curve = [lab.script.curve(trial.hyperparameters, epoch) for epoch in (0.5, 1.0, 1.5, 2.0)]
    assert list(trial.intermediate_values.values()) == curve
    assert (trial.value, trial.seconds) == (curve[-1], 4.0)


def test_checkpoint_of_a_paused_trial_is_on_the_ledger_until_it_ends(lab, at):
    at(0, 2, interrupt)
    lab.search(trials=1)
    assert [(c.trial_number, c.kind) for c in lab.store().checkpoints.all()] == [(0, "last")]
    lab.search(trials=1)
    assert [(c.trial_number, c.kind) for c in lab.store().checkpoints.all()] == [(0, "best")]
    assert not (lab.files.trial(0) / "last.pt").exists()


def test_all_running_trials_are_paused(lab, at):
    at(1, 2, interrupt)
    lab.search(trials=9, workers=3, pruner="none")
    assert lab.states() == ["WAITING"] * 3
    lab.search(trials=4, workers=3, pruner="none")
    assert lab.states() == ["COMPLETE"] * 4


def test_interrupt_before_the_first_validation_loses_no_trial(lab, at):
    at(0, 0, interrupt)
    lab.search(trials=2, pruner="none")
    lab.search(trials=2, pruner="none")
    assert lab.states() == ["COMPLETE"] * 2
    assert lab.trials()[0].origin == "default"


def test_interrupt_at_the_last_validation_completes_the_trial(lab):
    real = lab.script.curve

    def curve(hyperparameters, epoch):
        if epoch == 2.0:
            interrupt()
        return real(hyperparameters, epoch)

    lab.script.curve = curve
    outcome = lab.search(trials=2)
    assert outcome.stop_reason is StopReason.INTERRUPTED
    assert lab.states() == ["COMPLETE"]


def test_interrupt_while_a_new_study_is_prepared_creates_nothing(bare_lab, tmp_path):
    bare_lab.script.on_setup = lambda message: interrupt()
    outcome = bare_lab.search()
    assert outcome.stop_reason is StopReason.INTERRUPTED
    assert (outcome.folder, outcome.storage) == (None, None)
    assert list(tmp_path.iterdir()) == []
    assert all(worker.is_killed for worker in bare_lab.script.workers)


@pytest.mark.parametrize("request_kind", [Keep, Open])
def test_interrupt_while_workers_open_leaves_a_study_that_goes_on(lab, request_kind):
    def once(message):
        if isinstance(message, request_kind):
            lab.script.on_setup = lambda message: None
            interrupt()

    lab.script.on_setup = once
    outcome = lab.search(trials=1)
    assert outcome.stop_reason is StopReason.INTERRUPTED
    assert outcome.folder == lab.files.path
    assert lab.script.specs == []
    assert lab.store().runs()[0].ended_reason == "interrupted"
    lab.search(trials=1)
    assert lab.states() == ["COMPLETE"]


def test_two_signals_leave_at_once_and_the_next_run_recovers(lab, at):
    def twice():
        interrupt()
        interrupt()

    at(1, 2, twice)
    with pytest.raises(KeyboardInterrupt):
        lab.search(trials=2, pruner="none")
    assert lab.states() == ["COMPLETE", "RUNNING"]
    assert lab.store().runs()[0].ended_reason == "left at once"
    assert all(worker.is_killed for worker in lab.script.workers)
    lab.search(trials=2, pruner="none")
    assert lab.states() == ["COMPLETE", "COMPLETE"]
    assert lab.trials()[1].seconds == 4.0
    assert [spec.number for spec in lab.script.specs] == [0, 1, 1]


def test_signals_are_given_back_after_leaving_at_once(lab, at):
    before = signal.getsignal(signal.SIGINT)
    at(0, 0, lambda: [interrupt(), interrupt()])
    with pytest.raises(KeyboardInterrupt):
        lab.search(trials=1)
    assert signal.getsignal(signal.SIGINT) is before


@pytest.fixture
def clock(monkeypatch):
    """A clock that stands still until it is set."""

    class Clock:
        seconds = 0.0

    def make(*, earlier_seconds, started):
        return ActiveClock(earlier_seconds=earlier_seconds, started=0.0, now=lambda: Clock.seconds)

    monkeypatch.setattr(run, "ActiveClock", make)
    return Clock


def test_deadline_pauses_the_running_trial(lab, at, clock):
    at(1, 2, lambda: setattr(clock, "seconds", 60.0))
    outcome = lab.search(trials=3, timeout_seconds=60.0, pruner="none")
    assert outcome.stop_reason is StopReason.TIMEOUT
    assert lab.states() == ["COMPLETE", "WAITING"]
    assert 2 <= len(lab.trials()[1].intermediate_values) <= 3
    assert lab.store().active_seconds() == 60.0


def test_study_that_used_its_time_does_nothing_until_it_gets_more(lab, at, clock):
    at(0, 2, lambda: setattr(clock, "seconds", 60.0))
    lab.search(trials=2, timeout_seconds=60.0)
    lab.script.specs.clear()
    clock.seconds = 0.0
    outcome = lab.search(trials=2, timeout_seconds=60.0)
    assert outcome.stop_reason is StopReason.TIMEOUT
    assert lab.script.specs == []
    lab.search(trials=2, timeout_seconds=61.0, pruner="none")
    assert [spec.number for spec in lab.script.specs] == [0, 1]
    assert lab.states() == ["COMPLETE", "COMPLETE"]


def test_kill_loses_nothing(lab, at):
    def die():
        raise Stop

    at(1, 3, die)
    with pytest.raises(Stop):
        lab.search(trials=2, pruner="none")
    lab.search(trials=2, pruner="none")
    assert lab.states() == ["COMPLETE", "COMPLETE"]
    assert lab.trials()[1].seconds == 4.0


def test_trial_that_is_ended_while_nothing_runs_loses_its_files(lab, at):
    """The user ends a paused trial in the dashboard between two runs."""
    at(1, 2, interrupt)
    lab.search(trials=2, pruner="none")
    study = lab.optuna()
    trial_id = study.trials[1]._trial_id
    study._storage.set_trial_state_values(trial_id, TrialState.FAIL)
    lab.search(trials=2, pruner="none")
    assert lab.states() == ["COMPLETE", "FAIL"]
    assert not lab.files.trial(1).exists()
    assert {c.trial_number for c in lab.store().checkpoints.all()} == {0}


def test_kill_between_a_result_and_tidying_up_is_mended_by_the_next_run(lab, monkeypatch):
    def stop(shelf, result):
        raise Stop

    with monkeypatch.context() as patch:
        patch.setattr(Shelf, "tidy", stop)
        with pytest.raises(Stop):
            lab.search(trials=1)
    assert lab.states() == ["COMPLETE"]
    assert (lab.files.trial(0) / "last.pt").exists()
    lab.search(trials=1)
    assert not (lab.files.trial(0) / "last.pt").exists()
    assert [(c.trial_number, c.kind) for c in lab.store().checkpoints.all()] == [(0, "best")]


@pytest.mark.parametrize("where", [(0, 2), (1, 0), (3, 0), (5, 0)])
def test_interrupted_search_proposes_what_an_uninterrupted_one_does(lab, at, tmp_path, where):
    whole = Lab(tmp_path / "whole")
    whole.search(trials=6)
    at(*where, interrupt)
    outcome = lab.search(trials=6)
    assert outcome.stop_reason is StopReason.INTERRUPTED
    lab.search(trials=6)
    for expected, trial in zip(whole.trials(), lab.trials(), strict=True):
        assert trial.params == expected.params
        assert trial.seed == expected.seed
        assert (trial.state, trial.value) == (expected.state, expected.value)
        assert trial.intermediate_values == expected.intermediate_values
    whole.close()


def test_where_it_was_killed_makes_no_difference_either(lab, at, tmp_path):
    whole = Lab(tmp_path / "whole")
    whole.search(trials=7)

    def die():
        raise Stop

    for place in ((0, 1), (3, 0), (5, 0)):
        at(*place, die)
        with pytest.raises(Stop):
            lab.search(trials=7)
    lab.search(trials=7)
    assert [t.params for t in lab.trials()] == [t.params for t in whole.trials()]
    assert [t.state for t in lab.trials()] == [t.state for t in whole.trials()]
    whole.close()


def test_prepare_of_an_old_study_reads_its_own_copy(lab):
    lab.search(trials=1)
    lab.search(trials=1)
    kept = [r.kept_in for r in lab.script.requests if isinstance(r, Prepare)]
    assert kept == [None, str(lab.files.path)]
