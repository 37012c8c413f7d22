"""Several trials of one worker; the training is scripted."""

import pytest

import automl_ft.trial.group
from automl_ft.errors import DiskError
from automl_ft.specs.trial import Outcome, TrialCost, TrialResult, TrialSpec
from automl_ft.trial.group import run_group

COST = TrialCost(seconds=1.0, examples=9, peak_memory_mib=1.0)
SPECS = [TrialSpec(number=n, hyperparameters={}, seed=n, folder="/nowhere") for n in (3, 4, 5)]


class Bench:
    """Runs a group; `train` scripts what a trial does."""

    def __init__(self):
        self.study = object()
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
        )

    def run(self):
        run_group(
            SPECS,
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
    monkeypatch.setattr(automl_ft.trial.group, "run_trial", made.run_trial)
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
