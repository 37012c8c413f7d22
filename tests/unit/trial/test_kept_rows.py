from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from automl_ft.data.saved import load_saved_splits
from automl_ft.errors import DataError
from automl_ft.specs.layout import rows_folder
from automl_ft.trial.kept_rows import find_encoded, keep_encoded, keep_rows, load_encoded
from automl_ft.trial.prepare import OpenCheckpoint, PreparedStudy


@pytest.fixture
def opened(study: PreparedStudy) -> OpenCheckpoint:
    return study.checkpoint(None)


@pytest.fixture
def kept(study: PreparedStudy, opened: OpenCheckpoint, tmp_path: Path) -> Path:
    keep_encoded(opened.splits, opened.facts, study.facts.data, tmp_path)
    return tmp_path


def test_encoded_rows_come_back_mapped(
    study: PreparedStudy, opened: OpenCheckpoint, kept: Path
) -> None:
    found = load_encoded(opened.facts, study.facts.data, kept)
    assert list(found) == ["train", "validation"]
    for name, split in found.items():
        np.testing.assert_array_equal(split.input_ids, opened.splits[name].input_ids)
        assert isinstance(split.input_ids.base, np.memmap) or isinstance(split.input_ids, np.memmap)


@pytest.mark.parametrize(
    "changes",
    [{"max_length": 5}, {"weights_hash": "0" * 64}, {"files_hash": "0" * 64}],
)
def test_rows_encoded_for_something_else_are_not_found(
    study: PreparedStudy, opened: OpenCheckpoint, kept: Path, changes: dict[str, Any]
) -> None:
    other = dataclasses.replace(opened.facts, **changes)
    assert find_encoded(other, study.facts.data, kept) is None


def test_other_rows_are_not_found(study: PreparedStudy, opened: OpenCheckpoint, kept: Path) -> None:
    prints = {**study.facts.data.split_fingerprints, "validation": "other"}
    data = dataclasses.replace(study.facts.data, split_fingerprints=prints)
    assert find_encoded(opened.facts, data, kept) is None


def test_a_study_that_lacks_its_rows_says_what_to_do(
    study: PreparedStudy, opened: OpenCheckpoint, tmp_path: Path
) -> None:
    with pytest.raises(DataError, match=r"are missing or damaged\. Run the same `automl-ft search"):
        load_encoded(opened.facts, study.facts.data, tmp_path)


def test_rows_that_are_there_are_not_written_again(
    study: PreparedStudy, opened: OpenCheckpoint, kept: Path
) -> None:
    before = {path: path.stat().st_mtime_ns for path in kept.rglob("*")}
    assert before
    keep_encoded(opened.splits, opened.facts, study.facts.data, kept)
    assert {path: path.stat().st_mtime_ns for path in kept.rglob("*")} == before


def test_the_studys_own_rows_are_written_once_and_when_they_are_others(
    study: PreparedStudy, tmp_path: Path
) -> None:
    assert study.rows is not None
    keep_rows(study.rows, study.facts.data, tmp_path)
    folder = rows_folder(tmp_path)
    before = {path: path.stat().st_mtime_ns for path in folder.rglob("*")}
    assert load_saved_splits(folder).facts() == study.rows.facts()
    keep_rows(study.rows, study.facts.data, tmp_path)
    assert {path: path.stat().st_mtime_ns for path in folder.rglob("*")} == before
    for path in folder.iterdir():
        if path.is_file():
            path.unlink()
    keep_rows(study.rows, study.facts.data, tmp_path)
    assert load_saved_splits(folder).facts() == study.rows.facts()
