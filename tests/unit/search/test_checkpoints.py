"""Which checkpoints stay on disk."""

import dataclasses
from datetime import UTC, datetime

import pytest
from optuna.trial import TrialState

from automl_ft.search.checkpoints import Shelf
from automl_ft.search.enqueue import enqueue
from automl_ft.space.load import load_space
from automl_ft.space.resolve import resolve
from automl_ft.specs.trial import Outcome, TrialCost, TrialResult
from automl_ft.storage.records import StudyRecord
from automl_ft.storage.studies import open_database
from tests.fakes.scripted_worker import make_facts

FILES = ("best.safetensors", "last.pt", "validation_logits.npy")


@pytest.fixture
def store(lab):
    """A study without trials."""
    config = lab.config()
    database = open_database(lab.url)
    yield database.create(
        StudyRecord(
            name="demo",
            config=config,
            facts=make_facts(),
            space=resolve(load_space(config.space), {"num_layers": 4}).to_plain(),
            objective=config.objective,
            created_at=datetime(2026, 1, 2, tzinfo=UTC),
        )
    )
    database.close()


@pytest.fixture
def make_shelf(lab, store):
    def make(keep=3):
        return Shelf(store, lab.files, lab.config(keep_checkpoints=keep))

    return make


@pytest.fixture
def end(lab, store):
    """Run a trial to some end, with all its files on disk."""

    def run(outcome, value=0.5):
        number = enqueue(store, {})
        store.claim(number)
        store.report(number, 50, 0.5 if value is None else value)
        folder = lab.files.trial(number)
        folder.mkdir(parents=True)
        for name in FILES:
            (folder / name).write_text("x" * 10)
        state = {
            Outcome.COMPLETE: TrialState.COMPLETE,
            Outcome.PRUNED: TrialState.PRUNED,
            Outcome.FAILED: TrialState.FAIL,
        }.get(outcome)
        if state is None:
            store.release(number)
        else:
            store.finish(number, state, value if state is TrialState.COMPLETE else None)
        return TrialResult(
            number=number,
            outcome=outcome,
            value=value,
            best_step=50,
            metrics={},
            evaluations=(),
            cost=TrialCost(seconds=1.0, examples=1, peak_memory_mib=1.0),
        )

    return run


def names(lab, number):
    folder = lab.files.trial(number)
    return tuple(sorted(path.name for path in folder.iterdir())) if folder.exists() else None


def ledger(store):
    return [(record.trial_number, record.kind) for record in store.checkpoints.all()]


def test_complete_trial_keeps_its_best_model_and_its_scores(lab, store, make_shelf, end):
    make_shelf().tidy(end(Outcome.COMPLETE, 0.75))
    assert names(lab, 0) == ("best.safetensors", "validation_logits.npy")
    (record,) = store.checkpoints.all()
    assert (record.kind, record.num_bytes, record.value) == ("best", 10, 0.75)
    assert record.path == lab.files.trial(0) / "best.safetensors"


def test_paused_trial_keeps_everything(lab, store, make_shelf, end):
    make_shelf().tidy(end(Outcome.PAUSED))
    assert names(lab, 0) == FILES
    assert ledger(store) == [(0, "last")]


@pytest.mark.parametrize("outcome", [Outcome.PRUNED, Outcome.FAILED])
def test_trial_that_was_given_up_keeps_nothing(lab, store, make_shelf, end, outcome):
    make_shelf().tidy(end(outcome))
    assert names(lab, 0) is None
    assert ledger(store) == []


def test_ledger_of_a_paused_trial_is_cleared_when_it_is_pruned(store, make_shelf, end):
    shelf = make_shelf()
    result = end(Outcome.PAUSED)
    shelf.tidy(result)
    shelf.tidy(dataclasses.replace(result, outcome=Outcome.PRUNED))
    assert ledger(store) == []


def test_only_the_best_models_are_kept_and_all_scores(lab, store, make_shelf, end):
    shelf = make_shelf(keep=2)
    for value in (0.5, 0.9, 0.7, 0.6):
        shelf.tidy(end(Outcome.COMPLETE, value))
    assert ledger(store) == [(1, "best"), (2, "best")]
    kept = [names(lab, number) for number in range(4)]
    assert kept[0] == kept[3] == ("validation_logits.npy",)
    assert kept[1] == kept[2] == ("best.safetensors", "validation_logits.npy")


def test_smaller_number_of_models_takes_effect_with_the_next_trial(store, make_shelf, end):
    for value in (0.5, 0.9, 0.7):
        make_shelf(keep=3).tidy(end(Outcome.COMPLETE, value))
    make_shelf(keep=1).tidy(end(Outcome.COMPLETE, 0.1))
    assert ledger(store) == [(1, "best")]


def test_trial_without_files_leaves_no_entry(lab, store, make_shelf, end):
    result = end(Outcome.COMPLETE)
    lab.files.drop_trial(0)
    make_shelf().tidy(result)
    assert ledger(store) == []


def test_model_that_the_user_deleted_by_hand_is_no_problem(lab, store, make_shelf, end):
    shelf = make_shelf(keep=1)
    shelf.tidy(end(Outcome.COMPLETE, 0.5))
    lab.files.drop_trial(0)
    shelf.tidy(end(Outcome.COMPLETE, 0.9))
    assert ledger(store) == [(1, "best")]


def test_sweep_finishes_what_a_kill_interrupted(lab, store, make_shelf, end):
    end(Outcome.COMPLETE, 0.5)
    end(Outcome.PRUNED)
    end(Outcome.FAILED)
    end(Outcome.PAUSED)
    make_shelf().sweep()
    assert names(lab, 0) == ("best.safetensors", "validation_logits.npy")
    assert (names(lab, 1), names(lab, 2), names(lab, 3)) == (None, None, FILES)
    assert ledger(store) == [(0, "best")]


def test_sweep_keeps_no_more_models_than_wanted(lab, store, make_shelf, end):
    for value in (0.5, 0.9, 0.7):
        end(Outcome.COMPLETE, value)
    make_shelf(keep=1).sweep()
    assert ledger(store) == [(1, "best")]


def test_sweep_forgets_what_the_ledger_holds_of_trials_that_were_given_up(
    lab, store, make_shelf, end
):
    shelf = make_shelf()
    shelf.tidy(end(Outcome.PAUSED))
    store.finish(0, TrialState.FAIL)
    lab.files.drop_trial(0)
    shelf.sweep()
    assert ledger(store) == []


def test_sweep_of_a_tidy_study_changes_nothing(lab, store, make_shelf, end):
    shelf = make_shelf()
    shelf.tidy(end(Outcome.COMPLETE))
    shelf.tidy(end(Outcome.PAUSED))
    before = ledger(store), names(lab, 0), names(lab, 1)
    shelf.sweep()
    assert (ledger(store), names(lab, 0), names(lab, 1)) == before


def test_sweep_removes_half_written_files(lab, make_shelf, end):
    end(Outcome.PAUSED)
    torn = lab.files.trial(0) / ".last.pt.4711.0123abcd.tmp"
    torn.touch()
    make_shelf().sweep()
    assert not torn.exists()
