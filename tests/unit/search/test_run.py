"""One search from start to end, around the engine."""

import dataclasses
import threading

import pytest

from automl_ft.search import run
from automl_ft.search.events import StopReason
from automl_ft.space.load import load_space
from automl_ft.workers.protocol import CountWorkers, Open
from tests.fakes.lab import SPACE
from tests.fakes.scripted_worker import make_facts


def test_outcome_says_where_everything_is(lab):
    outcome = lab.search(trials=1)
    assert (outcome.study_name, outcome.stop_reason) == ("demo", StopReason.TRIALS)
    assert (outcome.storage, outcome.folder) == (lab.url, lab.files.path)


def test_study_without_a_name_gets_one_of_its_model_and_data(lab):
    assert lab.search(trials=0, name=None).study_name == "tiny-rows"


def test_search_works_outside_the_main_thread(lab):
    outcomes = []
    thread = threading.Thread(target=lambda: outcomes.append(lab.search(trials=1)))
    thread.start()
    thread.join()
    assert outcomes[0].stop_reason is StopReason.TRIALS


def test_rerun_of_a_finished_study_opens_no_worker_and_costs_nothing(lab):
    lab.search(trials=1)
    seconds = lab.store().active_seconds()
    lab.script.requests.clear()
    assert lab.search(trials=1).stop_reason is StopReason.TRIALS
    assert not any(isinstance(request, Open) for request in lab.script.requests)
    assert lab.store().active_seconds() == seconds
    assert all(worker.is_closed for worker in lab.script.workers)


def test_what_a_model_does_not_allow_is_stored_and_told_when_a_study_goes_on(lab):
    facts = make_facts()
    (model,) = facts.checkpoints
    model = dataclasses.replace(model, fallbacks=("`A` is not packed.",), batching="bucketed")
    lab.script.facts = dataclasses.replace(facts, checkpoints=(model,))
    lab.search(trials=1)
    lab.search(trials=2)
    assert lab.store().record.facts.checkpoints == (model,)
    told = [(facts.checkpoints, is_resumed) for facts, is_resumed in lab.listener.facts]
    assert told == [((model,), False), ((model,), True)]


def test_as_many_workers_open_as_were_counted_and_it_is_told(lab):
    lab.script.num_workers = 2
    lab.search(trials=9, workers="auto")
    openings = [request for request in lab.script.requests if isinstance(request, Open)]
    assert [(opening.slot, opening.config.workers) for opening in openings] == [(0, 2), (1, 2)]
    assert "`workers: auto`: 2 trials at a time." in lab.listener.messages
    assert lab.store().record.config.workers == "auto"


def test_one_worker_says_that_more_are_not_faster(lab):
    lab.search(trials=8, workers="auto")
    assert CountWorkers(most=2) in lab.script.requests
    assert "`workers: auto`: 1 trial at a time, as more would hardly be faster." in (
        lab.listener.messages
    )


def test_where_few_trials_are_left_nothing_is_timed(lab):
    lab.search(trials=4, workers=1)
    lab.search(trials=11, workers="auto")
    assert not any(isinstance(request, CountWorkers) for request in lab.script.requests)
    assert "`workers: auto`: 1 trial at a time, as few are left." in lab.listener.messages


def test_a_number_of_workers_is_not_measured(lab):
    lab.search(trials=1, workers=2)
    assert not any(isinstance(request, CountWorkers) for request in lab.script.requests)


def test_set_up_counts_as_active_time(lab, monkeypatch):
    clock = iter(range(0, 10_000, 5))
    monkeypatch.setattr(run.time, "monotonic", lambda: float(next(clock)))
    lab.search(trials=0)
    assert lab.store().active_seconds() >= 5


@pytest.mark.parametrize(
    ("epochs", "most"),
    [
        ({"low": 1, "high": 7, "default": 3}, 7),
        ({"choices": [2, 5, 3], "default": 3}, 5),
        (4, 4),
        (None, 3),
    ],
    ids=["range", "choices", "fixed", "not named"],
)
def test_longest_trial_of_a_space(epochs, most):
    space = {**SPACE, "epochs": epochs}
    if epochs is None:
        del space["epochs"]
    assert run._most_epochs(load_space(space)) == most


def test_pruner_knows_at_which_steps_trials_report(lab, monkeypatch):
    seen = []
    real = run.make_pruner
    monkeypatch.setattr(run, "make_pruner", lambda *args: [seen.append(args), real(*args)][1])
    lab.script.validations_per_epoch = 4
    lab.search(trials=1, pruner="hyperband", validations_per_epoch=4)
    ((name, settings),) = seen
    assert (name, settings.min_resource, settings.max_resource) == ("hyperband", 25, 200)
    assert min(lab.trials()[0].intermediate_values) == settings.min_resource
    assert max(lab.trials()[0].intermediate_values) == settings.max_resource


def test_pruner_knows_when_a_model_is_validated_in_every_other_epoch_only(lab, monkeypatch):
    seen = []
    real = run.make_pruner
    monkeypatch.setattr(run, "make_pruner", lambda *args: [seen.append(args), real(*args)][1])
    lab.script.facts = dataclasses.replace(make_facts(), validations_per_epoch=0.5)
    lab.search(trials=1)
    assert seen[0][1].min_resource == 200


@pytest.mark.parametrize("pruner", ["successive_halving", "hyperband", "median", "patient", "none"])
def test_search_ends_with_every_pruner(lab, pruner):
    lab.search(trials=8, pruner=pruner)
    assert lab.states()[0] == "COMPLETE"
    assert set(lab.states()) <= {"COMPLETE", "PRUNED"}


@pytest.mark.parametrize("sampler", ["tpe", "random", "qmc", "cmaes", "grid"])
def test_search_ends_with_every_sampler(lab, sampler):
    lab.search(trials=6, sampler=sampler, pruner="none")
    assert lab.states() == ["COMPLETE"] * 6


def test_outcome_is_a_value():
    names = [field.name for field in dataclasses.fields(run.SearchOutcome)]
    assert names == ["study_name", "stop_reason", "storage", "folder"]
