"""`automl-ft --help` is quick: it imports nothing that takes time."""

import subprocess
import sys
import time

import pytest

from automl_ft.cli.main import COMMANDS

HEAVY = ("torch", "optuna", "transformers", "datasets", "rich", "sqlalchemy", "numpy", "yaml")
SCRIPT = """
import sys
from automl_ft.cli.main import main
code = main(sys.argv[1:])
loaded = [name for name in {heavy!r} if name in sys.modules]
sys.exit(f"imported {{loaded}}" if loaded else code)
"""


def loaded_by(*words):
    script = SCRIPT.format(heavy=HEAVY)
    return subprocess.run(
        [sys.executable, "-c", script, *words], capture_output=True, text=True, check=False
    )


@pytest.mark.parametrize("words", [(), *((command,) for command in COMMANDS)], ids=str)
def test_help_imports_nothing_heavy(words):
    done = loaded_by(*words, "--help")
    assert done.returncode == 0, done.stderr
    assert "Usage: automl-ft" in done.stdout


def test_the_check_notices_a_heavy_import():
    done = loaded_by("spaces", "quick")
    assert "imported" in done.stderr


def test_import_of_the_package_is_light():
    script = f"import sys, automl_ft; sys.exit([n for n in {HEAVY!r} if n in sys.modules] or 0)"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def seconds(*words):
    start = time.perf_counter()
    subprocess.run([sys.executable, *words], capture_output=True, check=True)
    return time.perf_counter() - start


@pytest.mark.parametrize("command", ["", *COMMANDS])
def test_help_takes_less_than_ten_bare_interpreters(command):
    # 0.2 s where `python -c pass` takes 0.02 s; the ratio holds on slower and busier machines.
    words = [word for word in (command, "--help") if word]
    ratios = [seconds("-m", "automl_ft.cli.main", *words) / seconds("-c", "pass") for _ in range(3)]
    assert min(ratios) < 10
