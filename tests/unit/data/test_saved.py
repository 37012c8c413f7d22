from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from automl_ft.data.saved import load_saved_splits, save_splits
from automl_ft.data.table import Origins, Splits, TextTable
from automl_ft.errors import DataError
from automl_ft.specs.facts import DataNote

Table = Callable[..., TextTable]


@pytest.fixture
def splits(table: Table) -> Splits:
    two_files = Origins.joined([Origins.of_source("a.csv", 1), Origins.of_source("b.csv", 2)])
    return Splits(
        train=replace(
            table("a\nb", "NA", "\u00e9\u4e2d", groups=("x", "", "y")), origins=two_files
        ),
        validation=table("d", "e", groups=("z", "z")),
        test=table("f", groups=("w",)),
        labels=("p", "q", "r"),
        notes=(DataNote(kind="empty_text", message="One \u00e9.", count=1),),
    )


def test_splits_are_read_back_with_equal_facts(splits: Splits, tmp_path: Path) -> None:
    save_splits(splits, tmp_path / "study" / "data")
    assert load_saved_splits(tmp_path / "study" / "data").facts() == splits.facts()


def test_rows_keep_their_origins_and_groups(splits: Splits, tmp_path: Path) -> None:
    save_splits(splits, tmp_path / "data")
    train = load_saved_splits(tmp_path / "data").train
    assert train.origins.describe([0, 2]) == "row 1 of a.csv; row 2 of b.csv"
    assert train.groups == ("x", "", "y")
    assert train.labels.dtype == np.int64


def test_pairs_are_read_back(table: Table, tmp_path: Path) -> None:
    pairs = table(("a", "b"), ("c", ""))
    splits = Splits(train=pairs, validation=pairs, test=None, labels=("x", "y"))
    save_splits(splits, tmp_path / "data")
    loaded = load_saved_splits(tmp_path / "data")
    assert loaded.train.texts == (("a", "b"), ("c", ""))
    assert loaded.test is None
    assert loaded.train.groups is None


def test_saving_again_replaces_what_was_there(splits: Splits, table: Table, tmp_path: Path) -> None:
    save_splits(splits, tmp_path / "data")
    save_splits(replace(splits, test=None), tmp_path / "data")
    assert load_saved_splits(tmp_path / "data").test is None
    assert [item.name for item in tmp_path.iterdir() if item.name != "cache"] == ["data"]


def test_a_missing_folder_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"copy of its rows in .*gone.*start it again"):
        load_saved_splits(tmp_path / "gone")


@pytest.mark.parametrize("name", ["splits.json", "train.parquet"])
def test_a_torn_file_is_refused(splits: Splits, tmp_path: Path, name: str) -> None:
    save_splits(splits, tmp_path / "data")
    path = tmp_path / "data" / name
    path.write_bytes(path.read_bytes()[:20])
    with pytest.raises(DataError, match="cannot be read"):
        load_saved_splits(tmp_path / "data")


def test_rows_that_are_not_those_that_were_saved_are_refused(
    splits: Splits, tmp_path: Path
) -> None:
    save_splits(splits, tmp_path / "data")
    save_splits(replace(splits, train=splits.train.take(np.asarray([1, 0, 2]))), tmp_path / "new")
    (tmp_path / "new" / "train.parquet").replace(tmp_path / "data" / "train.parquet")
    with pytest.raises(DataError, match="do not match their fingerprint"):
        load_saved_splits(tmp_path / "data")
