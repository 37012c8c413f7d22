"""A small conditional space, and a simulated search over it from records only."""

import math

import pytest
from optuna.trial import TrialState

from automl_ft.search.shadow import ShadowStudy
from automl_ft.search.sight import ShadowTrial
from automl_ft.space.load import load_space
from automl_ft.space.resolve import resolve

_SPACE = {
    "freezing": {"choices": ["none", "bottom_layers", "head_only"], "default": "none"},
    "frozen_layers": {
        "low": 1,
        "high": "num_layers - 1",
        "default": "num_layers // 2",
        "when": {"freezing": "bottom_layers"},
    },
    "learning_rate": {
        "low": 1e-6,
        "high": 1e-1,
        "log": True,
        "prior": {
            "by": "freezing",
            "centers": {"none": 5e-5, "bottom_layers": 1e-4, "head_only": 3e-3},
            "spread": 10,
        },
    },
    "epochs": {"low": 1, "high": 4, "default": 3},
    "dropout": {"low": 0.0, "high": 0.4, "default": 0.1},
}


@pytest.fixture
def space():
    """A resolved conditional space."""
    return resolve(load_space(_SPACE), {"num_layers": 6})


@pytest.fixture
def make_shadow(space):
    """Build a shadow study."""

    def make(sampler="tpe", **changes):
        settings = {"space": space, "stored_space": space, "n_startup_trials": 4, **changes}
        return ShadowStudy(sampler=sampler, study_name="demo", **settings)

    return make


@pytest.fixture
def objective():
    """A simulated objective: best with nothing frozen and twice the centre's rate."""
    centers = _SPACE["learning_rate"]["prior"]["centers"]
    best = {"none": 0.9, "bottom_layers": 0.8, "head_only": 0.6}

    def value(params):
        distance = abs(math.log10(params["learning_rate"] / centers[params["freezing"]] / 2))
        return best[params["freezing"]] - 0.2 * distance - 0.1 * abs(params["dropout"] - 0.1)

    return value


@pytest.fixture
def as_record(objective):
    """Turn a proposal into the record of what became of it: every state occurs."""

    def record(proposal):
        number, value = proposal.number, objective(proposal.params)
        states = [
            TrialState.COMPLETE, TrialState.COMPLETE, TrialState.PRUNED, TrialState.COMPLETE,
            TrialState.FAIL, TrialState.WAITING, TrialState.COMPLETE, TrialState.PRUNED,
        ]  # fmt: skip
        state = states[number % len(states)]
        curve = {100: value - 0.1}
        if state == TrialState.COMPLETE:
            curve[200] = value
        return ShadowTrial(
            number=number,
            params=proposal.params,
            state=state,
            value=value if state == TrialState.COMPLETE else None,
            intermediate_values={} if state == TrialState.FAIL else curve,
            system_attrs=proposal.system_attrs,
        )

    return record


@pytest.fixture
def search(as_record):
    """Let a shadow propose until there are so many records, or nothing is left."""

    def go_on(shadow, num_trials, records=()):
        records = list(records)
        while len(records) < num_trials:
            proposal = shadow.propose(records)
            if proposal is None:
                break
            records.append(as_record(proposal))
        return records

    return go_on
