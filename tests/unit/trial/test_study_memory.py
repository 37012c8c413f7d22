"""What a study learns of memory reaches its other processes and outlives them."""

from __future__ import annotations

import json
import threading
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


def test_a_file_of_an_earlier_version_of_ours_is_read(path: Path) -> None:
    path.parent.mkdir(parents=True)
    path.write_text('{"version": 1, "correction": {"cpu": 1.5}}', encoding="utf-8")
    assert StudyMemory(path=path).correction("cpu") == 1.5
    assert StudyMemory(path=path).relax("cpu", 1.0, 1.0) == pytest.approx(1.5**0.5)


def test_workers_that_correct_at_once_lose_nothing(path: Path) -> None:
    def correct(memory: StudyMemory) -> None:
        for _ in range(5):
            memory.correct("cuda", 1.1)

    threads = [threading.Thread(target=correct, args=(StudyMemory(path=path),)) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert StudyMemory(path=path).correction("cuda") == pytest.approx(1.1**20)


def test_a_run_that_took_clearly_less_moves_the_correction_half_of_the_way(path: Path) -> None:
    memory, other = StudyMemory(path=path), StudyMemory(path=path)
    memory.correct("cuda", 4.0, batch_mib=100.0)
    assert memory.relax("cuda", 1.0, 50.0) == 2.0
    assert other.correction("cuda") == 2.0
    assert other.relax("cuda", 0.5, 50.0) == pytest.approx(2.0**0.5)


def test_a_correction_is_forgotten_in_the_end(path: Path) -> None:
    memory = StudyMemory(path=path)
    memory.correct("cpu", 2.0, batch_mib=100.0)
    found = [memory.relax("cpu", 0.7, 100.0) for _ in range(5)]
    assert found == sorted(found, reverse=True)
    assert found[-1] == 1.0
    assert json.loads(path.read_text(encoding="utf-8"))["failed_mib"] == {}


@pytest.mark.parametrize("found", [1.6, 2.0, 3.0])
def test_a_run_that_took_about_as_much_or_more_changes_nothing(path: Path, found: float) -> None:
    memory = StudyMemory(path=path)
    memory.correct("cpu", 2.0, batch_mib=100.0)
    assert memory.relax("cpu", found, 100.0) == 2.0


def test_a_run_far_smaller_than_what_failed_says_nothing(path: Path) -> None:
    memory = StudyMemory(path=path)
    memory.correct("cpu", 2.0, batch_mib=400.0)
    memory.correct("cpu", 1.5, batch_mib=200.0)
    assert memory.relax("cpu", 1.0, 49.0) == 3.0
    assert memory.relax("cpu", 1.0, 50.0) < 3.0


def test_without_failures_no_file_is_written(path: Path) -> None:
    assert StudyMemory(path=path).relax("cpu", 0.1, 100.0) == 1.0
    assert not path.parent.exists()


def test_a_process_without_a_file_lowers_its_own() -> None:
    memory = StudyMemory()
    memory.correct("cpu", 4.0)
    assert memory.relax("cpu", 1.0, 1.0) == memory.correction("cpu") == 2.0
