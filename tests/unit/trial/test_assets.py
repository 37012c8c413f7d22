"""What a process knows of a checkpoint it finds out once, for all of its trials."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import pytest

from automl_ft.data.encoding import EncodedSplit
from automl_ft.trial import assets
from automl_ft.trial.assets import assets_of
from automl_ft.trial.prepare import PreparedStudy


@pytest.fixture
def fresh(study: PreparedStudy) -> PreparedStudy:
    """The study as another process opens it."""
    return dataclasses.replace(study, assets={})


def look(study: PreparedStudy) -> Any:
    opened = study.checkpoint(None)
    return assets_of(study, opened, study.load_model(opened, dropout=0.0, seed=0))


def with_tokens(study: PreparedStudy, *tokens: int) -> PreparedStudy:
    """Return a study whose rows hold these tokens only."""
    (name,) = study.checkpoints
    opened = study.checkpoint(None)

    def only(split: EncodedSplit) -> EncodedSplit:
        return dataclasses.replace(split, input_ids=np.resize(tokens, len(split.input_ids)))

    splits = {key: only(split) for key, split in opened.splits.items()}
    changed = dataclasses.replace(opened, splits=splits)
    return dataclasses.replace(study, checkpoints={name: changed}, assets={})


def test_a_checkpoint_is_looked_at_once(
    fresh: PreparedStudy, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = look(fresh)
    monkeypatch.setattr(assets, "find_capabilities", None)
    monkeypatch.setattr(assets, "find_vocabulary", None)
    assert look(fresh) is first


def test_the_vocabulary_is_that_of_both_splits_and_of_what_may_replace(
    fresh: PreparedStudy,
) -> None:
    study = with_tokens(fresh, 7, 30)
    replacement = study.checkpoint(None).replacement_token_id
    assert replacement == 4
    assert look(study).vocabulary.tokens.tolist() == [0, 1, 4, 7, 30]


def test_a_vocabulary_that_is_mostly_in_use_stays_whole(fresh: PreparedStudy) -> None:
    assert look(with_tokens(fresh, *range(60))).vocabulary is None


def test_a_looked_at_model_gives_the_scores_that_it_gave(fresh: PreparedStudy) -> None:
    opened = fresh.checkpoint(None)
    loaded = fresh.load_model(opened, dropout=0.0, seed=0)
    before = {name: value.clone() for name, value in loaded.model.state_dict().items()}
    assets_of(fresh, opened, loaded)
    after = loaded.model.state_dict()
    assert all((after[name] == value).all() for name, value in before.items())
    assert not loaded.model.training
    assert all(parameter.grad is None for parameter in loaded.model.parameters())
