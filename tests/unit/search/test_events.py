"""The silent listener takes whatever the engine says."""

import inspect

from automl_ft.search.events import SearchListener, SilentListener
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
