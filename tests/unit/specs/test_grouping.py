"""Which trials may be trained together."""

import pytest

from automl_ft.specs.grouping import MAX_STACKED, stack_key

HEAD = {"freezing": "head_only", "model": "tiny"}


def test_trials_of_one_model_that_train_the_head_only_have_equal_keys():
    other = {"learning_rate": 0.1, "epochs": 9, "batch_size": 4, "dropout": 0.5, "l1": 1e-3}
    assert stack_key(HEAD) == stack_key({**HEAD, **other}) is not None


def test_trials_of_different_models_have_different_keys():
    assert stack_key(HEAD) != stack_key({**HEAD, "model": "small"})


@pytest.mark.parametrize("freezing", ["none", "embeddings", "bottom_layers", "gradual_unfreezing"])
def test_trial_that_trains_more_than_the_head_has_no_key(freezing):
    assert stack_key({**HEAD, "freezing": freezing}) is None


@pytest.mark.parametrize(
    "name", ["token_dropout", "word_swap", "word_deletion", "mixup", "reinit_layers"]
)
def test_trial_with_features_of_its_own_has_no_key(name):
    assert stack_key({**HEAD, name: 1}) is None
    assert stack_key({**HEAD, name: 0}) is not None


def test_what_is_not_given_counts_as_its_neutral_default():
    assert stack_key({}) is None
    assert stack_key({"freezing": "head_only"}) == (None,)


def test_name_of_another_version_is_no_error():
    assert stack_key({**HEAD, "of_tomorrow": 1}) == stack_key(HEAD)


def test_group_has_the_measured_size():
    assert MAX_STACKED == 8
