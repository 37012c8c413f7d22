"""Is the best trial better than the default recipe, and how sure is that?"""

import dataclasses
from datetime import UTC, datetime

import numpy as np
import pytest

from automl_ft.search.verdict import Verdict, compare_with_default, give_verdict
from automl_ft.storage.records import StudyRecord
from tests.fakes.records import make_trial
from tests.fakes.scripted_worker import make_facts

TARGETS = np.array([0, 1] * 50)


@pytest.fixture
def record(bare_lab):
    return StudyRecord(
        name="demo",
        config=bare_lab.config(),
        facts=make_facts(),
        space={},
        objective="accuracy",
        created_at=datetime(2026, 1, 2, tzinfo=UTC),
    )


@pytest.fixture
def files(bare_lab):
    """A study folder with the classes of the validation rows."""
    place = bare_lab.files.path / "data" / "encoded" / "tiny-1" / "validation"
    place.mkdir(parents=True)
    np.save(place / "labels.npy", TARGETS)
    return bare_lab.files


def scores(num_right):
    """Scores of a model that gets the last so many rows right."""
    right = np.arange(len(TARGETS)) >= len(TARGETS) - num_right
    return np.eye(2, dtype=np.float32)[np.where(right, TARGETS, 1 - TARGETS)]


def put_scores(files, number, values):
    files.trial(number).mkdir(parents=True, exist_ok=True)
    np.save(files.trial(number) / "validation_logits.npy", values)


def default(value=0.6, **changes):
    return make_trial(0, value=value, **{"origin": "default", **changes})


def make_verdict(**changes):
    values = {"best": 3, "default": 0, "best_value": 0.75, "default_value": 0.5, "low": 0.125}
    return Verdict(**{**values, "high": 0.375, "objective": "f1_macro", **changes})


def test_clear_gain_is_said_with_its_interval(record, files):
    put_scores(files, 0, scores(60))
    put_scores(files, 1, scores(90))
    verdict = give_verdict(record, [default(0.6), make_trial(1, value=0.9)], files)
    assert (verdict.best, verdict.default) == (1, 0)
    assert verdict.difference == pytest.approx(0.3)
    assert 0.15 < verdict.low < 0.3 < verdict.high < 0.45
    assert "it beats the default recipe" in verdict.text


def test_small_gain_may_be_chance(record, files):
    put_scores(files, 0, scores(89))
    put_scores(files, 1, np.roll(scores(90), 50, axis=0))
    verdict = give_verdict(record, [default(0.89), make_trial(1, value=0.9)], files)
    assert verdict.low < 0 < verdict.high
    assert verdict.text.endswith("the difference may be chance.")


def test_interval_is_repeatable_and_depends_on_the_study_s_seed(record):
    pair = scores(60), scores(70)
    first = compare_with_default(record, TARGETS, *pair)
    assert compare_with_default(record, TARGETS, *pair) == first
    config = dataclasses.replace(record.config, seed=1)
    other = dataclasses.replace(record, config=config)
    assert compare_with_default(other, TARGETS, *pair) != first


def test_equal_scores_have_an_empty_interval(record):
    assert compare_with_default(record, TARGETS, scores(70), scores(70)) == (0.0, 0.0)


@pytest.mark.parametrize("objective", ["f1_macro", "f1_micro", "f1_weighted", "f1_binary", "mcc"])
def test_interval_is_that_of_the_study_s_objective(record, objective):
    config = dataclasses.replace(record.config, positive_label="good")
    of_objective = dataclasses.replace(record, objective=objective, config=config)
    low, high = compare_with_default(of_objective, TARGETS, scores(90), scores(60))
    assert 0 < low < high


@pytest.mark.parametrize("missing", [0, 1])
def test_without_scores_there_is_a_verdict_without_an_interval(record, files, missing):
    put_scores(files, 1 - missing, scores(60))
    verdict = give_verdict(record, [default(), make_trial(1, value=0.9)], files)
    assert (verdict.low, verdict.high) == (None, None)
    assert verdict.text.endswith("(trial 0, 0.6000).")


def test_without_the_classes_there_is_no_interval(record, bare_lab):
    for number in (0, 1):
        put_scores(bare_lab.files, number, scores(60))
    verdict = give_verdict(record, [default(), make_trial(1, value=0.9)], bare_lab.files)
    assert (verdict.low, verdict.high) == (None, None)


def test_scores_of_another_split_or_torn_ones_do_not_count(record, files):
    put_scores(files, 0, scores(60))
    put_scores(files, 1, scores(90)[:10])
    trials = [default(), make_trial(1, value=0.9)]
    assert give_verdict(record, trials, files).low is None
    (files.trial(1) / "validation_logits.npy").write_bytes(b"\x93NUMPY")
    assert give_verdict(record, trials, files).low is None


def test_default_recipe_that_is_the_best_is_not_beaten(record, files):
    verdict = give_verdict(record, [default(0.6), make_trial(1, value=0.5)], files)
    assert (verdict.best, verdict.difference) == (0, 0.0)
    assert verdict.text == "No trial beats the default recipe (trial 0, accuracy 0.6000)."


def test_tie_goes_to_the_default_recipe(record, files):
    verdict = give_verdict(record, [default(0.6), make_trial(1, value=0.6)], files)
    assert verdict.best == 0


def test_default_recipe_with_a_luckier_seed_does_not_beat_itself(record, files):
    trials = [default(0.6), make_trial(1, value=0.9, origin="user", rerun_of=0)]
    assert "No trial beats the default recipe" in give_verdict(record, trials, files).text
    better = make_trial(2, value=0.7)
    assert give_verdict(record, [*trials, better], files).best == 2


@pytest.mark.parametrize(
    "trials",
    [
        [],
        [make_trial(0, value=0.5)],
        [make_trial(0, "RUNNING", origin="default")],
        [make_trial(0, "PRUNED", value=0.5, origin="default"), make_trial(1, value=0.9)],
        [make_trial(0, "FAIL", origin="default"), make_trial(1, value=0.9)],
    ],
    ids=["nothing", "no default", "default runs", "default pruned", "default failed"],
)
def test_there_is_no_verdict_before_the_default_recipe_is_complete(record, files, trials):
    assert give_verdict(record, trials, files) is None


def test_text_names_both_trials_their_values_and_the_interval():
    text = make_verdict().text
    for part in ("Trial 3", "f1_macro 0.7500", "0.2500", "trial 0, 0.5000", "+0.1250 to +0.3750"):
        assert part in text


def test_paused_trial_ahead_of_the_best_is_mentioned(record, files):
    paused = [
        make_trial(n, "WAITING", intermediate_values={1: value})
        for n, value in ((1, 0.7), (2, 0.8))
    ]
    verdict = give_verdict(record, [default(0.6), *paused], files)
    assert (verdict.paused, verdict.paused_value) == (2, 0.8)
    assert "Trial 2 is paused ahead of it at 0.8000" in verdict.text


def test_paused_trial_behind_the_best_is_not(record, files):
    paused = make_trial(1, "WAITING", intermediate_values={1: 0.5})
    verdict = give_verdict(record, [default(0.6), paused], files)
    assert verdict.paused is None
    assert "paused" not in verdict.text


def test_a_whole_search_gives_a_verdict(lab):
    lab.script.curve = lambda hyperparameters, epoch: (
        0.3 if hyperparameters["learning_rate"] == 1e-4 else 0.9
    )
    lab.search(trials=2, pruner="none")
    store = lab.store()
    verdict = give_verdict(store.record, store.trials(), lab.files)
    assert (verdict.best, verdict.best_value, verdict.default_value) == (1, 0.9, 0.3)
    assert verdict.low > 0
