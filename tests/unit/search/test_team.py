"""How workers are started, opened, replaced and ended."""

import queue
import sys

import pytest

import automl_ft.errors as errors
import automl_ft.search.team
from automl_ft.errors import DataError, SearchFailedError
from automl_ft.search.interrupt import Interrupt
from automl_ft.search.team import (
    InterruptedSetUpError,
    Team,
    death_message,
    error_of,
    start_process,
)
from automl_ft.workers.base import WorkerDied
from automl_ft.workers.processes import ProcessWorker
from automl_ft.workers.protocol import CountWorkers, Keep, Open, Prepare, Ready, WorkerError
from tests.fakes.scripted_worker import make_facts

NINE = (
    "A worker process was killed by signal 9."
    " Signal 9 often means that the machine ran out of memory."
)


@pytest.fixture
def team(bare_lab):
    """A team that has prepared a study of three workers."""
    made = Team(bare_lab.script, Interrupt())
    made.prepare(bare_lab.config(workers=3), ("tiny",), None)
    yield made
    made.close()


def opened(team, lab, **changes):
    return team.open(lab.config(workers=3, **changes), make_facts(), lab.files)


def test_all_workers_start_at_once_and_one_prepares_without_a_log(team, bare_lab):
    assert [(w.index, w.log) for w in bare_lab.script.workers] == [(0, None), (1, None), (2, None)]
    (request,) = bare_lab.script.requests
    assert isinstance(request, Prepare)


def test_the_worker_that_prepared_counts_and_the_others_are_started_then(bare_lab):
    bare_lab.script.num_workers = 3
    made = Team(bare_lab.script, Interrupt())
    made.prepare(bare_lab.config(workers="auto"), ("tiny",), None)
    assert [worker.index for worker in bare_lab.script.workers] == [0]
    assert made.count(3) == 3
    assert [worker.index for worker in bare_lab.script.workers] == [0, 1, 2]
    assert len(made.open(bare_lab.config(workers=3), make_facts(), bare_lab.files)) == 3
    assert [request.slot for request in bare_lab.script.requests[-3:]] == [0, 1, 2]
    made.close()


def test_database_s_url_is_kept_from_workers(team, bare_lab):
    opened(team, bare_lab, storage="postgresql://me:hunter2@host/db")
    assert all(r.config.storage is None for r in bare_lab.script.requests if hasattr(r, "config"))


def test_data_is_kept_once_and_every_worker_opens_the_study(team, bare_lab):
    workers = opened(team, bare_lab)
    assert [worker.index for worker in workers] == [0, 1, 2]
    assert [w.log for w in bare_lab.script.workers] == [*map(bare_lab.files.log, (0, 1, 2))]
    kinds = [type(request) for request in bare_lab.script.requests]
    assert kinds == [Prepare, Keep, Open, Open, Open]
    assert [request.slot for request in bare_lab.script.requests[2:]] == [0, 1, 2]


@pytest.mark.parametrize(("given", "cores", "threads"), [(None, 8, 2), (5, 8, 5), (None, 2, 1)])
def test_workers_share_the_cores_unless_told_otherwise(
    team, bare_lab, monkeypatch, given, cores, threads
):
    monkeypatch.setattr(automl_ft.search.team, "usable_cores", lambda: cores)
    opened(team, bare_lab, threads=given)
    opening = bare_lab.script.requests[-1]
    assert opening.threads == threads


def test_a_worker_that_dies_while_it_counts_ends_the_search(bare_lab):
    bare_lab.script.setup_errors[CountWorkers] = WorkerDied(exit_code=-9, last_output="")
    made = Team(bare_lab.script, Interrupt())
    made.prepare(bare_lab.config(workers="auto"), ("tiny",), None)
    with pytest.raises(SearchFailedError, match="killed by signal 9"):
        made.count(3)
    made.close()


def test_an_interrupt_ends_the_counting(bare_lab):
    interrupt = Interrupt()
    made = Team(bare_lab.script, interrupt)
    made.prepare(bare_lab.config(workers="auto"), ("tiny",), None)
    interrupt.request()
    with pytest.raises(InterruptedSetUpError):
        made.count(3)
    made.close()


def test_replaced_worker_is_killed_and_its_successor_opens_the_study(team, bare_lab):
    opened(team, bare_lab)
    team.replace(1)
    assert bare_lab.script.workers[1].is_killed
    assert not team.has(1)
    assert team.has(3)
    assert team.worker(3).log == bare_lab.files.log(3)
    opening = bare_lab.script.requests[-1]
    assert isinstance(opening, Open)
    assert opening.slot == 1
    event = team.next_event()
    assert (event.worker, event.message) == (3, Ready())


def test_successor_of_a_successor_takes_the_same_place(team, bare_lab):
    opened(team, bare_lab)
    team.replace(2)
    team.replace(3)
    assert bare_lab.script.requests[-1].slot == 2


def test_no_event_is_none(team):
    assert team.next_event(timeout=0.0) is None


def test_closing_ends_all_workers_and_twice_does_no_harm(team, bare_lab):
    opened(team, bare_lab)
    team.close()
    team.close(at_once=True)
    assert [(w.is_closed, w.is_killed) for w in bare_lab.script.workers] == [(True, False)] * 3


def test_close_that_was_interrupted_can_be_repeated(team, bare_lab):
    opened(team, bare_lab)
    second = bare_lab.script.workers[1]
    real = second.close

    def interrupted(*, at_once=False):
        second.close = real
        raise KeyboardInterrupt

    second.close = interrupted
    with pytest.raises(KeyboardInterrupt):
        team.close()
    team.close(at_once=True)
    assert [worker.is_killed for worker in bare_lab.script.workers] == [False, True, True]


@pytest.mark.parametrize("request_kind", [Keep, Open])
def test_death_during_set_up_is_told_with_the_last_output(team, bare_lab, request_kind):
    died = WorkerDied(exit_code=-9, last_output="Killed\n")
    bare_lab.script.setup_errors[request_kind] = died
    with pytest.raises(SearchFailedError, match=r"(?s)signal 9.*out of memory.*Killed"):
        opened(team, bare_lab)


def test_interrupt_ends_every_wait(team, bare_lab):
    team.interrupt.request()
    with pytest.raises(InterruptedSetUpError):
        opened(team, bare_lab)


@pytest.mark.parametrize("kind", ["DataError", "ModelError", "UsageError", "StorageError"])
def test_bad_input_that_a_worker_met_keeps_its_class_and_message(kind):
    error = error_of(WorkerError(kind=kind, message="row 3 is empty", traceback=""))
    assert type(error) is getattr(errors, kind)
    assert str(error) == "row 3 is empty"


@pytest.mark.parametrize("kind", ["KeyError", "annotations", "Problem", "ConfigError"])
def test_anything_else_is_a_failed_search_with_the_traceback(kind):
    error = error_of(WorkerError(kind=kind, message="x", traceback="Traceback: here"))
    assert type(error) is SearchFailedError
    assert str(error) == f"A worker failed: {kind}: x\nTraceback: here"


def test_error_of_a_worker_may_be_caught_as_what_it_is():
    with pytest.raises(DataError):
        raise error_of(WorkerError(kind="DataError", message="x", traceback=""))


@pytest.mark.parametrize(
    ("code", "output", "said"),
    [
        (1, "", "A worker process ended with 1."),
        (None, " \n", "A worker process ended with None."),
        (-15, "a\nb\n", "A worker process was killed by signal 15. Its last output:\na\nb"),
        (-9, "", NINE),
    ],
)
def test_death_is_told_in_full_sentences(code, output, said):
    text = death_message(WorkerDied(exit_code=code, last_output=output))
    assert text == said


@pytest.mark.parametrize("has_log", [True, False])
def test_default_factory_starts_a_process_that_logs(tmp_path, monkeypatch, has_log):
    monkeypatch.setattr(sys, "executable", "/bin/true")
    log = tmp_path / "logs" / "worker-4.log"
    worker = start_process(4, queue.Queue(), log if has_log else None)
    worker.close()
    assert isinstance(worker, ProcessWorker)
    assert worker.index == 4
    assert log.exists() is has_log
