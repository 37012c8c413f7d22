"""The silent listener takes whatever the engine says; how several trials are named."""

import inspect

import pytest

from automl_ft.search.events import SearchListener, SilentListener, trial_names
from automl_ft.search.run import run_search


def test_silent_listener_answers_to_everything_a_listener_is_told(lab, capsys):
    run_search(lab.config(trials=2), factory=lab.script)
    said = capsys.readouterr()
    assert (said.out, said.err) == ("", "")
    assert lab.states() == ["COMPLETE", "COMPLETE"] or "PRUNED" in lab.states()


def test_silent_listener_has_the_signatures_of_the_protocol():
    names = [name for name in vars(SearchListener) if not name.startswith("_")]
    assert len(names) == 6
    for name in names:
        silent = inspect.signature(getattr(SilentListener, name))
        assert silent == inspect.signature(getattr(SearchListener, name))


@pytest.mark.parametrize(
    ("numbers", "names"),
    [
        ([3], "trial 3"),
        ([3, 4], "trials 3-4"),
        ([1, 3, 4, 5, 9], "trials 1, 3-5, 9"),
    ],
)
def test_trials_are_named_by_ranges(numbers, names):
    assert trial_names(numbers) == names
