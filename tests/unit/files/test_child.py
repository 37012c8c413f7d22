"""What lies beside the user's data must not run in our processes."""

import json
import os
import subprocess
import sys

import pytest

from automl_ft.cli.checkup import check_devices
from automl_ft.files.child import child_command, child_environment


def run(module, *words, text="", options=(), **changes):
    python, *rest = child_command(module)
    return subprocess.run(
        [python, *options, *rest, *words],
        input=text,
        capture_output=True,
        encoding="utf-8",
        env=child_environment() | changes,
    )


@pytest.fixture
def poisoned(tmp_path, monkeypatch):
    """A working directory with files that hide a module and a package."""
    poison = 'raise RuntimeError("poisoned")\n'
    (tmp_path / "json.py").write_text(poison)
    (tmp_path / "random.py").write_text(poison)
    (tmp_path / "datasets").mkdir()
    (tmp_path / "datasets" / "__init__.py").write_text(poison)
    monkeypatch.chdir(tmp_path)


@pytest.mark.parametrize(
    ("module", "words", "code"),
    [
        ("automl_ft.workers.main", (), 0),
        ("automl_ft.export.predict", ("nowhere", "rows.csv"), 2),
        ("automl_ft.export.main", (), 1),  # an empty input is no job
    ],
)
def test_the_working_directory_hides_no_module(poisoned, module, words, code):
    done = run(module, *words)
    assert "poisoned" not in done.stderr
    assert done.returncode == code, done.stderr
    if code == 1:
        assert "JSONDecodeError" in done.stderr


def test_the_working_directory_hides_no_module_from_the_look_at_devices(poisoned):
    assert "problem" not in {check.state for check in check_devices()}


def test_a_package_that_is_not_installed_is_found():
    # -S leaves out everything that is installed.
    done = run("automl_ft.files.checksum", options=("-S",), PYTHONPATH="")
    assert (done.returncode, done.stderr) == (0, "")


def test_a_child_runs_the_package_of_its_parent_and_no_other(tmp_path):
    other = tmp_path / "automl_ft"
    other.mkdir()
    (other / "__init__.py").write_text('raise RuntimeError("another version")\n')
    done = run("automl_ft.files.checksum", PYTHONPATH=str(tmp_path))
    assert (done.returncode, done.stderr) == (0, "")


def test_our_folder_is_not_put_on_the_path_where_it_could_hide_a_module():
    assert child_environment().get("PYTHONPATH") == os.environ.get("PYTHONPATH")
    command = child_command("automl_ft.specs.layout")
    assert command[:2] == [sys.executable, "-P"]


def test_a_child_reads_and_writes_utf_8():
    code = "import json, sys; print(json.dumps([sys.stdin.encoding, sys.flags.utf8_mode]))"
    done = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        stdin=subprocess.PIPE,
        env=child_environment() | {"LC_ALL": "C"},
    )
    assert json.loads(done.stdout) == ["utf-8", 1]


def test_arguments_follow_the_module(tmp_path):
    done = run("automl_ft.export.predict", "--help")
    assert done.stdout.startswith("usage: automl-ft predict")
