"""`automl_ft.search` is the package of the engine and the function that searches."""

import functools
import subprocess
import sys

import automl_ft
import automl_ft.search.run
from automl_ft.search.events import StopReason


def test_package_can_be_called(lab, monkeypatch):
    scripted = functools.partial(automl_ft.search.run.run_search, factory=lab.script)
    monkeypatch.setattr(automl_ft.search.run, "run_search", scripted)
    outcome = automl_ft.search(lab.config(trials=0))
    assert outcome.stop_reason is StopReason.TRIALS
    assert outcome.study_name == "demo"


def test_package_is_still_a_package():
    assert automl_ft.search.run.run_search is automl_ft.search.run.run_search
    assert automl_ft.search.__path__


def test_supervisor_imports_no_torch():
    program = "import automl_ft.api, automl_ft.search.run, sys; print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.stdout.strip() == "False", done.stderr
