from __future__ import annotations

from collections.abc import Callable

import pytest

from automl_ft.data.cleaning import CleanData, clean
from automl_ft.data.columns import MappedData, NamedRows
from automl_ft.errors import DataError

Named = Callable[..., NamedRows]
GOOD = [("a film", "pos"), ("b film", "neg"), ("c film", "pos"), ("d film", "neg")]
OTHER = [("e film", "pos"), ("f film", "neg")]


def run(labels: tuple[str, ...] = ("neg", "pos"), **splits: NamedRows) -> CleanData:
    return clean(MappedData(splits=splits, labels=labels))


def kinds(data: CleanData) -> dict[str, int]:
    return {note.kind: note.count for note in data[2]}


def message(data: CleanData, kind: str) -> str:
    [found] = [note.message for note in data[2] if note.kind == kind]
    return found


def test_clean_data_passes_as_it_is_without_notes(named: Named) -> None:
    rows = named(GOOD)
    splits, labels, notes = run(train=rows, validation=named(OTHER, "dev.csv"))
    assert splits["train"] is rows
    assert labels == ("neg", "pos")
    assert notes == ()


@pytest.mark.parametrize("blank", ["", " \n\t", "\u3000"])
def test_empty_texts_are_left_out_with_their_rows(named: Named, blank: str) -> None:
    data = run(train=named([GOOD[0], (blank, "pos"), *GOOD[1:], (blank, None)]))
    assert len(data[0]["train"]) == len(GOOD)
    assert kinds(data) == {"empty_text": 2}
    assert "rows 2, 6 of train.csv" in message(data, "empty_text")


def test_pairs_are_empty_only_if_both_texts_are(named: Named) -> None:
    rows = named(GOOD)
    pairs = NamedRows(
        texts=(("a", ""), ("", "b"), (" ", ""), ("c", "d")),
        labels=rows.labels,
        origins=rows.origins,
        groups=None,
    )
    data = run(train=pairs)
    assert data[0]["train"].texts == (("a", ""), ("", "b"), ("c", "d"))


def test_missing_labels_are_left_out_with_their_rows(named: Named) -> None:
    data = run(train=named([*GOOD, ("x", None)]))
    assert len(data[0]["train"]) == len(GOOD)
    assert message(data, "missing_label") == (
        "1 row of train with no label left out: row 5 of train.csv."
    )


@pytest.mark.parametrize(
    ("pairs", "reason"),
    [([], "has no rows"), ([("", "pos"), ("x", None)], r"has no row with both .* \(2 were read\)")],
)
def test_a_split_that_is_left_empty_is_refused(
    named: Named, pairs: list[tuple[str, str | None]], reason: str
) -> None:
    with pytest.raises(DataError, match=rf"The validation split {reason}.*`data\.label`"):
        run(train=named(GOOD), validation=named(pairs))


@pytest.mark.parametrize("hidden", [None, "-1"])
def test_a_test_split_without_labels_is_left_out(named: Named, hidden: str | None) -> None:
    test = named([("x", hidden), ("y", hidden)], "glue:test")
    data = run(labels=("neg", "pos", "-1"), train=named(GOOD), test=test)
    assert set(data[0]) == {"train"}
    assert data[1] == ("neg", "pos")
    assert "2 rows of glue:test" in message(data, "hidden_test_labels")


def test_minus_one_is_a_class_where_training_rows_have_it(named: Named) -> None:
    train = named([("a", "-1"), ("b", "1"), ("c", "-1"), ("d", "1")])
    data = run(labels=("-1", "1"), train=train, test=named([("x", "-1")]))
    assert len(data[0]["test"]) == 1


def test_an_empty_test_split_is_refused_rather_than_taken_for_hidden(named: Named) -> None:
    with pytest.raises(DataError, match="The test split has no rows"):
        run(train=named(GOOD), test=named([]))


@pytest.mark.parametrize("split", ["validation", "test"])
def test_training_rows_that_recur_in_a_given_split_are_left_out_of_training(
    named: Named, split: str
) -> None:
    held_out = named([("A  Film", "pos"), ("f film", "neg")], "held.csv")
    data = run(train=named([*GOOD, ("g", "pos")]), **{split: held_out})
    assert ("a film",) not in data[0]["train"].texts
    assert len(data[0][split]) == 2
    assert "row 1 of train.csv" in message(data, f"train_in_{split}")


def test_splits_of_the_same_rows_are_refused(named: Named) -> None:
    with pytest.raises(DataError, match="All 4 texts of the training split recur"):
        run(train=named(GOOD), validation=named(GOOD))


def test_validation_rows_that_recur_in_test_are_noted_and_kept(named: Named) -> None:
    data = run(train=named(GOOD), validation=named(OTHER, "dev.csv"), test=named(OTHER))
    assert kinds(data) == {"validation_in_test": 2}
    assert len(data[0]["validation"]) == 2


def test_conflicting_duplicates_are_noted_and_kept(named: Named) -> None:
    data = run(train=named([*GOOD, ("A FILM", "neg")]))
    assert kinds(data) == {"conflicting_duplicates": 2}
    assert "2 rows share 1 text but differ" in message(data, "conflicting_duplicates")
    assert "rows 1, 5 of train.csv" in message(data, "conflicting_duplicates")
    assert len(data[0]["train"]) == 5


def test_duplicates_that_agree_are_no_conflict(named: Named) -> None:
    assert kinds(run(train=named([*GOOD, GOOD[0]]))) == {}


def test_conflicts_between_splits_count(named: Named) -> None:
    validation = named([("x", "pos"), ("y", "neg")], "dev.csv")
    data = run(train=named(GOOD), validation=validation, test=named([("x", "neg"), ("z", "pos")]))
    assert "row 1 of dev.csv; row 1 of train.csv" in message(data, "conflicting_duplicates")


def test_one_class_is_refused_with_its_name(named: Named) -> None:
    with pytest.raises(DataError, match="All 2 training rows are of one class, `pos`"):
        run(train=named([("a", "pos"), ("b", "pos")]))


def test_nearly_as_many_classes_as_rows_are_refused(named: Named) -> None:
    pairs = [(f"text {number}", f"id-{number:03}") for number in range(40)]
    with pytest.raises(DataError, match=r"40 classes in 40 rows, such as `id-000`.*`data\.label`"):
        run(labels=tuple(label for _, label in pairs), train=named(pairs))


def test_a_class_with_one_training_row_is_noted(named: Named) -> None:
    data = run(labels=("neg", "odd", "pos"), train=named([*GOOD, ("x", "odd")]))
    assert kinds(data) == {"single_example": 1}
    assert "class `odd` (row 5 of train.csv)" in message(data, "single_example")


def test_a_label_of_validation_only_is_noted_and_kept(named: Named) -> None:
    validation = named([*OTHER, ("x", "odd"), ("y", "odd")], "dev.csv")
    data = run(labels=("neg", "odd", "pos"), train=named(GOOD), validation=validation)
    assert data[1] == ("neg", "odd", "pos")
    assert len(data[0]["validation"]) == 4
    assert kinds(data) == {"label_not_in_train": 2}
    assert "`odd`" in message(data, "label_not_in_train")


def test_classes_that_a_given_split_lacks_are_noted(named: Named) -> None:
    data = run(train=named(GOOD), validation=named([("x", "pos")], "dev.csv"))
    assert (
        message(data, "not_in_validation")
        == "The given validation split has no row of class `neg`."
    )


def test_many_classes_are_listed_in_part(named: Named) -> None:
    odd = [(f"t{number}", f"odd{number}") for number in range(7)]
    labels = ("neg", *(label for _, label in odd), "pos")
    data = run(labels=labels, train=named([*GOOD, *odd]))
    assert "each of 7 classes `odd0`, `odd1`, `odd2`, `odd3`, `odd4`, ..." in message(
        data, "single_example"
    )


def test_a_class_that_is_dropped_with_its_rows_is_no_class(named: Named) -> None:
    data = run(labels=("gone", "neg", "pos"), train=named([*GOOD, ("", "gone")]))
    assert data[1] == ("neg", "pos")
