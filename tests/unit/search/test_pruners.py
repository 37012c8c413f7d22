import pytest
from optuna.trial import TrialState

from automl_ft.config.study import PRUNERS
from automl_ft.search.pruners import PrunerSettings, make_pruner
from automl_ft.search.sight import ShadowTrial

STEP = 100
VALIDATIONS = 8
ACTIVE = [name for name in PRUNERS if name != "none"]


@pytest.fixture
def settings():
    return PrunerSettings(min_resource=STEP, max_resource=STEP * VALIDATIONS)


@pytest.fixture
def run(settings, make_shadow):
    """Run trials one after another, each until it is pruned; a trial rises to its final value."""

    def run_all(name, finals, scheme=None):
        shadow, pruner, records = make_shadow(), make_pruner(name, settings), []
        curve = scheme or (lambda final, i: final * (0.5 + 0.5 * i / VALIDATIONS))
        for number, final in enumerate(finals):
            values, attrs, pruned = {}, {}, False
            for i in range(1, VALIDATIONS + 1):
                values[STEP * i] = curve(final, i)
                trial = ShadowTrial(
                    number=number, params={}, state=TrialState.RUNNING,
                    intermediate_values=dict(values), system_attrs=dict(attrs),
                )  # fmt: skip
                decision = shadow.should_prune(pruner, [*records, trial], number)
                attrs.update(decision.system_attrs)
                if decision.is_pruned:
                    pruned = True
                    break
            records.append(
                ShadowTrial(
                    number=number, params={}, value=None if pruned else max(values.values()),
                    state=TrialState.PRUNED if pruned else TrialState.COMPLETE,
                    intermediate_values=values, system_attrs=attrs,
                )
            )  # fmt: skip
        return records

    return run_all


GOOD, BAD = 0.95, 0.1
USUAL = [0.8, 0.81, 0.82, 0.83, 0.84, 0.85, 0.86, 0.87]


def fading(final, i):
    """A curve that falls after its first validation."""
    return final * (1 - 0.05 * i)


@pytest.mark.parametrize("name", PRUNERS)
def test_a_clearly_good_trial_is_kept(run, name):
    assert run(name, [*USUAL, GOOD])[-1].state == TrialState.COMPLETE


@pytest.mark.parametrize("name", ["successive_halving", "hyperband", "median"])
def test_a_clearly_bad_trial_is_pruned(run, name):
    last = run(name, [*USUAL, BAD])[-1]
    assert last.state == TrialState.PRUNED


def test_patient_prunes_a_bad_trial_only_when_it_stops_improving(run):
    assert run("patient", [*USUAL, BAD])[-1].state == TrialState.COMPLETE
    assert run("patient", [*USUAL, BAD], fading)[-1].state == TrialState.PRUNED


def test_none_prunes_nothing(run):
    assert all(r.state == TrialState.COMPLETE for r in run("none", [*USUAL, BAD]))


@pytest.mark.parametrize("name", PRUNERS)
def test_the_first_trial_is_never_pruned(run, name):
    assert run(name, [BAD])[0].state == TrialState.COMPLETE


def test_halving_compares_at_validations_1_2_4_8(run):
    attrs = run("successive_halving", [0.8])[0].system_attrs
    rungs = {key: value for key, value in attrs.items() if key.startswith("completed_rung_")}
    heights = [0.8 * (0.5 + 0.5 * i / VALIDATIONS) for i in (1, 2, 4, 8)]
    assert list(rungs.values()) == pytest.approx(heights)


def test_halving_prunes_a_bad_trial_at_its_first_validation(run):
    last = run("successive_halving", [*USUAL, BAD])[-1]
    assert list(last.intermediate_values) == [STEP]


def test_a_step_just_after_a_rung_counts_for_it(make_shadow):
    pruner = make_pruner("successive_halving", PrunerSettings(min_resource=100, max_resource=800))
    trial = ShadowTrial(
        number=0, params={}, state=TrialState.RUNNING, intermediate_values={101: 0.5, 203: 0.6}
    )
    decision = make_shadow().should_prune(pruner, [trial], 0)
    assert decision.system_attrs == {"completed_rung_0": 0.6, "completed_rung_1": 0.6}


def test_median_spares_the_first_validation(run):
    last = run("median", [*USUAL, BAD])[-1]
    assert list(last.intermediate_values) == [STEP, 2 * STEP]


def test_unknown_pruner_is_refused(settings):
    with pytest.raises(KeyError, match="threshold"):
        make_pruner("threshold", settings)


def test_a_space_with_the_shortest_trials_only_still_has_a_hyperband():
    make_pruner("hyperband", PrunerSettings(min_resource=100, max_resource=1))
