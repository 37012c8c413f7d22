"""Trials that train the head only share a worker: which ones, and how they pause, die and go on."""

import contextlib
import os
import signal

import pytest
from optuna.trial import TrialState

from automl_ft.errors import SearchFailedError
from automl_ft.search import engine
from automl_ft.search.enqueue import enqueue
from automl_ft.search.events import StopReason
from automl_ft.search.line import Line
from automl_ft.specs.failure import FailureKind
from automl_ft.specs.trial import Outcome
from automl_ft.storage.store import StudyStore
from automl_ft.workers.protocol import WorkerError
from tests.fakes.lab import HEAD_ONLY_SPACE, Lab
from tests.fakes.scripted_worker import Fault, dies

MIXED_SPACE = {
    **HEAD_ONLY_SPACE,
    "freezing": {"choices": ["none", "head_only"], "default": "none"},
}


class KilledError(BaseException):
    """Stands for kill -9: nothing of the engine catches it."""


@pytest.fixture
def search(lab):
    """A search of head-only trials."""

    def run(trials=12, **changes):
        options = {"sampler": "random", "pruner": "none", "space": HEAD_ONLY_SPACE}
        return lab.search(trials=trials, **{**options, **changes})

    return run


@pytest.fixture(params=[True, False], ids=["stacked", "in turn"])
def groups(lab, search, request):
    """A search of head-only trials, whatever the worker makes of a group."""
    lab.script.is_stacked = request.param
    return search


def interrupt():
    os.kill(os.getpid(), signal.SIGINT)


def at(lab, number, index, action):
    """Do something before a validation of a trial, once."""

    def act(spec, count):
        if (spec.number, count) == (number, index):
            lab.script.on_validation = lambda spec, count: None
            action()

    lab.script.on_validation = act


def kill():
    raise KilledError


def test_head_only_trials_run_together_and_the_budget_holds(lab, search):
    outcome = search(trials=12)
    assert outcome.stop_reason is StopReason.TRIALS
    assert lab.script.groups == [[0, 1, 2, 3, 4, 5, 6, 7], [8, 9, 10, 11]]
    assert lab.states() == ["COMPLETE"] * 12
    assert len({str(sorted(trial.params.items())) for trial in lab.trials()}) == 12
    assert [len(trial.intermediate_values) for trial in lab.trials()] == [4] * 12


def test_other_trials_run_alone(lab):
    lab.search(trials=4, sampler="random")
    assert lab.script.groups == [[0], [1], [2], [3]]


def test_groups_grow_with_what_the_sampler_has_learnt_from(lab):
    lab.search(trials=18, pruner="none", space=HEAD_ONLY_SPACE)
    sizes = [len(group) for group in lab.script.groups]
    assert sizes == [4, 2, 2, 2, 2, 3, 3]


def test_proposal_that_does_not_fit_ends_the_group_and_runs_next(lab, search):
    search(trials=14, space=MIXED_SPACE)
    trials = lab.trials()
    assert [number for group in lab.script.groups for number in group] == list(range(14))
    for group, after in zip(lab.script.groups, lab.script.groups[1:], strict=False):
        kinds = {trials[number].hyperparameters["freezing"] for number in group}
        assert kinds == {"head_only"} or len(group) == 1
        if kinds == {"head_only"}:
            assert trials[after[0]].hyperparameters["freezing"] == "none"
    assert max(map(len, lab.script.groups)) > 1
    assert [trial.state.name for trial in trials] == ["COMPLETE"] * 14


def test_proposal_that_does_not_fit_goes_to_an_idle_worker_at_once(lab, search):
    freezing = {"choices": ["none", "head_only"], "default": "head_only"}
    search(trials=9, space={**MIXED_SPACE, "freezing": freezing}, workers=2)
    first, second = lab.script.groups[:2]
    assert second == [first[-1] + 1]
    running = [{trial.number for trial in shot.running} for shot in lab.listener.snapshots]
    assert {*first, *second} in running


def test_waiting_trials_fill_a_group_before_the_sampler_does(lab, search):
    search(trials=0)
    for rate in (1e-2, 1e-3):
        enqueue(lab.store(), {"learning_rate": rate})
    search(trials=4)
    assert lab.script.groups == [[0, 1, 2, 3]]
    assert [trial.origin for trial in lab.trials()] == ["default", "user", "user", "sampler"]


def test_nothing_is_proposed_while_something_else_waits(lab, search):
    search(trials=0, space=MIXED_SPACE)
    enqueue(lab.store(), {"freezing": "head_only"})
    search(trials=2, space=MIXED_SPACE)
    assert lab.script.groups == [[0], [1]]


def test_search_loses_patience_as_soon_as_one_by_one(lab, search):
    lab.script.curve = lambda hyperparameters, epoch: (
        0.9 * epoch if hyperparameters["learning_rate"] == 1e-4 else 0.1 * epoch
    )
    outcome = search(trials=50, patience=3)
    assert outcome.stop_reason is StopReason.CONVERGED
    assert len(lab.trials()) == 4
    assert [len(group) for group in lab.script.groups] == [3, 1]


def test_exhausted_grid_ends_a_group(lab, search):
    grid = {"freezing": "head_only", "learning_rate": 1e-3, "epochs": {"choices": [1, 2]}}
    grid["epochs"]["default"] = 1
    outcome = search(trials=50, sampler="grid", space=grid)
    assert outcome.stop_reason is StopReason.EXHAUSTED
    assert lab.script.groups == [[0, 1]]


def test_worker_is_idle_only_after_the_last_of_its_group(lab, groups):
    """The trials are of different lengths."""
    space = {**HEAD_ONLY_SPACE, "epochs": {"low": 1, "high": 6, "default": 1}}
    groups(trials=9, space=space)
    assert [len(group) for group in lab.script.groups] == [8, 1]
    order = [result.number for result in lab.listener.results]
    assert sorted(order[:8]) == list(range(8))


def test_trials_of_a_group_are_pruned_one_by_one(lab, groups):
    lab.script.curve = lambda hyperparameters, epoch: hyperparameters["dropout"] * epoch
    groups(trials=8, pruner="successive_halving")
    states = set(lab.states())
    assert states == {"COMPLETE", "PRUNED"}
    assert lab.trials()[0].state is TrialState.COMPLETE


def test_failure_of_one_trial_is_no_matter_to_its_group(lab, groups):
    lab.script.faults = [Fault(trial=3, at=1, kind=FailureKind.DIVERGED)]
    groups(trials=6)
    assert lab.states() == ["COMPLETE"] * 3 + ["FAIL"] + ["COMPLETE"] * 2


def test_trial_of_a_group_that_the_user_ends_is_left_as_it_is(lab, groups):
    at(lab, 2, 1, lambda: lab.optuna().tell(2, state=TrialState.FAIL))
    groups(trials=4)
    assert lab.states() == ["COMPLETE", "COMPLETE", "FAIL", "COMPLETE"]


def test_waiting_trial_that_the_user_ends_as_it_is_claimed_is_left_out(lab, search, monkeypatch):
    real = StudyStore.claim

    def claim(store, number):
        if number == 1 and store.trial(1).state is TrialState.WAITING:
            study = lab.optuna()
            study._storage.set_trial_state_values(study.trials[1]._trial_id, TrialState.FAIL)
        return real(store, number)

    monkeypatch.setattr(StudyStore, "claim", claim)
    search(trials=3)
    assert lab.script.groups == [[0, 2]]
    assert lab.states() == ["COMPLETE", "FAIL", "COMPLETE"]


def test_interrupt_pauses_the_group_and_all_of_it_goes_on(lab, groups):
    at(lab, 2, 1, interrupt)
    outcome = groups(trials=8)
    assert outcome.stop_reason is StopReason.INTERRUPTED
    assert "RUNNING" not in lab.states()
    assert lab.states()[-1] == "WAITING"
    lab.listener.results.clear()
    groups(trials=8)
    assert lab.states() == ["COMPLETE"] * 8
    curves = [list(trial.intermediate_values) for trial in lab.trials()]
    assert curves == [[50, 100, 150, 200]] * 8


def test_trial_that_had_not_begun_when_its_group_was_paused_waits_as_new(lab, groups):
    lab.script.is_stacked = False
    at(lab, 1, 1, interrupt)
    groups(trials=4)
    assert lab.states() == ["COMPLETE", "WAITING", "WAITING", "WAITING"]
    assert lab.listener.results[-1].outcome is Outcome.PAUSED
    waiting = lab.trials()[3]
    assert (waiting.intermediate_values, waiting.seconds) == ({}, 0.0)
    assert not lab.files.trial(3).exists()
    assert {c.trial_number for c in lab.store().checkpoints.all()} == {0, 1}
    groups(trials=4)
    assert lab.script.groups == [[0, 1, 2, 3], [1], [2, 3]], "what has a checkpoint runs alone"
    assert lab.listener.started[-3:] == [(1, True), (2, False), (3, False)]


def test_death_of_a_worker_releases_its_group_and_each_then_runs_alone(lab, groups):
    lab.script.faults = [dies(2, at=1)]
    groups(trials=4)
    assert lab.states() == ["COMPLETE"] * 4
    assert all(len(group) == 1 for group in lab.script.groups[1:])
    (said,) = lab.listener.messages
    assert "lost their worker and go on" in said
    assert "signal 9" in said


def test_trial_that_kills_its_worker_twice_takes_no_other_with_it(lab, groups):
    lab.script.faults = [dies(2, at=1), dies(2, at=1)]
    groups(trials=4)
    assert lab.states() == ["COMPLETE", "COMPLETE", "FAIL", "COMPLETE"]
    assert lab.trials()[2].failure.kind is FailureKind.WORKER_DIED


def test_full_disk_lets_the_whole_group_wait(lab, groups):
    def fill():
        message = WorkerError(kind="DiskError", message="The disk is full.", traceback="")
        lab.script.workers[0]._put(message)
        lab.script.workers[0]._training.clear()
        raise_nothing_more(lab)

    at(lab, 2, 0, fill)
    with pytest.raises(SearchFailedError, match="disk is full"):
        groups(trials=4)
    assert "RUNNING" not in lab.states()
    assert "WAITING" in lab.states()


def raise_nothing_more(lab):
    """Let a worker that has reported an error say nothing more."""
    lab.script.workers[0].is_closed = True


def whole_search(folder, space):
    """The configurations of a search that nothing interrupted."""
    lab = Lab(folder)
    lab.search(trials=11, pruner="none", space=space)
    params = [trial.params for trial in lab.trials()]
    lab.close()
    return params


@pytest.fixture(scope="module")
def head_only(tmp_path_factory):
    return whole_search(tmp_path_factory.mktemp("whole"), HEAD_ONLY_SPACE)


@pytest.fixture(scope="module")
def mixed(tmp_path_factory):
    return whole_search(tmp_path_factory.mktemp("whole"), MIXED_SPACE)


@pytest.mark.parametrize("where", [(0, 0), (3, 2), (9, 1)])
@pytest.mark.parametrize("action", [interrupt, kill])
def test_interrupted_search_proposes_what_an_uninterrupted_one_does(lab, head_only, where, action):
    at(lab, *where, action)
    with contextlib.suppress(KilledError):
        lab.search(trials=11, pruner="none", space=HEAD_ONLY_SPACE)
    assert lab.states() != ["COMPLETE"] * 11
    lab.search(trials=11, pruner="none", space=HEAD_ONLY_SPACE)
    assert [trial.params for trial in lab.trials()] == head_only
    assert lab.states() == ["COMPLETE"] * 11


@pytest.mark.parametrize("num_calls", range(2, 22, 4))
def test_kill_while_a_group_is_formed_makes_no_difference(lab, mixed, monkeypatch, num_calls):
    """Between any two proposals and claims."""
    calls = iter(range(num_calls))

    def limited(real):
        def call(*args, **kwargs):
            if next(calls, None) is None:
                raise KilledError
            return real(*args, **kwargs)

        return call

    with monkeypatch.context() as patch:
        for name in ("add_trial", "claim"):
            patch.setattr(StudyStore, name, limited(getattr(StudyStore, name)))
        with pytest.raises(KilledError):
            lab.search(trials=11, pruner="none", space=MIXED_SPACE)
    lab.search(trials=11, pruner="none", space=MIXED_SPACE)
    assert [trial.params for trial in lab.trials()] == mixed
    assert lab.states() == ["COMPLETE"] * 11


def test_idle_worker_looks_for_new_trials_rarely(lab, monkeypatch):
    """One worker has nothing left to do while the other trains the last trial."""
    looks = []
    real = Line.next_group

    def look(line, **options):
        looks.append(line)
        return real(line, **options)

    monkeypatch.setattr(Line, "next_group", look)
    lab.search(trials=1, workers=2)
    assert len(looks) == 3, "for either worker at first, and after the last trial"


def test_what_is_put_in_line_for_an_idle_worker_is_found(lab, monkeypatch):
    monkeypatch.setattr(engine, "_LOOK_SECONDS", 0.0)
    at(lab, 0, 1, lambda: enqueue(lab.store(), {"dropout": 0.3}))
    lab.search(trials=1, workers=2, pruner="none")
    running = [{trial.number for trial in shot.running} for shot in lab.listener.snapshots]
    assert {0, 1} in running
