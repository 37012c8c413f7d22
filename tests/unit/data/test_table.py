from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from automl_ft.data.table import Origins, Splits, TextTable
from automl_ft.specs.facts import DataNote


def test_origins_count_rows_from_one() -> None:
    assert Origins.of_source("a.csv", 3).describe([0]) == "row 1 of a.csv"


def test_origins_name_the_first_rows_and_show_that_there_are_more() -> None:
    found = Origins.of_source("a.csv", 30).describe(range(2, 30), limit=2)
    assert found == "rows 3, 4, ... of a.csv"


def test_joined_origins_keep_each_source_and_its_numbers() -> None:
    joined = Origins.joined([Origins.of_source("a.csv", 2), Origins.of_source("b.csv", 2)])
    assert joined.describe([0, 1, 3]) == "rows 1, 2 of a.csv; row 2 of b.csv"


def test_joined_origins_of_one_source_name_it_once() -> None:
    joined = Origins.joined([Origins.of_source("a.csv", 1), Origins.of_source("a.csv", 1)])
    assert joined.sources == ("a.csv",)


def test_table_takes_rows_with_all_that_belongs_to_them(table: Callable[..., TextTable]) -> None:
    part = table("a", "b", "c", groups=("x", "y", "z")).take(np.asarray([2, 0]))
    assert part.texts == (("c",), ("a",))
    assert part.labels.tolist() == [2, 0]
    assert part.groups == ("z", "x")
    assert part.origins.row_numbers.tolist() == [3, 1]


@pytest.fixture
def splits(table: Callable[..., TextTable]) -> Splits:
    note = DataNote(kind="empty_text", message="One.", count=1)
    return Splits(
        train=table("a", "b", "c"),
        validation=table("d", "e"),
        test=None,
        labels=("x", "y", "z"),
        notes=(note,),
    )


def test_facts_count_rows_by_split_and_zero_for_a_missing_test_split(splits: Splits) -> None:
    assert splits.facts().num_examples == {"train": 3, "validation": 2, "test": 0}


def test_facts_count_classes_by_name_even_where_there_are_none(splits: Splits) -> None:
    assert splits.facts().class_counts["validation"] == {"x": 1, "y": 1, "z": 0}


def test_facts_hold_the_notes(splits: Splits) -> None:
    assert [note.kind for note in splits.facts().notes] == ["empty_text"]


def test_fingerprint_changes_with_a_row_that_moves_to_another_split(
    splits: Splits, table: Callable[..., TextTable]
) -> None:
    moved: dict[str, Any] = {"train": table("a", "b"), "validation": table("d", "e", "c")}
    other = Splits(**moved, test=None, labels=splits.labels)
    assert other.facts().fingerprint != splits.facts().fingerprint


def test_fingerprint_depends_on_class_names_rather_than_ids(splits: Splits) -> None:
    renamed = Splits(
        train=splits.train, validation=splits.validation, test=None, labels=("p", "q", "r")
    )
    assert renamed.facts().fingerprint != splits.facts().fingerprint


def test_tables_come_in_the_order_train_validation_test(splits: Splits) -> None:
    whole = Splits(
        train=splits.train,
        validation=splits.validation,
        test=splits.train,
        labels=splits.labels,
    )
    assert list(whole.tables) == ["train", "validation", "test"]
