"""A search on a worker that answers at once, and what it says of the supervisor's time."""

from __future__ import annotations

import importlib
from pathlib import Path

import pytest

from automl_ft.search.run import run_search
from automl_ft.storage.studies import open_database

BENCHMARKS = Path(__file__).parents[3] / "benchmarks"


@pytest.fixture
def instant(monkeypatch):
    """The module of the benchmarks."""
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    return importlib.import_module("measuring.instant_worker")


def test_all_trials_of_the_budget_run_in_groups_and_are_timed(instant, tmp_path):
    workers = instant.InstantWorkers()
    study = instant.search_of(tmp_path, "random", "successive_halving", trials=12)
    run_search(study, factory=workers)
    database = open_database(study.storage)
    states = [trial.state.name for trial in database.load("supervisor").trials()]
    database.close()
    assert set(states) == {"COMPLETE", "PRUNED"}
    assert [size for _, size in workers.starts] == [8, 4]
    assert len(workers.waits) == 1
    assert 0 < workers.waits[0] < workers.starts[1][0] - workers.starts[0][0]
    assert workers.milliseconds_at(8, 8) > 0


def test_the_cost_at_a_place_is_that_of_the_whole_groups_before_it(instant):
    workers = instant.InstantWorkers(starts=[(0.0, 2), (1.0, 4), (3.0, 4), (3.5, 8)])
    assert workers.milliseconds_at(10, 4) == 125
    assert workers.milliseconds_at(10, 5) == 2500 / 8
    assert workers.milliseconds_at(6, 100) == 500
