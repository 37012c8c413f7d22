"""What a search does when trials fail, workers die, or the database does."""

import sqlite3

import pytest
from optuna.trial import TrialState

from automl_ft.errors import SearchFailedError, StorageError
from automl_ft.search.enqueue import enqueue
from automl_ft.search.events import StopReason
from automl_ft.specs.decision import Evaluation
from automl_ft.specs.failure import FailureKind
from automl_ft.storage.schema import PRUNED_AT
from automl_ft.workers.base import WorkerDied
from automl_ft.workers.protocol import Open, Prepare, Ready, Run, WorkerError, WorkerNote
from tests.fakes.scripted_worker import Fault, dies, save_checkpoint

OUT_OF_MEMORY = FailureKind.OUT_OF_MEMORY


def test_failure_is_recorded_with_its_kind_and_the_search_goes_on(lab):
    lab.script.faults = [Fault(trial=1, at=1, kind=OUT_OF_MEMORY, message="CUDA out of memory")]
    outcome = lab.search(trials=3, pruner="none")
    assert outcome.stop_reason is StopReason.TRIALS
    assert lab.states() == ["COMPLETE", "FAIL", "COMPLETE"]
    failed = lab.trials()[1]
    assert failed.failure.kind is OUT_OF_MEMORY
    assert (failed.failure.message, failed.failure.traceback) == (
        "CUDA out of memory",
        "Traceback: here",
    )
    assert list(failed.intermediate_values) == [50]
    assert failed.user_attrs["failure_kind"] == "out_of_memory"
    assert not lab.files.trial(1).exists()


def test_trial_that_lost_its_device_fails_alone_and_the_next_has_a_new_worker(lab):
    message = "AcceleratorError: CUDA error: device-side assert triggered"
    lab.script.faults = [Fault(trial=1, at=1, message=message, loses_device=True)]
    outcome = lab.search(trials=4, pruner="none")
    assert outcome.stop_reason is StopReason.TRIALS
    assert lab.states() == ["COMPLETE", "FAIL", "COMPLETE", "COMPLETE"]
    assert lab.trials()[1].failure.message == message
    assert [spec.number for spec in lab.script.specs] == [0, 1, 2, 3], "none was given to it"
    assert [worker.is_killed for worker in lab.script.workers] == [True, False]
    assert not any("lost its worker" in text for text in lab.listener.messages)


def test_first_three_failures_alike_stop_the_search_and_say_why(lab):
    lab.script.faults = [Fault(trial=n, message=f"ValueError: row {n}") for n in range(9)]
    with pytest.raises(SearchFailedError, match="first 3 trials failed for the same reason") as e:
        lab.search(trials=9)
    assert "error: ValueError: row 2" in str(e.value)
    assert "Traceback: here" in str(e.value)
    assert lab.states() == ["FAIL"] * 3
    assert lab.store().runs()[0].ended_reason == "failed"


def test_first_three_failures_alike_pause_what_else_runs(lab):
    lab.script.faults = [Fault(trial=n, kind=OUT_OF_MEMORY) for n in (0, 1, 2)]
    with pytest.raises(SearchFailedError, match="out_of_memory"):
        lab.search(trials=9, workers=2)
    assert sorted(lab.states()) in (["FAIL"] * 3, ["FAIL", "FAIL", "FAIL", "WAITING"])
    assert all(worker.is_killed for worker in lab.script.workers)


@pytest.mark.parametrize(
    "last",
    [
        Fault(trial=2, kind=OUT_OF_MEMORY),
        Fault(trial=2, kind=FailureKind.ERROR, message="KeyError: 'x'"),
        None,
    ],
    ids=["other kind", "other exception", "no failure"],
)
def test_first_three_trials_that_end_differently_do_not_stop_the_search(lab, last):
    faults = [Fault(trial=n, message="ValueError: bad") for n in (0, 1, 3, 4, 5)]
    lab.script.faults = [*faults, *([] if last is None else [last])]
    outcome = lab.search(trials=7, pruner="none")
    assert outcome.stop_reason is StopReason.TRIALS
    assert lab.states()[3:] == ["FAIL", "FAIL", "FAIL", "COMPLETE"]


def test_later_failures_alike_do_not_stop_the_search(lab):
    lab.script.faults = [Fault(trial=n) for n in (1, 2, 3, 4)]
    lab.search(trials=6, pruner="none")
    assert lab.states() == ["COMPLETE", "FAIL", "FAIL", "FAIL", "FAIL", "COMPLETE"]


def test_first_three_are_counted_anew_in_each_run(lab):
    lab.search(trials=1)
    lab.script.faults = [Fault(trial=n) for n in (1, 2, 3)]
    with pytest.raises(SearchFailedError):
        lab.search(trials=9)
    lab.search(trials=5, pruner="none")
    assert lab.states() == ["COMPLETE", "FAIL", "FAIL", "FAIL", "COMPLETE"]


def test_trial_of_a_dead_worker_goes_on_once(lab):
    lab.script.faults = [dies(1, at=2)]
    lab.search(trials=3, pruner="none")
    assert lab.states() == ["COMPLETE"] * 3
    assert [spec.number for spec in lab.script.specs] == [0, 1, 1, 2]
    trial = lab.trials()[1]
    assert trial.seconds == 4.0, "it went on from its second validation"
    assert list(trial.intermediate_values) == [50, 100, 150, 200]
    assert (1, True) in lab.listener.started
    (said,) = lab.listener.messages
    assert "Trial 1 lost its worker" in said
    assert "signal 9" in said
    assert "last words" in said


def test_trial_that_kills_its_worker_twice_fails(lab):
    lab.script.faults = [dies(1, at=2), dies(1, at=2)]
    lab.search(trials=3, pruner="none")
    assert lab.states() == ["COMPLETE", "FAIL", "COMPLETE"]
    failure = lab.trials()[1].failure
    assert failure.kind is FailureKind.WORKER_DIED
    assert "signal 9" in failure.message
    assert "last words" in failure.traceback
    assert not lab.files.trial(1).exists()


def test_dead_worker_is_replaced_and_ended(lab):
    lab.script.faults = [dies(0)]
    lab.search(trials=1)
    assert [worker.index for worker in lab.script.workers] == [0, 1]
    assert [worker.is_closed for worker in lab.script.workers] == [True, True]
    assert lab.script.workers[1].log == lab.files.log(1)


def test_other_workers_go_on_when_one_dies(lab):
    lab.script.faults = [dies(1, at=1), dies(2, at=3)]
    outcome = lab.search(trials=6, workers=3, pruner="none")
    assert outcome.stop_reason is StopReason.TRIALS
    assert lab.states() == ["COMPLETE"] * 6


def test_death_of_the_last_trial_s_worker_does_not_end_the_search_early(lab):
    """One worker has nothing left to do and dies; then the other dies with the last trial."""

    def kill_the_idle_one(spec, index):
        if (spec.number, index) == (1, 3):
            lab.script.workers[0].die()

    lab.script.on_validation = kill_the_idle_one
    lab.script.curve = lambda hyperparameters, epoch: epoch
    lab.script.faults = [dies(1, at=3)]
    outcome = lab.search(trials=2, workers=2, pruner="none", space=lab_space_of_uneven_lengths())
    assert outcome.stop_reason is StopReason.TRIALS
    assert lab.states() == ["COMPLETE", "COMPLETE"]


def lab_space_of_uneven_lengths():
    """The default recipe takes one epoch, the other configuration three."""
    return {"epochs": {"choices": [1, 3], "default": 1}, "learning_rate": 1e-3}


def test_workers_that_keep_dying_end_the_search(lab):
    lab.script.faults = [dies(n) for n in range(9) for _ in range(2)]
    with pytest.raises(SearchFailedError, match=r"first 3 trials failed.*worker_died"):
        lab.search(trials=9)
    assert lab.states() == ["FAIL"] * 3


def test_workers_that_cannot_be_replaced_end_the_search(lab):
    def break_opening(spec, index):
        message = WorkerError(kind="DataError", message="the rows are gone", traceback="")
        lab.script.setup_errors[Open] = message

    lab.script.on_validation = break_opening
    lab.script.faults = [dies(0, at=1)]
    with pytest.raises(SearchFailedError, match=r"keep dying.*the rows are gone"):
        lab.search(trials=2)
    assert lab.states() == ["WAITING"], "what was done so far is kept"
    assert lab.trials()[0].is_paused


def test_error_of_a_worker_outside_a_trial_counts_as_its_death(lab):
    error = WorkerError(kind="RuntimeError", message="broken", traceback="Traceback")

    def break_once(message):
        if isinstance(message, Open) and len(lab.script.workers) == 2:
            lab.script.setup_errors.pop(Run)

    lab.script.on_setup = break_once
    lab.script.setup_errors[Run] = error
    lab.search(trials=1)
    assert lab.states() == ["COMPLETE"]
    assert "RuntimeError: broken" in lab.listener.messages[0]


def test_late_words_of_a_replaced_worker_are_ignored(lab):
    """It reports an error, is replaced, and its death is noticed only then."""
    error = WorkerError(kind="RuntimeError", message="broken", traceback="")

    def break_once(message):
        if isinstance(message, Open) and len(lab.script.workers) == 2:
            lab.script.setup_errors.pop(Run)
            late = WorkerDied(exit_code=1, last_output="")
            lab.script.workers[0].is_closed = False
            lab.script.workers[0]._put(late)
            lab.script.workers[0]._put(Ready())

    lab.script.on_setup = break_once
    lab.script.setup_errors[Run] = error
    outcome = lab.search(trials=2, pruner="none")
    assert outcome.stop_reason is StopReason.TRIALS
    assert lab.states() == ["COMPLETE", "COMPLETE"]
    assert len(lab.script.workers) == 2


def test_death_while_the_study_is_prepared_ends_the_search(bare_lab):
    bare_lab.script.setup_errors[Prepare] = WorkerDied(exit_code=1, last_output="no such device\n")
    with pytest.raises(SearchFailedError, match=r"ended with 1.*\n.*no such device"):
        bare_lab.search()
    assert not bare_lab.database_file.exists()


def test_failing_database_ends_the_search_and_the_workers(lab):
    def break_database(spec, index):
        if spec.number == 1:
            with sqlite3.connect(lab.database_file) as connection:
                connection.execute("DROP TABLE trial_intermediate_values")
            connection.close()

    lab.script.on_validation = break_database
    with pytest.raises(StorageError, match=r"studies\.db"):
        lab.search(trials=3)
    assert all(worker.is_killed for worker in lab.script.workers)


def test_trial_lost_with_its_database_goes_on_in_the_next_run(lab):
    class UnplugError(Exception):
        """Stands for anything that ends the supervisor at once."""

    def unplug(spec, index):
        if (spec.number, index) == (1, 2):
            raise UnplugError

    lab.script.on_validation = unplug
    with pytest.raises(UnplugError):
        lab.search(trials=2, pruner="none")
    assert lab.states() == ["COMPLETE", "RUNNING"]
    lab.script.on_validation = lambda spec, index: None
    lab.search(trials=2, pruner="none")
    assert lab.states() == ["COMPLETE", "COMPLETE"]
    assert lab.trials()[1].seconds == 4.0


def test_report_that_was_lost_with_the_supervisor_is_made_up_for(lab):
    """A kill between the last checkpoint and its report: the worker has nothing left to report."""
    lab.search(trials=1)
    with sqlite3.connect(lab.database_file) as connection:
        connection.execute("DELETE FROM trial_intermediate_values WHERE step = 200")
        connection.execute("UPDATE trials SET state = 'RUNNING', datetime_complete = NULL")
        connection.execute("DELETE FROM trial_values")
    connection.close()
    whole = lab.script.specs[0]
    restore_checkpoint(lab, whole)
    lab.search(trials=1)
    (trial,) = lab.trials()
    assert trial.state is TrialState.COMPLETE
    assert list(trial.intermediate_values) == [50, 100, 150, 200]


def restore_checkpoint(lab, spec):
    """Write the checkpoint of a trial that has done all but report its end."""
    done = []
    for count in (1, 2, 3, 4):
        value = lab.script.curve(spec.hyperparameters, count / 2)
        metrics = {"validation_f1_macro": value}
        done.append(
            Evaluation(step=50 * count, epoch=count / 2, metrics=metrics, seconds=float(count))
        )
    save_checkpoint(lab.files.trial(spec.number), done)


def test_enqueued_trial_that_fails_is_no_reason_to_forget_the_others(lab):
    lab.search(trials=1)
    for dropout in (0.2, 0.3):
        enqueue(lab.store(), {"dropout": dropout})
    lab.script.faults = [Fault(trial=1)]
    lab.search(trials=1, pruner="none")
    assert lab.states() == ["COMPLETE", "FAIL", "COMPLETE"]


def test_default_recipe_that_fell_behind_better_trials_is_not_pruned(lab):
    """It loses its worker, and meets a better trial's values when it goes on."""
    lab.script.curve = lambda hyperparameters, epoch: (
        0.01 * epoch if hyperparameters["learning_rate"] == 1e-4 else 0.5 * epoch
    )
    lab.script.faults = [dies(0, at=1)]
    lab.search(trials=2, workers=2)
    assert lab.states() == ["COMPLETE", "COMPLETE"]
    assert lab.trials()[0].origin == "default"
    assert PRUNED_AT not in lab.trials()[0].system_attrs


def test_notes_of_workers_are_told_once(lab):
    def note(spec, index):
        for worker in lab.script.workers:
            worker._put(WorkerNote(text="The cache is too small."))

    lab.script.on_validation = note
    lab.search(trials=2, pruner="none")
    assert lab.states() == ["COMPLETE", "COMPLETE"]
    assert lab.listener.messages.count("The cache is too small.") == 1
