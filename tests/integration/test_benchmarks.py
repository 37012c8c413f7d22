"""The benchmarks run, on a model and rows as small as can be, and end with one line of JSON.

All of them run in one process, which is started once: most of the time goes into imports.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests.fakes.tiny_study import write_model, write_rows

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"
SCRIPTS = ("against_trainer", "floor", "parts", "startup")
SMALLEST = "--quick --repeats 1 --threads 1 --max-length 16 --train-rows 32"
MACHINE = {"system", "cpu", "cpu_features", "cores", "threads", "load", "device", "versions"}
OPTIONS = {
    "against_trainer": "--workers 1 --trainer-bf16 no --trainer-group-by-length no",
    "floor": "--call-seconds 0.001",
    "parts": "--part half",
    "startup": "",
}
DRIVER = """
import contextlib, importlib, io, json, sys
sys.path.insert(0, sys.argv[1])
printed = {}
for command in json.loads(sys.argv[2]):
    out = io.StringIO()
    sys.argv = [command[0] + ".py", *command[1:]]
    with contextlib.redirect_stdout(out):
        try:
            importlib.import_module(command[0]).main()
        except SystemExit as end:
            print(end.code)
    printed[" ".join(command)] = out.getvalue()
sys.__stdout__.write(json.dumps(printed))
"""


def run_in_one_process(commands: list[list[str]]) -> list[str]:
    """Run scripts one after the other and return what each printed."""
    done = subprocess.run(
        [sys.executable, "-c", DRIVER, str(BENCHMARKS), json.dumps(commands)],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return list(json.loads(done.stdout).values())


@pytest.fixture(scope="module")
def printed(tmp_path_factory):
    """What each script prints in its smallest mode, as help, and without data."""
    folder = tmp_path_factory.mktemp("benchmarks")
    write_model(folder / "model")
    (folder / "tiny").mkdir()
    write_rows(folder / "tiny" / "train.csv", 64)
    common = SMALLEST.split()
    places = ["--model", str(folder / "model"), "--data-folder", str(folder), "--data-set"]
    runs = [[name, *common, *OPTIONS[name].split(), *places] for name in SCRIPTS]
    helps = [[name, "--help"] for name in SCRIPTS]
    texts = iter(
        run_in_one_process(
            [*[[*run, "tiny"] for run in runs], *helps, *[[*run, "absent"] for run in runs]]
        )
    )
    modes = ("run", "help", "absent")
    return {mode: {name: next(texts) for name in SCRIPTS} for mode in modes}


@pytest.mark.parametrize("name", SCRIPTS)
def test_help_says_what_is_measured_and_offers_a_quick_run(name, printed):
    text = printed["help"][name]
    assert "?" in text
    assert "--quick" in text


@pytest.mark.parametrize("name", SCRIPTS)
def test_a_data_set_that_is_not_there_is_skipped_with_a_reason(name, printed):
    text = printed["absent"][name]
    assert "skipped: absent: there is no `absent/train.csv` in the data folder." in text


@pytest.mark.parametrize("name", SCRIPTS)
def test_the_last_line_is_json_with_machine_sizes_and_figures(name, printed):
    figures = json.loads(printed["run"][name].splitlines()[-1])
    assert set(figures["machine"]) == MACHINE
    assert figures["sizes"]["repeats"] == 1


def test_against_trainer_gives_ratios_scores_and_memory_of_both_sides(printed):
    (result,) = json.loads(printed["run"]["against_trainer"].splitlines()[-1])["results"]
    ratio = {"median", "low", "high"}
    assert {"list_1_worker", "full", "half_cold", "half_warm", "head_cold", "head_warm"} == set(
        result["against"]["best"]["ratios"]
    )
    assert all(set(part["ratio"]) == ratio for part in result["against"]["best"]["ratios"].values())
    assert result["updates"] == [2] * 6, "dropout and freezing change no number of updates"
    assert 0 <= result["against"]["best"]["f1"]["ours"] <= 1
    assert 0 <= result["against"]["best"]["f1"]["theirs"] <= 1
    assert all(trial["peak_memory_mib"] > 0 for trial in result["memory"])


def test_parts_turns_every_technique_of_a_cpu_off_and_on_alone(printed):
    from dataclasses import fields

    from automl_ft.trial.techniques import Techniques

    ratios = json.loads(printed["run"]["parts"].splitlines()[-1])["ratios"]
    wanted = {"stacked", "half: all"}
    names = {field.name for field in fields(Techniques)} - {"cuda_graphs"}  # nothing on a CPU
    for name in names:
        wanted |= {f"half: {name}", f"half: {name} alone"}
    assert set(ratios) == wanted


def test_floor_gives_a_share_of_each_peak(printed):
    share = json.loads(printed["run"]["floor"].splitlines()[-1])["share"]
    assert set(share) == {
        f"{count}_of_{precision}_peak"
        for count in ("plain", "needed")
        for precision in ("bf16", "fp32")
    }
    assert all(0 < value["median"] < 1 for value in share.values())


def test_startup_times_help_and_two_first_steps(printed):
    ratios = json.loads(printed["run"]["startup"].splitlines()[-1])["ratios"]
    assert set(ratios) == {"help", "first_trial", "tenth_trial"}
