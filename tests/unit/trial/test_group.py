"""Several trials of one worker; the training is scripted."""

from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch

import automl_ft.trial.group
from automl_ft.errors import DiskError
from automl_ft.specs.trial import Outcome, TrialCost, TrialMemory, TrialResult, TrialSpec
from automl_ft.trial.group import run_group
from automl_ft.trial.heads import UnstackableError
from automl_ft.trial.stacked import Unfinished
from automl_ft.trial.state import TrainingState

COST = TrialCost(seconds=1.0, examples=9, peak_memory_mib=1.0)
MEMORY = TrialMemory(micro_batch_size=8, eval_batch_size=64, num_out_of_memory=2)
SPECS = [TrialSpec(number=n, hyperparameters={}, seed=n, folder="/nowhere") for n in (3, 4, 5)]


class Bench:
    """Runs a group; `train` scripts what a trial does."""

    def __init__(self):
        self.study = SimpleNamespace(device=torch.device("cpu"), cache=None)
        self.group = UnstackableError("no room")
        self.unfinished = {}
        self.begun = []
        self.results = []
        self.is_pausing = False
        self.train = lambda number: Outcome.COMPLETE

    def run_trial(self, spec, study, reporter):
        assert (study, reporter) == (self.study, f"reporter of {spec.number}")
        self.begun.append(spec.number)
        return TrialResult(
            number=spec.number,
            outcome=self.train(spec.number),
            value=0.5,
            best_step=1,
            metrics={},
            evaluations=(),
            cost=COST,
            memory=MEMORY,
        )

    def build_heads(self, specs, study, reporter_for):
        assert study is self.study
        if isinstance(self.group, Exception):
            raise self.group
        return self.group

    def train_heads(self, group, study, emit):
        for spec in group:
            if spec.number not in self.unfinished:
                emit(self.run_trial(spec, study, f"reporter of {spec.number}"))
        return tuple(self.unfinished.values())

    def run(self, specs=SPECS):
        run_group(
            specs,
            self.study,
            lambda number: f"reporter of {number}",
            self.results.append,
            is_pausing=lambda: self.is_pausing,
        )

    @property
    def outcomes(self):
        return [(result.number, result.outcome.name) for result in self.results]


@pytest.fixture
def bench(monkeypatch):
    made = Bench()
    for name in ("run_trial", "build_heads", "train_heads"):
        monkeypatch.setattr(automl_ft.trial.group, name, getattr(made, name))
    return made


def test_each_trial_has_its_result(bench):
    bench.run()
    assert bench.outcomes == [(3, "COMPLETE"), (4, "COMPLETE"), (5, "COMPLETE")]


def test_trials_that_have_not_begun_when_a_pause_comes_are_paused_without_work(bench):
    def pause(number):
        bench.is_pausing = number == 4
        return Outcome.PAUSED if number == 4 else Outcome.COMPLETE

    bench.train = pause
    bench.run()
    assert bench.begun == [3, 4]
    assert bench.outcomes == [(3, "COMPLETE"), (4, "PAUSED"), (5, "PAUSED")]
    unbegun = bench.results[-1]
    assert (unbegun.value, unbegun.evaluations, unbegun.cost.examples) == (None, (), 0)


def test_failure_of_one_is_no_matter_to_the_others(bench):
    bench.train = lambda number: Outcome.FAILED if number == 3 else Outcome.COMPLETE
    bench.run()
    assert bench.outcomes[1:] == [(4, "COMPLETE"), (5, "COMPLETE")]


def test_full_disk_ends_the_group(bench):
    def fill(number):
        if number == 4:
            raise DiskError("full")
        return Outcome.COMPLETE

    bench.train = fill
    with pytest.raises(DiskError, match="full"):
        bench.run()
    assert bench.outcomes == [(3, "COMPLETE")]


def test_heads_are_trained_as_one_where_that_can_be_done(bench):
    bench.group = SPECS[1:]
    bench.run()
    assert bench.outcomes == [(4, "COMPLETE"), (5, "COMPLETE")]


def test_a_single_trial_is_no_group(bench):
    bench.group = SPECS[1:]
    bench.run(SPECS[:1])
    assert bench.begun == [3]


def test_what_goes_wrong_before_the_first_step_is_left_to_each_trial(bench, caplog):
    bench.group = ValueError("no such model")
    bench.run()
    assert bench.begun == [3, 4, 5]
    (record,) = caplog.records
    assert record.message == "Trials 3, 4, 5 run one by one, not as a group."
    assert "ValueError: no such model" in record.exc_text


def test_log_says_why_trials_are_no_group(bench, caplog):
    bench.run()
    assert bench.begun == [3, 4, 5]
    (record,) = caplog.records
    assert record.message == "Trials 3, 4, 5 run one by one, not as a group: no room."
    assert record.exc_info is None


def test_trials_that_leave_their_group_run_one_by_one(bench):
    bench.group = SPECS
    bench.unfinished = {n: Unfinished(spec=SPECS[n - 3]) for n in (3, 5)}
    bench.run()
    assert bench.begun == [4, 3, 5]
    assert [result.memory for result in bench.results] == [MEMORY] * 3


def test_memory_that_ran_out_in_the_group_is_counted(bench):
    bench.group = SPECS
    bench.unfinished = {5: Unfinished(spec=SPECS[2], num_out_of_memory=1)}
    bench.run()
    assert [result.memory.num_out_of_memory for result in bench.results] == [2, 2, 3]


def test_result_without_a_memory_record_stays_so(bench, monkeypatch):
    def fail(spec, study, reporter):
        return replace(bench.run_trial(spec, study, reporter), memory=None)

    monkeypatch.setattr(automl_ft.trial.group, "run_trial", fail)
    bench.group = SPECS
    bench.unfinished = {5: Unfinished(spec=SPECS[2], num_out_of_memory=1)}
    bench.run()
    assert bench.results[-1].memory is None


def test_trials_that_left_their_group_before_a_pause_tell_how_far_they_are(bench):
    state = TrainingState(step=4, examples_seen=32, best_value=0.25, memory=MEMORY)

    def pause(number):
        bench.is_pausing = True
        return Outcome.COMPLETE

    bench.group, bench.train = SPECS, pause
    bench.unfinished = {5: Unfinished(spec=SPECS[2], state=state)}
    bench.run()
    assert bench.begun == [3, 4]
    paused = bench.results[-1]
    assert paused.outcome is Outcome.PAUSED
    assert (paused.value, paused.cost.examples, paused.memory) == (0.25, 32, MEMORY)


def test_heads_are_not_built_when_a_pause_came_first(bench):
    bench.is_pausing = True
    bench.group = ValueError("not to be built")
    bench.run()
    assert {outcome for _, outcome in bench.outcomes} == {"PAUSED"}
    assert bench.begun == []


def test_full_disk_ends_a_group_that_is_trained_as_one(bench):
    def fill(number):
        raise DiskError("full")

    bench.group, bench.train = SPECS, fill
    with pytest.raises(DiskError, match="full"):
        bench.run()
    assert bench.begun == [3]
