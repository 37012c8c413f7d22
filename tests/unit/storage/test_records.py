"""What goes into the database comes out of it."""

import dataclasses
import json
import math
from datetime import UTC, datetime

import optuna
import pytest
from optuna.distributions import FloatDistribution
from optuna.trial import TrialState

from automl_ft.errors import StorageError
from automl_ft.specs.failure import FailureKind, TrialFailure
from automl_ft.specs.trial import Outcome, TrialCost, TrialMemory, TrialResult
from automl_ft.storage import schema
from automl_ft.storage.records import (
    new_trial_attrs,
    result_attrs,
    study_attrs,
    study_record,
    trial_record,
)


def through_json(value):
    return json.loads(json.dumps(value, allow_nan=False))


def a_result(**changes):
    result = TrialResult(
        number=3,
        outcome=Outcome.COMPLETE,
        value=0.5,
        best_step=128,
        metrics={"validation_f1_macro": 0.5, "train_loss": 1.25},
        evaluations=(),
        cost=TrialCost(seconds=2.5, examples=256, peak_memory_mib=100.5),
    )
    return dataclasses.replace(result, **changes)


def a_trial(attrs=None, **options):
    return optuna.trial.create_trial(user_attrs=attrs or {}, **options)


def test_study_survives_its_attributes(record):
    stored = study_record("demo", through_json(study_attrs(record)))
    expected = dataclasses.replace(record, config=dataclasses.replace(record.config, storage=None))
    assert stored == expected


def test_storage_url_is_not_among_the_attributes(record):
    attrs = study_attrs(record)
    assert record.config.storage is not None
    assert attrs[schema.STUDY_CONFIG]["storage"] is None
    assert "hunter2" not in json.dumps(attrs)


def test_version_of_the_writer_is_among_the_attributes(record):
    attrs = study_attrs(record)
    assert attrs[schema.STUDY_SCHEMA_VERSION] == schema.SCHEMA_VERSION
    assert attrs[schema.STUDY_VERSION]


@pytest.mark.parametrize(
    ("key", "value"),
    [
        (schema.STUDY_CONFIG, {"sampler": "tpe"}),
        (schema.STUDY_CONFIG, None),
        (schema.STUDY_CREATED_AT, "yesterday"),
    ],
)
def test_damaged_study_is_refused_with_its_name(record, key, value):
    attrs = {**study_attrs(record), key: value}
    with pytest.raises(StorageError, match="record of study `demo` cannot be read"):
        study_record("demo", attrs)


def test_missing_key_is_damage(record):
    attrs = study_attrs(record)
    del attrs[schema.STUDY_SPACE]
    with pytest.raises(StorageError, match=r"automl_ft:space.*restore the database"):
        study_record("demo", attrs)


def test_config_key_of_a_newer_version_is_ignored(record):
    attrs = study_attrs(record)
    attrs[schema.STUDY_CONFIG]["from_the_future"] = 1
    assert study_record("demo", attrs).config.name == "demo"


def test_result_survives_its_attributes():
    failure = TrialFailure(kind=FailureKind.DIVERGED, message="loss is NaN", traceback="line 1")
    attrs = result_attrs(a_result(failure=failure))
    read = trial_record(a_trial(through_json(attrs), state=TrialState.FAIL))
    assert read.metrics == {"validation_f1_macro": 0.5, "train_loss": 1.25}
    assert (read.seconds, read.examples, read.peak_memory_mib) == (2.5, 256, 100.5)
    assert read.best_step == 128
    assert read.failure == failure


def test_metrics_that_are_not_finite_survive():
    attrs = result_attrs(a_result(metrics={"validation_loss": math.inf, "train_loss": math.nan}))
    read = trial_record(a_trial(through_json(schema.json_safe(attrs)), value=1.0))
    assert read.metrics["validation_loss"] == math.inf
    assert math.isnan(read.metrics["train_loss"])


def test_result_without_validation_has_no_best_step_and_no_failure():
    attrs = result_attrs(a_result(best_step=None, value=None, metrics={}))
    assert set(attrs) == {"seconds", "examples", "peak_memory_mib"}


def test_how_a_trial_fitted_into_memory_survives():
    memory = TrialMemory(
        micro_batch_size=4, eval_batch_size=64, num_out_of_memory=2, correction=1.5
    )
    cost = TrialCost(seconds=2.5, examples=256, peak_memory_mib=100.5, forecast_mib=90.25)
    attrs = through_json(result_attrs(a_result(cost=cost, memory=memory)))
    read = trial_record(a_trial(attrs, value=1.0))
    assert (read.forecast_mib, read.memory) == (90.25, memory)


def test_seconds_of_validation_survive_and_are_no_metric():
    cost = TrialCost(seconds=2.5, examples=256, peak_memory_mib=100.5, seconds_validating=0.25)
    read = trial_record(a_trial(through_json(result_attrs(a_result(cost=cost))), value=1.0))
    assert read.seconds_validating == 0.25
    assert "seconds_validating" not in read.metrics


@pytest.mark.parametrize("value", ["much", 8, {"micro_batch_size": 4}, [1]])
def test_an_attribute_of_a_users_own_is_not_taken_for_ours(value):
    assert trial_record(a_trial({"memory": value}, value=1.0)).memory is None


def test_end_of_a_long_traceback_is_kept():
    failure = TrialFailure(kind=FailureKind.ERROR, message="m", traceback="x" * 100_000 + "end")
    attrs = result_attrs(a_result(failure=failure))
    assert len(attrs[schema.FAILURE_TRACEBACK]) == 8000
    assert attrs[schema.FAILURE_TRACEBACK].endswith("end")


def test_failure_kind_of_a_newer_version_is_an_error():
    read = trial_record(a_trial({"failure_kind": "abducted"}, state=TrialState.FAIL))
    assert read.failure == TrialFailure(kind=FailureKind.ERROR, message="")


def test_new_trial_s_attributes_are_read_back():
    attrs = new_trial_attrs({"learning_rate": 0.1, "dropout": None}, seed=7, origin="sampler")
    read = trial_record(a_trial(through_json(attrs), state=TrialState.WAITING))
    assert read.hyperparameters == {"learning_rate": 0.1, "dropout": None}
    assert (read.seed, read.origin, read.rerun_of) == (7, "sampler", None)


def test_rerun_names_the_trial_it_repeats():
    attrs = new_trial_attrs({}, seed=0, origin="user", rerun_of=0)
    assert trial_record(a_trial(attrs, state=TrialState.WAITING)).rerun_of == 0


def test_trial_of_plain_optuna_has_nothing_of_ours():
    study = optuna.create_study()
    study.enqueue_trial({"learning_rate": 0.1})
    (read,) = map(trial_record, study.trials)
    assert read.fixed_params == {"learning_rate": 0.1}
    assert (read.hyperparameters, read.metrics, read.failure) == ({}, {}, None)
    assert (read.seconds, read.seed, read.origin, read.value) == (None, None, None, None)
    assert not read.is_paused
    assert not read.is_finished


def test_attributes_of_others_are_no_metrics_and_do_no_harm():
    attrs = {"validation_note": "good", "loss": 1.0, "hyperparameters": 3, "seed": "x"}
    read = trial_record(a_trial(attrs, value=1.0))
    assert (read.metrics, read.hyperparameters, read.seed) == ({}, {}, None)
    assert read.user_attrs == attrs
    assert trial_record(a_trial(system_attrs={"fixed_params": 1}, value=1.0)).fixed_params == {}


@pytest.mark.parametrize(
    ("state", "curve", "paused"),
    [
        (TrialState.WAITING, {8: 0.5}, True),
        (TrialState.WAITING, {}, False),
        (TrialState.RUNNING, {8: 0.5}, False),
    ],
)
def test_waiting_trial_with_a_curve_is_paused(state, curve, paused):
    assert trial_record(a_trial(state=state, intermediate_values=curve)).is_paused is paused


def test_times_have_an_offset():
    read = trial_record(a_trial(value=1.0))
    assert abs((datetime.now(UTC) - read.ended).total_seconds()) < 60
    assert read.started.tzinfo is not None
    assert trial_record(a_trial(state=TrialState.WAITING)).started is None


def test_finished_trial_holds_value_params_and_ordered_curve():
    space = {"x": FloatDistribution(0, 1)}
    read = trial_record(
        a_trial(value=0.5, params={"x": 0.1}, distributions=space, intermediate_values={9: 1, 3: 0})
    )
    assert (read.value, read.params, read.distributions) == (0.5, {"x": 0.1}, space)
    assert list(read.intermediate_values) == [3, 9]
    assert read.is_finished
