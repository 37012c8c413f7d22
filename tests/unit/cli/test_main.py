import os
import subprocess
import sys

import pytest

import automl_ft
from automl_ft.cli import main as module
from automl_ft.cli.main import COMMANDS
from automl_ft.errors import SearchFailedError, StudyNotFoundError


def raising(error):
    def load_study(name, *, storage=None):
        raise error

    return load_study


@pytest.mark.parametrize(
    ("error", "code", "message"),
    [
        (StudyNotFoundError("There is no study `demo`."), 2, "Error: There is no study `demo`.\n"),
        (SearchFailedError("one\ntwo"), 1, "Error:\n  one\n  two\n"),
        (KeyboardInterrupt(), 130, "Interrupted.\n"),
    ],
)
def test_errors_become_exit_codes_and_one_message(api, run, monkeypatch, error, code, message):
    monkeypatch.setattr("automl_ft.api.load_study", raising(error))
    ran = run("show", "demo")
    assert (ran.code, ran.out) == (code, "")
    assert ran.err.endswith(message)


def test_a_failed_search_ends_with_1(api, run):
    def fail(listener):
        raise SearchFailedError("The first 3 trials failed for the same reason.")

    api.during = fail
    ran = run("search", "demo")
    assert ran.code == 1
    assert "same reason" in ran.err


def test_an_unknown_command_is_refused_with_a_suggestion(run):
    ran = run("searchh")
    assert ran.code == 2
    assert "Did you mean `search`?" in ran.err


def test_a_command_that_is_like_none_lists_them_all(run):
    assert "search, studies, show" in run("zzz").err


def test_version_is_printed(run):
    ran = run("--version")
    assert (ran.code, ran.out) == (0, f"automl-ft, version {automl_ft.__version__}\n")


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_has_help_with_an_example(run, command):
    ran = run(command, "--help")
    assert ran.code == 0
    assert "Example" in ran.out
    assert f"automl-ft {command}" in ran.out
    assert max(map(len, ran.out.splitlines())) <= 80


@pytest.mark.parametrize("command", COMMANDS)
def test_the_help_of_all_commands_agrees_with_their_own(run, command):
    assert COMMANDS[command] in " ".join(run(command, "--help").out.split())
    assert COMMANDS[command] in run("--help").out


def test_no_command_shows_the_help(run):
    ran = run()
    assert ran.code == 2
    assert "Commands:" in ran.out + ran.err


def test_a_reader_that_has_enough_is_no_error():
    script = (
        "import sys; from automl_ft.cli.main import main;"
        "from automl_ft.cli import render; import os;"
        "r, w = os.pipe(); os.dup2(w, 1); os.close(r); os.close(w);"
        "sys.exit(main(['spaces']))"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")


def in_shell(redirection, *words, cwd=None):
    """Run a command line with a stream closed or led elsewhere."""
    program = [sys.executable, "-m", "automl_ft.cli.main", *words]
    shell = ["sh", "-c", f'exec "$@" {redirection}', "sh", *program]
    return subprocess.run(shell, capture_output=True, text=True, cwd=cwd)


@pytest.mark.parametrize("streams", ["<&-", ">&-", "2>&-", "<&- >&- 2>&-"])
def test_a_closed_stream_is_no_error(streams):
    done = in_shell(streams, "spaces")
    assert (done.returncode, done.stderr) == (0, "")


def test_with_closed_streams_a_search_ends_as_ever(tmp_path):
    done = in_shell("<&- >&-", "search", "nothing.yaml", cwd=tmp_path)
    assert done.returncode == 2
    assert "there is no such study file" in done.stderr


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="needs /dev/full")
def test_a_full_disk_is_one_line_and_exit_code_1():
    done = in_shell(">/dev/full", "spaces")
    expected = "Error: No space left on device. Mend this and run the same command again.\n"
    assert (done.returncode, done.stderr) == (1, expected)


def test_a_refusal_of_the_system_names_the_file(api, run, monkeypatch):
    refusal = PermissionError(13, "Permission denied", "studies/studies.db")
    monkeypatch.setattr("automl_ft.api.load_study", raising(refusal))
    ran = run("show", "demo")
    assert ran.code == 1
    assert ran.err.startswith("Error: Permission denied (studies/studies.db). ")
    assert len(ran.err.splitlines()) == 1


def test_the_module_runs_as_a_program(tmp_path):
    words = [sys.executable, "-m", "automl_ft.cli.main", "show", "demo"]
    done = subprocess.run(words, capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 2
    assert "There are no studies" in done.stderr
    assert list(tmp_path.iterdir()) == []


def complete(words, cwd, **environment):
    current = words.split(" ")
    script = "import sys; from automl_ft.cli.main import cli; cli(prog_name='automl-ft')"
    done = subprocess.run(
        [sys.executable, "-c", script],
        capture_output=True,
        text=True,
        cwd=cwd,
        env={
            **os.environ,
            "_AUTOML_FT_COMPLETE": "bash_complete",
            "COMP_WORDS": words,
            "COMP_CWORD": str(len(current) - 1),
            **environment,
        },
    )
    assert done.returncode == 0, done.stderr
    return [line.partition(",")[2] for line in done.stdout.splitlines()]


@pytest.mark.parametrize(
    ("words", "offered"),
    [
        ("automl-ft s", ["search", "studies", "show", "spaces"]),
        ("automl-ft search --pr", ["--pruner"]),
        ("automl-ft search --objective f1_m", ["f1_macro", "f1_micro"]),
        ("automl-ft search --sampler g", ["gp", "grid"]),
        ("automl-ft search --pruner n", ["none"]),
        ("automl-ft search --space qui", ["quick"]),
        ("automl-ft search dem", ["demo"]),
        ("automl-ft spaces low", ["low_data"]),
    ],
)
def test_the_shell_completes_commands_options_and_names(words, offered, tmp_path):
    found = complete(words, tmp_path)
    assert [word for word in offered if word not in found] == []


def test_only_matching_commands_are_offered(tmp_path):
    assert complete("automl-ft exp", tmp_path) == ["export"]


def test_the_program_name_is_the_entry_point():
    assert module.PROGRAM == "automl-ft"
