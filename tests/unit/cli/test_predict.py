import json
import subprocess
import sys

import pytest

from automl_ft.cli import predict
from automl_ft.files.child import child_command

CSV = "id,predicted_label,score\n007,good,0.75\n008,,\n"


@pytest.fixture
def asked(monkeypatch):
    """Answer for the other process; return what it was asked."""
    calls = []

    def run(command, **options):
        calls.append(command)
        return subprocess.CompletedProcess(command, run.code, stdout=CSV, stderr=None)

    run.code = 0
    monkeypatch.setattr(predict.subprocess, "run", run)
    calls_and_run = (calls, run)
    return calls_and_run


def test_torch_is_left_to_another_process(asked, run):
    calls, _ = asked
    run("predict", "best", "new.csv", "--to", "out.csv", "--text", "a,b", "--batch-size", 8)
    module = child_command("automl_ft.export.predict")
    words = ["best", "new.csv", "--text", "a", "--text", "b", "--to", "out.csv"]
    assert calls == [[*module, *words, "--batch-size", "8"]]


def test_its_exit_code_is_ours(asked, run):
    asked[1].code = 2
    assert run("predict", "best", "new.csv").code == 2
    assert run("predict", "best", "new.csv", "--format", "json").out == ""


def test_scores_are_numbers_and_the_users_columns_stay_text(asked, run):
    rows = json.loads(run("predict", "best", "new.csv", "--format", "json").out)
    assert rows[0] == {"id": "007", "predicted_label": "good", "score": 0.75}
    assert rows[1]["score"] is None


def test_rows_can_be_shown_as_a_table(asked, run):
    lines = run("predict", "best", "new.csv", "--format", "table").out.splitlines()
    assert lines[2].split() == ["007", "good", "0.7500"]


def test_probabilities_are_passed_on(asked, run):
    run("predict", "best", "new.csv", "--probabilities")
    assert asked[0][0][-1] == "--probabilities"


def test_a_file_is_replaced_on_request_only(asked, run):
    run("predict", "best", "new.csv", "--to", "out.csv")
    run("predict", "best", "new.csv", "--to", "out.csv", "--force")
    assert "--force" not in asked[0][0]
    assert "--force" in asked[0][1]


def test_code_that_lies_with_a_model_is_trusted_on_request_only(asked, run):
    run("predict", "best", "new.csv")
    run("predict", "best", "new.csv", "--trust-remote-code")
    assert "--trust-remote-code" not in asked[0][0]
    assert asked[0][1][-1] == "--trust-remote-code"


def test_a_file_and_a_format_are_too_much(asked, run):
    ran = run("predict", "best", "new.csv", "--to", "x.csv", "--format", "json")
    assert (ran.code, asked[0]) == (2, [])
    assert "Leave one of them out" in ran.err


def test_a_folder_without_a_model_is_refused_by_the_other_process(tmp_path):
    command = [sys.executable, "-m", "automl_ft.cli.main", "predict", "nowhere", "new.csv"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 2
    assert "`nowhere` does not exist" in done.stderr
