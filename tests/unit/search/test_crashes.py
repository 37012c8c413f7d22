"""A supervisor that is killed at any call to its database loses nothing and repeats nothing."""

import shutil

import pytest
from optuna.trial import TrialState

from automl_ft.specs.decision import Decision
from automl_ft.storage.database import Database
from automl_ft.storage.schema import PRUNED_AT
from tests.fakes.lab import Lab
from tests.fakes.scripted_worker import ScriptedWorker

CALLS = range(3, 54, 5)
"""A sample of the 53 calls that the search below makes, to save time."""


class KilledError(BaseException):
    """Stands for kill -9: nothing catches it, and nothing is written after it."""


@pytest.fixture(scope="module")
def whole(tmp_path_factory, empty_database):
    """The trials of a search that nothing interrupted: one is complete, one pruned."""
    lab = Lab(tmp_path_factory.mktemp("whole"))
    lab.database_file.parent.mkdir()
    shutil.copy(empty_database, lab.database_file)
    search(lab)
    assert lab.states() == ["COMPLETE", "PRUNED"]
    yield lab.trials()
    lab.close()


def search(lab):
    lab.script.curve = lambda hyperparameters, epoch: (
        0.5 * epoch if hyperparameters["learning_rate"] == 1e-4 else 0.4 * epoch
    )
    lab.search(trials=2)


def kill_at(call):
    """Return a `Database.guarded` that ends the process at a call."""
    real, count = Database.guarded, 0

    def guarded(database, action):
        nonlocal count
        count += 1
        if count >= call:
            raise KilledError
        return real(database, action)

    return guarded


@pytest.mark.parametrize("call", CALLS)
def test_killed_search_ends_as_if_nothing_had_happened(lab, whole, monkeypatch, call):
    with monkeypatch.context() as patch:
        patch.setattr(Database, "guarded", kill_at(call))
        with pytest.raises(KilledError):
            search(lab)
    search(lab)
    for trial, other in zip(lab.trials(), whole, strict=True):
        assert (trial.number, trial.state, trial.value) == (other.number, other.state, other.value)
        assert trial.params == other.params
        assert (trial.seed, trial.origin) == (other.seed, other.origin)
        assert trial.intermediate_values == other.intermediate_values
        assert trial.metrics == other.metrics
    assert [(c.trial_number, c.kind) for c in lab.store().checkpoints.all()] == [(0, "best")]
    assert {path.name for path in lab.files.path.glob("trials/*")} == {"0"}
    assert not list(lab.files.path.glob("trials/*/last.pt"))


def test_decision_to_prune_outlives_a_kill(lab, monkeypatch):
    """The pruner has noted the trial as past the rung where it decided."""
    monkeypatch.setattr(ScriptedWorker, "decide", kill_on_prune(ScriptedWorker.decide))
    with pytest.raises(KilledError):
        search(lab)
    monkeypatch.undo()
    assert lab.states() == ["COMPLETE", "RUNNING"]
    search(lab)
    pruned = lab.trials()[1]
    assert pruned.state is TrialState.PRUNED
    assert list(pruned.intermediate_values) == [50]
    assert pruned.system_attrs[PRUNED_AT] == 50


def kill_on_prune(real):
    def decide(worker, number, decision):
        if decision is Decision.PRUNE:
            raise KilledError
        real(worker, number, decision)

    return decide
