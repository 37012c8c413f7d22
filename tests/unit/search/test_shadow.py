import dataclasses
import logging
import time

import optuna
import pytest
from optuna.distributions import FloatDistribution, IntDistribution
from optuna.samplers import RandomSampler
from optuna.trial import TrialState

from automl_ft.config.study import SAMPLERS
from automl_ft.search import shadow as shadow_module
from automl_ft.search.pruners import PrunerSettings, make_pruner
from automl_ft.search.samplers import make_sampler
from automl_ft.search.sight import ShadowTrial
from automl_ft.space.growth import merge
from automl_ft.space.load import load_space

COMPLETE, PRUNED, RUNNING = TrialState.COMPLETE, TrialState.PRUNED, TrialState.RUNNING
FAIL, WAITING = TrialState.FAIL, TrialState.WAITING


def trial(number, params, state=COMPLETE, **fields):
    if state == COMPLETE:
        fields = {"value": 0.5, **fields}
    return ShadowTrial(number=number, params=params, state=state, **fields)


@pytest.fixture
def seen(make_shadow, monkeypatch):
    """What a sampler sees of records: the trials of the shadow, by number."""

    def look(records, sampler="random", **changes):
        shadows = []
        original = optuna.create_study

        def remember(**kwargs):
            shadows.append(original(**kwargs))
            return shadows[-1]

        monkeypatch.setattr(optuna, "create_study", remember)
        make_shadow(sampler, **changes).propose(records)
        return shadows[0].trials[: max(record.number for record in records) + 1]

    return look


@pytest.fixture
def configurations(space):
    """Ten different configurations."""
    return [space.complete({"dropout": 0.01 * i}) for i in range(10)]


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_fifteen_valid_and_different_configurations_in_a_conditional_space(
    make_shadow, search, space, sampler
):
    records = search(make_shadow(sampler), 15)
    assert [record.number for record in records] == list(range(15))
    assert all(space.validate_params(record.params) == [] for record in records)
    assert all(space.complete(record.params) == record.params for record in records)
    assert len({tuple(record.params.items()) for record in records}) == 15


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_a_resumed_search_proposes_what_an_uninterrupted_one_does(make_shadow, search, sampler):
    whole = search(make_shadow(sampler), 14)
    half = search(make_shadow(sampler), 9)
    assert search(make_shadow(sampler), 14, half) == whole


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_the_same_records_give_the_same_proposal(make_shadow, search, sampler):
    records = search(make_shadow(sampler), 9)
    assert make_shadow(sampler).propose(records) == make_shadow(sampler).propose(records)


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_another_seed_gives_another_search(make_shadow, search, sampler):
    one, other = (search(make_shadow(sampler, seed=seed), 6) for seed in (0, 1))
    assert [record.params for record in one] != [record.params for record in other]


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_nothing_reaches_the_log(make_shadow, search, sampler):
    lines = []
    handler = logging.Handler()
    handler.emit = lambda entry: lines.append(entry.getMessage())
    optuna.logging.set_verbosity(optuna.logging.INFO)
    logging.getLogger("optuna").addHandler(handler)
    try:
        search(make_shadow(sampler), 12)
    finally:
        logging.getLogger("optuna").removeHandler(handler)
    assert lines == []


def test_other_lines_of_the_log_still_come_through(caplog):
    optuna.logging.enable_propagation()
    try:
        with caplog.at_level(logging.INFO):
            optuna.create_study()
    finally:
        optuna.logging.disable_propagation()
    assert "A new study created in memory" in caplog.text


@pytest.mark.parametrize("sampler", ["tpe", "gp", "cmaes"])
def test_samplers_that_learn_end_up_better_than_chance(make_shadow, search, objective, sampler):
    def late_mean(name):
        records = search(make_shadow(name), 30)[-10:]
        return sum(objective(record.params) for record in records) / len(records)

    assert late_mean(sampler) > late_mean("random") + 0.03


def test_stored_distributions_come_with_the_proposal(make_shadow, search, space):
    proposal = make_shadow().propose([])
    assert proposal.distributions.keys() == proposal.params.keys()
    assert proposal.distributions["learning_rate"] == FloatDistribution(1e-6, 1e-1, log=True)


def test_stored_distributions_are_those_of_the_union(make_shadow, space):
    narrow = load_space({"epochs": {"low": 2, "high": 3, "default": 2}, "dropout": 0.1})
    union = merge(space, narrow)
    shadow = make_shadow(space=narrow, stored_space=union)
    assert shadow.propose([]).distributions == {"epochs": IntDistribution(1, 4)}


def test_proposal_fits_the_stored_study(make_shadow, search):
    study = optuna.create_study()
    for record in search(make_shadow(), 6):
        proposal = make_shadow().propose([])
        study.add_trial(
            optuna.create_trial(
                state=WAITING, params=dict(proposal.params),
                distributions=dict(proposal.distributions),
                system_attrs=dict(record.system_attrs),
            )
        )  # fmt: skip
    assert len(study.trials) == 6


def test_trials_stand_at_their_own_numbers(seen, configurations):
    trials = seen([trial(2, configurations[2]), trial(5, configurations[5])])
    assert [t.number for t in trials] == list(range(6))
    assert [t.state for t in trials] == [WAITING, WAITING, COMPLETE, WAITING, WAITING, COMPLETE]


def test_next_number_follows_the_largest(make_shadow, configurations):
    proposal = make_shadow().propose([trial(7, configurations[0])])
    assert proposal.number == 8


def test_a_paused_trial_counts_with_what_it_reached(seen, configurations):
    paused = trial(0, configurations[0], WAITING, intermediate_values={100: 0.7})
    assert paused.is_paused
    (found,) = seen([paused])
    assert (found.state, found.intermediate_values) == (PRUNED, {100: 0.7})


def test_a_new_trial_and_a_running_one_keep_others_away(seen, configurations):
    trials = seen(
        [
            trial(0, configurations[0], WAITING),
            trial(1, configurations[1], RUNNING, intermediate_values={100: 0.3}),
        ]
    )
    assert [t.state for t in trials] == [RUNNING, RUNNING]


def test_a_good_paused_trial_draws_tpe_near_and_is_not_avoided(make_shadow, space):
    def rates(state):
        records = []
        for i in range(12):
            good = i % 4 == 0
            params = space.complete({"learning_rate": 2e-4 if good else 1e-5, "dropout": 0.02 * i})
            curve = {100: 0.9 if good else 0.2}
            records.append(trial(i, params, state if good else PRUNED, intermediate_values=curve))
        shadows = (make_shadow(seed=seed) for seed in range(12))
        proposals = (shadow.propose(records) for shadow in shadows)
        prior = space.find("learning_rate")
        return [p.params["learning_rate"] / prior.default_given(p.params) for p in proposals]

    def near(found):
        return sum(1 < rate < 10 for rate in found)

    assert near(rates(WAITING)) > 9
    assert near(rates(RUNNING)) < near(rates(WAITING))


def test_failed_trials_are_not_reported_as_bad(seen, configurations):
    trials = seen([trial(0, configurations[0], FAIL), trial(1, configurations[1])], "tpe")
    assert [t.state for t in trials] == [FAIL, COMPLETE]


@pytest.mark.parametrize("value", [None, float("nan"), float("inf")])
def test_a_complete_trial_without_a_finite_value_counts_as_failed(seen, configurations, value):
    (found,) = seen([trial(0, configurations[0], value=value)])
    assert found.state == FAIL


def test_a_configuration_counts_once_at_its_furthest_value(seen, configurations):
    first, second, third = configurations[:3]
    trials = seen(
        [
            trial(0, first, PRUNED, intermediate_values={100: 0.3}),
            trial(1, second, value=0.6),
            trial(2, first, value=0.7),
            trial(3, second, value=0.9),
            trial(4, third, PRUNED, intermediate_values={100: 0.1}),
            trial(5, third, PRUNED, intermediate_values={100: 0.2, 200: 0.3}),
        ]
    )
    states = [t.state for t in trials]
    assert states == [WAITING, COMPLETE, COMPLETE, WAITING, WAITING, PRUNED]


def test_a_trial_outside_the_space_teaches_nothing_but_keeps_its_number(seen, configurations):
    outside = {**configurations[0], "epochs": 9}
    trials = seen([trial(0, outside), trial(1, configurations[1])])
    assert [t.state for t in trials] == [WAITING, COMPLETE]


FIXED = {"epochs": {"low": 1, "high": 2, "default": 1}, "weight_decay": 0.1}


@pytest.mark.parametrize(
    "change",
    [{"weight_decay": 0.0}, {"batch_size": 8}],
    ids=["set to something else", "no longer named"],
)
def test_a_trial_of_another_recipe_teaches_nothing(seen, change):
    space = load_space(FIXED)
    recipes = [space.hyperparameters({"epochs": epochs}) for epochs in (1, 2)]
    trials = seen(
        [trial(0, {**recipes[0], **change}), trial(1, recipes[1])], space=space, stored_space=space
    )
    assert [t.state for t in trials] == [WAITING, COMPLETE]


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_a_configuration_is_new_where_a_fixed_value_changed_since(make_shadow, sampler):
    space = load_space(FIXED)
    shadow = make_shadow(sampler, space=space, stored_space=space)
    records = [
        trial(n, {**space.hyperparameters({"epochs": n + 1}), "weight_decay": 0.0})
        for n in range(2)
    ]
    found = set()
    while (proposal := shadow.propose(records)) is not None:
        found.add(proposal.params["epochs"])
        params = space.hyperparameters(proposal.params)
        records.append(trial(proposal.number, params, system_attrs=proposal.system_attrs))
        assert len(records) <= 4
    assert found == {1, 2}


def test_a_parameter_that_is_searched_since_counts_with_what_it_was_set_to(seen):
    old = load_space({**FIXED, "weight_decay": 0.1})
    grown = load_space({**FIXED, "weight_decay": {"low": 0.0, "high": 0.2, "default": 0.0}})
    (found,) = seen([trial(0, old.hyperparameters({"epochs": 1}))], space=grown, stored_space=grown)
    assert found.params == {"epochs": 1, "weight_decay": 0.1}


def test_full_hyperparameters_do_as_params(seen, space, configurations):
    (found,) = seen([trial(0, space.hyperparameters(configurations[0]))])
    assert found.params.keys() == configurations[0].keys()


def test_the_rate_is_seen_relative_to_its_centre(seen, space):
    trials = seen(
        [
            trial(0, space.complete({"learning_rate": 1e-4})),
            trial(1, space.complete({"freezing": "head_only", "learning_rate": 6e-3})),
        ]
    )
    assert [t.params["learning_rate"] for t in trials] == [pytest.approx(2.0), pytest.approx(2.0)]


@pytest.mark.parametrize("sampler", ["gp", "cmaes"])
def test_samplers_that_ignore_pruned_trials_see_them_complete(seen, configurations, sampler):
    curve = {100: 0.4, 200: 0.6, 300: 0.5}
    (found,) = seen([trial(0, configurations[0], PRUNED, intermediate_values=curve)], sampler)
    assert (found.state, found.value) == (COMPLETE, 0.6)


def test_a_space_without_ranges_is_exhausted_by_its_one_configuration(make_shadow):
    space = load_space({"epochs": 3, "batch_size": 16})
    for sampler in SAMPLERS:
        shadow = make_shadow(sampler, space=space, stored_space=space)
        assert shadow.propose([]).params == {}
        assert shadow.propose([trial(0, {})]) is None


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_every_sampler_tries_all_of_a_finite_space_and_stops(make_shadow, sampler):
    space = load_space(
        {
            "freezing": {"choices": ["none", "head_only"], "default": "none"},
            "epochs": {"low": 1, "high": 3},
            "reinit_layers": {"low": 0, "high": 1, "when": {"freezing": "none"}},
        }
    )
    shadow = make_shadow(sampler, space=space, stored_space=space)
    records = [trial(0, space.default_params())]
    while (proposal := shadow.propose(records)) is not None:
        attrs = proposal.system_attrs
        records.append(trial(proposal.number, proposal.params, system_attrs=attrs))
        assert len(records) <= 9
    assert len({tuple(record.params.items()) for record in records}) == 9


def test_the_grid_is_exhausted_even_where_clipping_makes_points_equal(make_shadow):
    space = load_space(
        {
            "freezing": {"choices": ["none", "head_only"], "default": "none"},
            "learning_rate": {
                "low": 4e-5, "high": 1e-2, "log": True,
                "prior": {
                    "by": "freezing", "centers": {"none": 5e-5, "head_only": 1e-2}, "spread": 10,
                },
            },
        }
    )  # fmt: skip
    shadow = make_shadow("grid", space=space, stored_space=space)
    records = []
    while (proposal := shadow.propose(records)) is not None:
        state = FAIL if len(records) % 2 else COMPLETE
        records.append(trial(proposal.number, proposal.params, state))
    found = sorted(record.params["learning_rate"] for record in records)
    assert found == pytest.approx([4e-5, 5e-5, 1.077e-4, 4.642e-3, 1e-2], rel=1e-3)


class Stubborn(RandomSampler):
    """A sampler that only ever proposes the lowest value."""

    def sample_independent(self, study, trial, param_name, param_distribution):
        return param_distribution.to_external_repr(getattr(param_distribution, "low", 0))


def test_a_sampler_that_insists_is_overruled_by_chance(make_shadow, monkeypatch):
    def stubborn(name, settings):
        return Stubborn(seed=0) if name == "tpe" else make_sampler(name, settings)

    monkeypatch.setattr(shadow_module, "make_sampler", stubborn)
    first = make_shadow("tpe").propose([])
    second = make_shadow("tpe").propose([trial(0, first.params)])
    assert first.params["dropout"] == 0.0
    assert second.params != first.params


def test_configurations_off_the_grid_do_not_disturb_it(make_shadow, search, space):
    odd = trial(0, space.complete({"learning_rate": 7.7e-5, "dropout": 0.33}))
    records = search(make_shadow("grid"), 6, [odd])
    assert len(records) == 6


def test_cma_es_stores_its_state_and_goes_on_from_it(make_shadow, search):
    records = search(make_shadow("cmaes"), 30)
    generations = [record.system_attrs.get("cma:generation") for record in records[1:]]
    assert max(generations) >= 2
    assert any("cma:optimizer:0" in record.system_attrs for record in records)


def test_cma_es_begins_anew_when_the_space_changed(make_shadow, search, space):
    records = search(make_shadow("cmaes"), 20)
    grown = load_space(
        {
            "dropout": {"low": 0.0, "high": 0.8, "default": 0.1},
            "weight_decay": {"low": 0.0, "high": 0.1, "default": 0.0},
        }
    )
    wider = merge(space, grown)
    shadow = make_shadow("cmaes", space=wider, stored_space=wider)
    assert shadow.propose(records).system_attrs["cma:generation"] == 0


def test_qmc_walks_along_its_sequence_with_what_the_trials_store(make_shadow, search):
    records = search(make_shadow("qmc"), 6)
    positions = [
        value
        for record in records
        for key, value in record.system_attrs.items()
        if key.startswith("qmc:")
    ]
    assert positions == [0, 1, 2, 3, 4]


def test_samplers_write_attributes_that_the_database_can_hold(make_shadow, search):
    for sampler in SAMPLERS:
        for record in search(make_shadow(sampler), 12):
            assert all(len(str(value)) < 2046 for value in record.system_attrs.values())


def test_rungs_of_a_trial_are_handed_back_once(make_shadow):
    pruner = make_pruner("successive_halving", PrunerSettings(min_resource=100, max_resource=400))
    running = trial(0, {}, RUNNING, intermediate_values={100: 0.5})
    first = make_shadow().should_prune(pruner, [running], 0)
    assert first.system_attrs == {"completed_rung_0": 0.5}
    later = dataclasses.replace(
        running, intermediate_values={100: 0.5, 200: 0.6}, system_attrs=first.system_attrs
    )
    assert make_shadow().should_prune(pruner, [later], 0).system_attrs == {"completed_rung_1": 0.6}


def test_pruning_compares_with_paused_failed_and_repeated_trials_too(make_shadow):
    pruner = make_pruner("successive_halving", PrunerSettings(min_resource=100, max_resource=400))
    rung = {"completed_rung_0": 0.8}
    others = [
        trial(0, {"epochs": 1}, WAITING, intermediate_values={100: 0.8}, system_attrs=rung),
        trial(1, {"epochs": 1}, FAIL, intermediate_values={100: 0.8}, system_attrs=rung),
    ]
    judged = trial(4, {}, RUNNING, intermediate_values={100: 0.7})
    assert make_shadow().should_prune(pruner, [*others, judged], 4).is_pruned
    good = trial(4, {}, RUNNING, intermediate_values={100: 0.9})
    assert not make_shadow().should_prune(pruner, [*others, good], 4).is_pruned


def test_hyperband_puts_a_trial_into_the_bracket_of_its_own_number(make_shadow):
    def rungs(number):
        pruner = make_pruner("hyperband", PrunerSettings(min_resource=100, max_resource=900))
        judged = trial(number, {}, RUNNING, intermediate_values={100: 0.5})
        return bool(make_shadow().should_prune(pruner, [judged], number).system_attrs)

    found = [rungs(number) for number in range(12)]
    assert True in found
    assert False in found
    assert found == [rungs(number) for number in range(12)]


def test_judging_an_unknown_trial_is_refused(make_shadow):
    pruner = make_pruner("none", PrunerSettings(min_resource=1, max_resource=1))
    with pytest.raises(KeyError, match="3"):
        make_shadow().should_prune(pruner, [], 3)


def test_records_are_not_changed(make_shadow, search):
    records = search(make_shadow("cmaes"), 10)
    copies = [dataclasses.replace(record) for record in records]
    make_shadow("cmaes").propose(records)
    assert records == copies


def test_proposing_with_many_records_is_quick(make_shadow, space):
    records = [
        trial(i, space.complete({"dropout": 0.4 * i / 200}), value=i / 200) for i in range(200)
    ]
    make_shadow().propose(records[:20])
    start = time.perf_counter()
    make_shadow().propose(records)
    assert time.perf_counter() - start < 1.0
