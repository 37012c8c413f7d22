"""What a study learns of memory reaches its other processes and outlives them."""

from __future__ import annotations

from pathlib import Path

import pytest

from automl_ft.trial.study_memory import StudyMemory


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "study" / "data" / "memory.json"


def test_forecasts_are_trusted_at_first(path: Path) -> None:
    assert StudyMemory().correction("cpu") == StudyMemory(path=path).correction("cpu") == 1
    assert not path.exists()


def test_corrections_add_up(path: Path) -> None:
    memory = StudyMemory(path=path)
    assert memory.correct("cuda", 1.5) == 1.5
    assert memory.correct("cuda", 2.0) == 3.0
    assert memory.correction("cuda") == 3.0


def test_another_process_starts_from_them(path: Path) -> None:
    other = StudyMemory(path=path)
    StudyMemory(path=path).correct("cuda", 1.5)
    assert other.correction("cuda") == StudyMemory(path=path).correction("cuda") == 1.5


def test_devices_are_kept_apart(path: Path) -> None:
    StudyMemory(path=path).correct("cuda", 1.5)
    StudyMemory(path=path).correct("cpu", 1.2)
    fresh = StudyMemory(path=path)
    assert (fresh.correction("cuda"), fresh.correction("cpu"), fresh.correction("mps")) == (
        1.5, 1.2, 1.0,
    )  # fmt: skip


def test_without_a_file_a_process_remembers_its_own() -> None:
    memory = StudyMemory()
    memory.correct("cpu", 1.25)
    assert memory.correction("cpu") == 1.25


@pytest.mark.parametrize(
    "text",
    [
        "", "{", "[]", "3", '{"version": 2, "correction": {"cpu": 9}}', '{"version": 1}',
        '{"version": 1, "correction": {"cpu": "much"}}', '{"version": 1, "correction": [9]}',
        '{"version": 1, "correction": {"cpu": NaN}}', '{"version": 1, "correction": {"cpu": 0.1}}',
    ],
)  # fmt: skip
def test_a_damaged_file_says_nothing(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True)
    path.write_text(text, encoding="utf-8")
    assert StudyMemory(path=path).correction("cpu") == 1
    assert StudyMemory(path=path).correct("cpu", 1.5) == 1.5


def test_a_file_that_cannot_be_written_fails_no_trial(tmp_path: Path) -> None:
    (tmp_path / "data").write_text("in the way", encoding="ascii")
    memory = StudyMemory(path=tmp_path / "data" / "memory.json")
    assert memory.correct("cpu", 1.5) == memory.correction("cpu") == 1.5
