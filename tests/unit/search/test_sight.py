"""What follows from one record is worked out once, and anew when the record changes."""

import copy
import dataclasses

import pytest
from optuna.storages import InMemoryStorage
from optuna.trial import TrialState

from automl_ft.config.study import SAMPLERS
from automl_ft.search.pruners import PrunerSettings, make_pruner
from automl_ft.search.sight import ShadowTrial, Sight, bare_trial, identity


@pytest.fixture
def record(space):
    params = space.complete({"freezing": "head_only", "dropout": 0.2})
    return ShadowTrial(
        number=3,
        params=params,
        state=TrialState.COMPLETE,
        value=0.5,
        intermediate_values={100: 0.4, 200: 0.5},
        system_attrs={"completed_rung_0": 0.4},
    )


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_a_shadow_that_has_seen_much_proposes_what_a_fresh_one_does(
    make_shadow, search, as_record, sampler
):
    used = make_shadow(sampler)
    records = search(used, 9)
    for _ in range(3):
        proposal = used.propose(records)
        assert proposal == make_shadow(sampler).propose(records)
        running = dataclasses.replace(
            as_record(proposal), state=TrialState.RUNNING, value=None, intermediate_values={}
        )
        records.append(running)
        used.propose(records)
        records[-1] = as_record(proposal)


@pytest.mark.parametrize("name", ["successive_halving", "hyperband", "median", "patient"])
def test_a_shadow_that_has_judged_much_judges_as_a_fresh_one_does(make_shadow, search, name):
    pruner = make_pruner(name, PrunerSettings(min_resource=100, max_resource=800))
    used = make_shadow()
    records = search(make_shadow(), 8)
    for step, value in ((100, 0.1), (200, 0.7), (400, 0.2)):
        curve = {**records[5].intermediate_values, step: value}
        records[5] = dataclasses.replace(
            records[5], state=TrialState.RUNNING, intermediate_values=curve
        )
        verdict = used.should_prune(pruner, records, 5)
        assert verdict == make_shadow().should_prune(pruner, records, 5)
        attrs = {**records[5].system_attrs, **verdict.system_attrs}
        records[5] = dataclasses.replace(records[5], system_attrs=attrs)


def test_no_shadow_is_built_where_nothing_is_pruned(make_shadow, search, monkeypatch):
    records = search(make_shadow(), 3)
    monkeypatch.setattr("optuna.create_study", None)
    pruner = make_pruner("none", PrunerSettings(min_resource=1, max_resource=1))
    verdict = make_shadow().should_prune(pruner, records, 1)
    assert (verdict.is_pruned, verdict.system_attrs) == (False, {})


def test_what_is_explored_is_worked_out_once_for_each_sampler(record, space):
    sight = Sight(record, space)
    first = sight.explored("tpe", is_grid=False)
    assert sight.explored("tpe", is_grid=False) is first
    assert first.params["dropout"] == 0.2
    assert sight.explored("qmc", is_grid=False).state is TrialState.PRUNED


def test_a_record_outside_the_space_is_not_explored(record, space):
    outside = dataclasses.replace(record, params={**record.params, "dropout": 0.9})
    assert Sight(outside, space).explored("tpe", is_grid=False) is None


def test_a_storage_changes_nothing_in_a_shared_trial(record):
    shared = bare_trial(record, TrialState.RUNNING)
    before = copy.copy(shared.__dict__)
    storage = InMemoryStorage()
    study = storage.create_new_study([1], "demo")
    trial_id = storage.create_new_trial(study, shared)
    storage.set_trial_system_attr(trial_id, "completed_rung_1", 0.5)
    storage.set_trial_intermediate_value(trial_id, 400, 0.6)
    assert shared.__dict__ == before
    assert shared.system_attrs == {"completed_rung_0": 0.4}
    assert (shared.number, storage.get_trial(trial_id).number) == (3, 0)


def test_numbers_that_print_alike_are_one_recipe(record, space):
    other = {**record.params, "dropout": 0.2 + 1e-16, "epochs": 3.0}
    assert identity(space, other) == identity(space, {**record.params, "epochs": 3})
