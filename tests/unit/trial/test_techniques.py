"""All techniques are on for trials, and none for the reference."""

from __future__ import annotations

import dataclasses

import pytest

from automl_ft.trial.techniques import ALL, NONE, Techniques

NAMES = [field.name for field in dataclasses.fields(Techniques)]


@pytest.mark.parametrize("name", NAMES)
def test_each_is_on_for_trials_and_off_for_the_reference(name: str) -> None:
    assert getattr(ALL, name) is True
    assert getattr(NONE, name) is False


def test_there_are_some() -> None:
    assert len(NAMES) >= 7
    assert Techniques() == ALL
