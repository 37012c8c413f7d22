from __future__ import annotations

import pytest
from optuna.trial import TrialState

from automl_ft.errors import ExportError
from automl_ft.export.best import best_first, checkpoint_file, is_exportable, pick_trial
from automl_ft.specs.failure import FailureKind, TrialFailure


def test_the_best_complete_trial_is_picked(make_trial):
    trials = [make_trial(0, value=0.2), make_trial(1, value=0.9), make_trial(2, value=0.5)]
    assert pick_trial("s", trials).number == 1


def test_of_equal_values_the_first_is_picked(make_trial):
    assert pick_trial("s", [make_trial(3), make_trial(1), make_trial(2)]).number == 1


def test_a_negative_value_counts_as_a_value(make_trial):
    trials = [make_trial(0, value=-0.5), make_trial(1, value=-0.1)]
    assert [trial.number for trial in best_first(trials)] == [1, 0]


def test_a_better_pruned_trial_is_passed_over(make_trial):
    pruned = make_trial(1, value=0.99, state=TrialState.PRUNED)
    assert pick_trial("s", [make_trial(0), pruned]).number == 0


def test_a_trial_that_somebody_added_through_optuna_is_passed_over(make_trial):
    foreign = make_trial(1, value=0.99, hyperparameters={}, seed=None)
    assert not is_exportable(foreign)
    assert pick_trial("s", [make_trial(0), foreign]).number == 0


def test_a_trial_can_be_asked_for_by_number(make_trial):
    assert pick_trial("s", [make_trial(0), make_trial(1, value=0.1)], 1).number == 1


def test_a_study_without_a_complete_trial_has_nothing_to_export(make_trial):
    trials = [make_trial(n, state=TrialState.PRUNED) for n in range(2)]
    with pytest.raises(ExportError, match=r"`s` has no complete trial \(2 pruned\)"):
        pick_trial("s", trials)
    with pytest.raises(ExportError, match="no trials at all"):
        pick_trial("s", [])


def test_an_unknown_number_lists_the_complete_trials_best_first(make_trial):
    trials = [make_trial(0, value=0.1), make_trial(1, value=0.2)]
    with pytest.raises(ExportError, match="no trial 7; accepted are 1, 0"):
        pick_trial("s", trials, 7)
    with pytest.raises(ExportError, match="accepted are none yet"):
        pick_trial("s", [], 7)


def test_a_long_list_of_numbers_is_cut(make_trial):
    with pytest.raises(ExportError, match=r"8, 9, \.\.\."):
        pick_trial("s", [make_trial(n) for n in range(12)], 99)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"state": TrialState.PRUNED}, "was pruned"),
        ({"state": TrialState.RUNNING}, "is still running"),
        ({"state": TrialState.WAITING}, "has not started"),
        ({"state": TrialState.WAITING, "intermediate_values": {5: 0.1}}, "is paused; rerun"),
        ({"state": TrialState.FAIL}, "failed"),
        (
            {
                "state": TrialState.FAIL,
                "failure": TrialFailure(kind=FailureKind.DIVERGED, message="loss is nan."),
            },
            r"failed \(diverged: loss is nan\)",
        ),
        ({"seed": None}, "was not run by automl-ft"),
    ],
)
def test_a_trial_that_is_not_complete_is_refused_with_its_condition(make_trial, changes, said):
    trials = [make_trial(0), make_trial(1, **changes)]
    with pytest.raises(ExportError, match=f"Trial 1 of study `s` {said}.*exported: 0. Leave out"):
        pick_trial("s", trials, 1)


def test_a_kept_checkpoint_is_found(tmp_path):
    path = tmp_path / "trials" / "4" / "best.safetensors"
    path.parent.mkdir(parents=True)
    path.touch()
    assert checkpoint_file("s", tmp_path, 4) == path


def test_a_checkpoint_that_is_no_longer_kept_says_how_to_get_it_back(tmp_path):
    with pytest.raises(ExportError, match="automl-ft enqueue s 4`, then `automl-ft search"):
        checkpoint_file("s", tmp_path, 4)
