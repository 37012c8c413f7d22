"""What a stored study must do, on each of the servers that can be had here."""

import dataclasses
import math
import os
import signal
import subprocess
import sys
import threading
from datetime import UTC, datetime, timedelta
from pathlib import Path

import optuna
import pytest
from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution
from optuna.exceptions import UpdateFinishedTrialError
from optuna.trial import TrialState

from automl_ft.errors import StudyExistsError, StudyLockedError
from automl_ft.storage.checkpoints import CheckpointRecord
from automl_ft.storage.records import new_trial_attrs
from automl_ft.storage.studies import open_database

SPACE = {
    "learning_rate": FloatDistribution(1e-5, 1e-3, log=True),
    "epochs": IntDistribution(1, 4),
    "freezing": CategoricalDistribution(["none", "head_only"]),
}
PARAMS = {"learning_rate": 3e-4, "epochs": 2, "freezing": "head_only"}


def add(store, state=TrialState.WAITING, **params):
    values = {**PARAMS, **params}
    attrs = new_trial_attrs(values, seed=7, origin="sampler")
    return store.add_trial(values, SPACE, state=state, attrs=attrs)


def running(store):
    return add(store, TrialState.RUNNING)


def test_added_trial_is_waiting_with_all_it_was_given(store):
    number = add(store)
    (trial,) = store.trials()
    assert (number, trial.number, trial.state) == (0, 0, TrialState.WAITING)
    assert (trial.params, trial.distributions) == (PARAMS, SPACE)
    assert (trial.hyperparameters, trial.seed, trial.origin) == (PARAMS, 7, "sampler")
    assert store.trial(0) == trial


def test_numbers_count_up(store):
    assert [add(store) for _ in range(3)] == [0, 1, 2]
    assert [trial.number for trial in store.trials()] == [0, 1, 2]


def test_unknown_trial_is_a_key_error(store):
    for action in (store.trial, store.claim, store.release):
        with pytest.raises(KeyError):
            action(5)
    with pytest.raises(KeyError):
        store.report(5, 1, 0.5)


def test_trial_is_claimed_once(store):
    number = add(store)
    assert store.claim(number)
    assert not store.claim(number)
    assert store.trial(number).state is TrialState.RUNNING


def test_of_many_claimants_at_once_one_succeeds(store, url):
    number = add(store)
    barrier, claims, databases = threading.Barrier(4), [], []

    def claim():
        database = open_database(url)
        databases.append(database)
        rival = database.load("demo")
        barrier.wait()
        claims.append(rival.claim(number))

    threads = [threading.Thread(target=claim) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for database in databases:
        database.close()
    assert sorted(claims) == [False, False, False, True]


def test_claimed_trial_knows_when_it_began(store):
    number = add(store)
    assert store.trial(number).started is None
    store.claim(number)
    assert abs(datetime.now(UTC) - store.trial(number).started) < timedelta(minutes=1)


def test_paused_trial_keeps_number_params_and_curve(store):
    number = running(store)
    store.report(number, 8, 0.25)
    assert store.release(number)
    paused = store.trial(number)
    assert paused.is_paused
    assert (paused.params, paused.intermediate_values) == (PARAMS, {8: 0.25})
    assert store.claim(number)
    store.report(number, 16, 0.5)
    assert store.trial(number).intermediate_values == {8: 0.25, 16: 0.5}


def test_only_a_running_trial_is_released(store):
    assert not store.release(add(store))


@pytest.mark.parametrize("value", [0.5, -1e300, math.inf, -math.inf, math.nan])
def test_reported_value_is_read_by_plain_optuna(store, other, value):
    number = running(store)
    store.report(number, 8, value)
    (trial,) = optuna.load_study(study_name="demo", storage=other).trials
    read = trial.intermediate_values[8]
    assert read == value or (math.isnan(read) and math.isnan(value))


def test_report_at_the_same_step_replaces_the_earlier_one(store):
    number = running(store)
    for value in (0.25, math.nan, 0.5):
        store.report(number, 8, value)
    assert store.trial(number).intermediate_values == {8: 0.5}


def test_reports_show_at_once_in_a_study_that_was_read_before(store):
    number = running(store)
    assert store.study.trials[number].intermediate_values == {}
    store.report(number, 8, 0.5)
    assert store.study.trials[number].intermediate_values == {8: 0.5}
    assert store.trials()[number].intermediate_values == {8: 0.5}


def test_attributes_are_replaced_by_key(store, other):
    number = running(store)
    store.set_attrs(number, {"seconds": 1.0, "validation_loss": math.nan})
    store.set_attrs(number, {"seconds": 2.0})
    store.set_system_attrs(number, {"note": "x"})
    trial = store.trial(number)
    assert (trial.seconds, trial.seed) == (2.0, 7)
    assert math.isnan(trial.metrics["validation_loss"])
    assert trial.system_attrs == {"note": "x"}
    plain = optuna.load_study(study_name="demo", storage=other).trials[number]
    assert plain.user_attrs["seconds"] == 2.0


@pytest.mark.parametrize(
    ("state", "value"),
    [(TrialState.COMPLETE, 0.5), (TrialState.PRUNED, 0.25), (TrialState.FAIL, None)],
)
def test_finished_trial_is_stored_whole(store, other, state, value):
    number = running(store)
    assert store.finish(number, state, value, {"validation_f1_macro": 0.5})
    trial = store.trial(number)
    assert (trial.state, trial.value) == (state, value)
    assert trial.metrics == {"validation_f1_macro": 0.5}
    assert trial.ended >= trial.started
    plain = optuna.load_study(study_name="demo", storage=other).trials[number]
    assert (plain.state, plain.value) == (state, value)


def test_infinite_value_is_kept_and_nan_is_none(store):
    best, lost = running(store), running(store)
    assert store.finish(best, TrialState.COMPLETE, math.inf)
    assert store.finish(lost, TrialState.PRUNED, math.nan)
    assert store.trial(best).value == math.inf
    assert store.trial(lost).value is None
    assert store.study.best_value == math.inf


def test_trial_that_the_user_ended_stays_as_it_is(store, other):
    number = running(store)
    assert store.trials()[0].state is TrialState.RUNNING
    plain = optuna.load_study(study_name="demo", storage=other)
    plain.tell(number, state=TrialState.FAIL)
    with pytest.raises(UpdateFinishedTrialError, match="Trial 0 of study `demo` is finished"):
        store.report(number, 8, 0.5)
    with pytest.raises(UpdateFinishedTrialError):
        store.set_attrs(number, {"seconds": 1.0})
    assert not store.release(number)
    assert not store.claim(number)
    assert not store.finish(number, TrialState.COMPLETE, 0.5, {"seconds": 1.0})
    trial = store.trials()[0]
    assert (trial.state, trial.value, trial.seconds) == (TrialState.FAIL, None, None)
    assert trial.intermediate_values == {}


def test_trial_that_plain_optuna_put_in_line_is_seen_and_claimed(store, other):
    optuna.load_study(study_name="demo", storage=other).enqueue_trial({"epochs": 3})
    (trial,) = store.trials()
    assert (trial.fixed_params, trial.hyperparameters) == ({"epochs": 3}, {})
    assert store.claim(trial.number)


def test_trial_that_plain_optuna_put_in_line_gets_its_configuration(store, other):
    add(store)
    plain = optuna.load_study(study_name="demo", storage=other)
    plain.enqueue_trial({"epochs": 3})
    params = {**PARAMS, "epochs": 3}
    for _ in range(2):  # a killed supervisor does it again
        store.set_params(1, params, SPACE, attrs=new_trial_attrs(params, seed=1, origin="user"))
    trial = store.trial(1)
    assert (trial.params, trial.distributions) == (params, SPACE)
    assert (trial.hyperparameters, trial.fixed_params) == (params, {"epochs": 3})
    assert plain.trials[1].params == params


def test_waiting_trial_may_get_fewer_parameters(store, other):
    neighbour, number = add(store), add(store)
    fewer = {name: PARAMS[name] for name in ("learning_rate", "freezing")}
    store.set_params(number, fewer, SPACE)
    (kept, changed) = optuna.load_study(study_name="demo", storage=other).trials
    assert (store.trial(number).params, changed.params) == (fewer, fewer)
    assert store.trial(neighbour).params == kept.params == PARAMS


def test_configuration_with_other_choices_changes_nothing(store, other):
    add(store)
    optuna.load_study(study_name="demo", storage=other).enqueue_trial({})
    space = {**SPACE, "freezing": CategoricalDistribution(["head_only"])}
    with pytest.raises(ValueError, match="dynamic value space"):
        store.set_params(1, PARAMS, space, attrs={"seed": 1})
    assert (store.trial(1).params, store.trial(1).seed) == ({}, None)


def test_stale_trials_are_put_back_in_line_and_others_left(store):
    stale, waiting, done = running(store), add(store), running(store)
    store.report(stale, 8, 0.5)
    store.finish(done, TrialState.COMPLETE, 0.5)
    assert store.recover_stale() == [stale]
    assert store.recover_stale() == []
    assert [t.state for t in store.trials()] == [
        TrialState.WAITING,
        TrialState.WAITING,
        TrialState.COMPLETE,
    ]
    assert store.trial(stale).is_paused
    assert not store.trial(waiting).is_paused


def test_stale_trials_of_another_study_are_left(studies, store, record):
    neighbour = studies.create(dataclasses.replace(record, name="neighbour"))
    number = running(neighbour)
    assert store.recover_stale() == []
    assert neighbour.trial(number).state is TrialState.RUNNING


WRITER = """
import sys
from automl_ft.storage.studies import open_database
from optuna.trial import TrialState
from optuna.distributions import IntDistribution
store = open_database(sys.argv[1]).load("demo")
store.start_run()
number = store.add_trial({"epochs": 2}, {"epochs": IntDistribution(1, 4)}, state=TrialState.RUNNING)
step = 0
while True:
    step += 1
    store.report(number, step, step / 8)
    store.set_attrs(number, {"seconds": float(step), "examples": step})
    store.touch_run(float(step))
    if step == 20:
        print("busy", flush=True)
"""


def test_killed_writer_leaves_a_database_that_goes_on(studies, store, url):
    command = [sys.executable, "-c", WRITER, url]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as writer:
        assert writer.stdout.readline() == "busy\n"
        os.kill(writer.pid, signal.SIGKILL)
    again = studies.load("demo")
    assert again.recover_stale() == [0]
    (trial,) = again.trials()
    steps = len(trial.intermediate_values)
    assert trial.is_paused
    assert trial.params == {"epochs": 2}
    assert trial.intermediate_values == {step: step / 8 for step in range(1, steps + 1)}
    assert steps >= 20
    assert trial.examples in (steps, steps - 1)
    assert again.active_seconds() in (float(steps), float(steps - 1))
    assert again.runs()[0].ended_reason is None
    assert again.claim(0)
    assert again.finish(0, TrialState.COMPLETE, 0.5)


def test_updated_record_is_read_by_the_next_process(studies, store):
    config = dataclasses.replace(
        store.record.config, sampler="gp", storage="mysql://me:hunter2@host/db"
    )
    store.update_record(config=config, space={"epochs": {"high": 9}}, origins={"sampler": "option"})
    stored = studies.load("demo").record
    assert stored == store.record
    assert (stored.config.sampler, stored.config.storage) == ("gp", None)
    assert (stored.space, stored.origins) == ({"epochs": {"high": 9}}, {"sampler": "option"})
    assert stored.facts == store.record.facts


def test_space_of_today_and_union_are_stored_beside_each_other(studies, store):
    first = store.record.space
    assert store.record.stored_space == first
    store.update_record(space={"today": True}, stored_space={"union": True})
    store.update_record(origins={})
    stored = studies.load("demo").record
    assert (stored.space, stored.stored_space) == ({"today": True}, {"union": True})


def test_space_grows_for_stored_trials_too(studies, store, other):
    done, waiting = running(store), add(store, freezing="none")
    store.report(done, 8, math.inf)
    store.finish(done, TrialState.COMPLETE, 0.5)
    assert store.study.trials[done].distributions == SPACE  # is in Optuna's cache now
    grown = {
        "learning_rate": FloatDistribution(1e-4, 1e-2, log=True),
        "freezing": CategoricalDistribution(["none", "head_only", "embeddings"]),
        "dropout": FloatDistribution(0.0, 0.5),
    }
    union = {**grown, "learning_rate": FloatDistribution(1e-5, 1e-2, log=True)}
    assert store.update_record(space={"grown": True}, distributions=grown) == union
    plain = optuna.load_study(study_name="demo", storage=other)
    for trials in (store.study.trials, store.trials(), plain.trials):
        for trial in trials:
            assert trial.distributions["learning_rate"] == union["learning_rate"]
            assert trial.distributions["freezing"] == union["freezing"]
            assert trial.distributions["epochs"] == SPACE["epochs"]
            assert "dropout" not in trial.distributions
    assert [trial.params["freezing"] for trial in plain.trials] == ["head_only", "none"]
    assert plain.trials[done].intermediate_values == {8: math.inf}
    assert store.trial(waiting).params["learning_rate"] == PARAMS["learning_rate"]
    assert studies.load("demo").record.space == {"grown": True}
    params = {**PARAMS, "freezing": "embeddings"}
    assert store.add_trial(params, {**SPACE, "freezing": grown["freezing"]}) == 2


def test_space_that_cannot_grow_changes_nothing(studies, store):
    number = add(store)
    with pytest.raises(StudyExistsError, match=r"`freezing`.*may only be appended"):
        store.update_record(
            space={"grown": True},
            distributions={
                "epochs": IntDistribution(1, 9),
                "freezing": CategoricalDistribution(["head_only", "none"]),
            },
        )
    assert store.trial(number).distributions == SPACE
    assert studies.load("demo").record == store.record
    assert "grown" not in store.record.space


def test_other_study_s_distributions_are_left(studies, store, record):
    neighbour = studies.create(dataclasses.replace(record, name="neighbour"))
    add(store)
    add(neighbour)
    store.update_record(distributions={"epochs": IntDistribution(1, 9)})
    assert neighbour.trial(0).distributions == SPACE


def test_unlike_choices_of_a_new_trial_are_refused(store):
    add(store)
    choices = CategoricalDistribution(["none", "embeddings"])
    with pytest.raises(ValueError, match="dynamic value space"):
        store.add_trial({"freezing": "none"}, {"freezing": choices})


def test_active_seconds_add_up_over_runs(studies, store):
    assert store.active_seconds() == 0
    store.start_run()
    store.touch_run(1.5)
    store.touch_run(2.5)
    store.end_run("interrupted")
    again = studies.load("demo")
    again.start_run()
    again.touch_run(4.0)
    assert store.active_seconds() == 6.5
    first, second = store.runs()
    assert (first.active_seconds, first.ended_reason) == (2.5, "interrupted")
    assert (second.ended_reason, second.pid) == (None, os.getpid())
    assert abs(datetime.now(UTC) - first.started_at) < timedelta(minutes=1)
    assert first.touched_at >= first.started_at


def a_checkpoint(number, kind="best", **changes):
    made = CheckpointRecord(
        trial_number=number, kind=kind, path=Path("/out/0"), num_bytes=5_000_000_000, value=0.5
    )
    return dataclasses.replace(made, **changes)


def test_checkpoints_are_noted_replaced_and_forgotten(store):
    store.checkpoints.put(a_checkpoint(1))
    store.checkpoints.put(a_checkpoint(0, "last", value=None))
    store.checkpoints.put(a_checkpoint(0))
    store.checkpoints.put(a_checkpoint(0, num_bytes=7))
    assert store.checkpoints.all() == [
        a_checkpoint(0, num_bytes=7),
        a_checkpoint(0, "last", value=None),
        a_checkpoint(1),
    ]
    store.checkpoints.drop(0, "best")
    store.checkpoints.drop(9, "best")
    assert [(c.trial_number, c.kind) for c in store.checkpoints.all()] == [(0, "last"), (1, "best")]
    store.checkpoints.put(a_checkpoint(0))
    store.checkpoints.drop(0)
    assert [(c.trial_number, c.kind) for c in store.checkpoints.all()] == [(1, "best")]


def take(store, folder):
    with store.lock(folder):
        return True


def test_study_has_one_supervisor_whatever_its_folder(store, url, tmp_path):
    rivals = open_database(url)
    rival = rivals.load("demo")
    with store.lock(tmp_path / "out" / "demo"):
        with pytest.raises(StudyLockedError, match=r"`demo`.*Wait until it ends") as caught:
            take(rival, tmp_path / "elsewhere")
        assert "hunter2" not in str(caught.value)
    assert take(rival, tmp_path / "elsewhere")
    rivals.close()


def test_folder_has_one_supervisor_whatever_its_study(studies, store, record, tmp_path):
    neighbour = studies.create(dataclasses.replace(record, name="neighbour"))
    with store.lock(tmp_path / "demo"):
        with pytest.raises(StudyLockedError, match="`neighbour`"):
            take(neighbour, tmp_path / "demo")
        assert take(neighbour, tmp_path / "neighbour")


HOLDER = """
import sys
from pathlib import Path
from automl_ft.storage.studies import open_database
store = open_database(sys.argv[1]).load("demo")
with store.lock(Path(sys.argv[2])):
    print("held", flush=True)
    sys.stdin.read()
"""


def test_killed_supervisor_no_longer_holds_the_study(store, url, tmp_path):
    command = [sys.executable, "-c", HOLDER, url, str(tmp_path / "demo")]
    pipe = subprocess.PIPE
    with subprocess.Popen(command, stdin=pipe, stdout=pipe, text=True) as holder:
        assert holder.stdout.readline() == "held\n"
        with pytest.raises(StudyLockedError):
            take(store, tmp_path / "elsewhere")
        os.kill(holder.pid, signal.SIGKILL)
    deadline = datetime.now() + timedelta(seconds=20)
    while datetime.now() < deadline:  # a server needs a moment to notice
        try:
            assert take(store, tmp_path / "demo")
            return
        except StudyLockedError:
            threading.Event().wait(0.1)
    pytest.fail("the lock was not given back")
