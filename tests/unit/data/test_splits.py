from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pytest

from automl_ft.config.study import DataConfig
from automl_ft.data.columns import NamedRows
from automl_ft.data.fingerprint import text_key
from automl_ft.data.splits import make_splits
from automl_ft.data.table import Splits
from automl_ft.errors import DataError

Named = Callable[..., NamedRows]


def pairs(**counts: int) -> list[tuple[str, str]]:
    """Return rows with distinct texts, so many for each class."""
    return [(f"{label} text {n}", label) for label, count in counts.items() for n in range(count)]


def split(train: NamedRows, seed: int = 0, **fields: Any) -> Splits:
    given = {name: fields.pop(name) for name in ("validation", "test") if name in fields}
    rows = {"train": train} | {k: v for k, v in given.items() if isinstance(v, NamedRows)}
    plain = {k: v for k, v in given.items() if not isinstance(v, NamedRows)}
    labels = sorted({label for part in rows.values() for label in part.labels if label})
    return make_splits(rows, labels, DataConfig(path="x", **plain, **fields), seed)


def texts(splits: Splits) -> dict[str, set[str]]:
    return {name: {row[0] for row in table.texts} for name, table in splits.tables.items()}


def sizes(splits: Splits) -> dict[str, int]:
    return {name: len(table) for name, table in splits.tables.items()}


@pytest.mark.parametrize(
    ("validation", "test", "expected"),
    [(0.2, 0.2, (60, 20, 20)), (0.13, 0.07, (80, 13, 7)), (0.5, 0.25, (25, 50, 25))],
)
def test_fractions_are_of_all_rows(
    named: Named, validation: float, test: float, expected: tuple[int, ...]
) -> None:
    splits = split(named(pairs(a=70, b=30)), validation=validation, test=test)
    assert tuple(sizes(splits).values()) == expected


@pytest.mark.parametrize("test", [None, 0])
def test_no_test_split_is_drawn_where_none_is_wanted(named: Named, test: float | None) -> None:
    assert split(named(pairs(a=10, b=10)), test=test).test is None


def test_every_row_is_in_exactly_one_split(named: Named) -> None:
    rows = pairs(a=33, b=20, c=9)
    drawn = texts(split(named(rows)))
    assert sorted(t for part in drawn.values() for t in part) == sorted(t for t, _ in rows)


def test_splits_are_stratified(named: Named) -> None:
    splits = split(named(pairs(a=100, b=50, c=10)))
    counts = splits.facts().class_counts
    assert counts["validation"] == {"a": 20, "b": 10, "c": 2}
    assert counts["test"] == {"a": 20, "b": 10, "c": 2}


def test_rounding_keeps_the_total_right(named: Named) -> None:
    counts = {f"c{number}": 7 for number in range(10)}
    assert sizes(split(named(pairs(**counts)))) == {"train": 42, "validation": 14, "test": 14}


def test_the_same_seed_draws_the_same_splits(named: Named) -> None:
    rows = named(pairs(a=30, b=30))
    assert split(rows, 7).facts().fingerprint == split(rows, 7).facts().fingerprint


def test_another_seed_draws_other_splits(named: Named) -> None:
    rows = named(pairs(a=30, b=30))
    assert texts(split(rows, 7)) != texts(split(rows, 8))


def test_the_draw_does_not_depend_on_the_order_of_rows(named: Named) -> None:
    rows = pairs(a=30, b=30)
    assert texts(split(named(rows))) == texts(split(named(rows[::-1])))


def test_rows_keep_the_order_of_the_source(named: Named) -> None:
    splits = split(named(pairs(a=30, b=30)))
    assert len(splits.tables) == 3
    for part in splits.tables.values():
        assert (np.diff(part.origins.row_numbers) > 0).all()


def test_seed_matters_beyond_64_bits(named: Named) -> None:
    rows = named(pairs(a=30, b=30))
    assert texts(split(rows, 2**64)) != texts(split(rows, 0))


def test_duplicates_stay_in_one_split(named: Named) -> None:
    rows = [
        (f"Text {n // 3}" if n % 2 else f"text  {n // 3}", "ab"[n // 3 % 2]) for n in range(180)
    ]
    keys = {
        name: {text_key(row) for row in table.texts}
        for name, table in split(named(rows)).tables.items()
    }
    assert not keys["train"] & keys["validation"]
    assert not keys["train"] & keys["test"]
    assert not keys["validation"] & keys["test"]


def test_fractions_hold_approximately_with_duplicates(named: Named) -> None:
    rows = [(f"text {n // 3}", "ab"[n // 3 % 2]) for n in range(300)]
    found = sizes(split(named(rows)))
    assert abs(found["validation"] - 60) <= 6
    assert abs(found["test"] - 60) <= 6


def test_groups_stay_in_one_split(named: Named) -> None:
    groups = [f"g{number % 25}" for number in range(200)]
    rows = named([(f"t{n}", "ab"[n % 2]) for n in range(200)], groups=groups)
    found = {name: set(table.groups or ()) for name, table in split(rows, group="g").tables.items()}
    assert sum(map(len, found.values())) == 25
    assert all(found.values())


def test_rows_without_group_are_free(named: Named) -> None:
    rows = named(pairs(a=50, b=50), groups=[None] * 100)
    assert sizes(split(rows, group="g")) == {"train": 60, "validation": 20, "test": 20}


def test_groups_that_share_a_text_stay_together(named: Named) -> None:
    rows = [(f"t{n}", "ab"[n % 2]) for n in range(40)] + [("shared", "a"), ("shared", "a")]
    groups = [f"g{n}" for n in range(40)] + ["g0", "g1"]
    for seed in range(5):
        splits = split(named(rows, groups=groups), seed, group="g")
        homes = [name for name, t in splits.tables.items() if {"g0", "g1"} & set(t.groups or ())]
        assert len(homes) == 1


def test_one_group_cannot_be_divided(named: Named) -> None:
    rows = named(pairs(a=20, b=20), groups=["only"] * 40)
    with pytest.raises(DataError, match=r"No rows are left for the validation split"):
        split(rows, group="user")


def test_a_group_too_large_for_validation_is_trained_on(named: Named) -> None:
    rows = pairs(a=40, b=40)
    groups = ["big"] * 38 + ["x", "y"] + ["big"] * 38 + ["x", "y"]
    splits = split(named(rows, groups=groups), group="user")
    assert sizes(splits) == {"train": 76, "validation": 2, "test": 2}


def test_groups_of_one_class_each_cannot_be_divided(named: Named) -> None:
    rows = named(pairs(a=40, b=40), groups=["p"] * 40 + ["q"] * 40)
    with pytest.raises(DataError, match=r"No rows .* validation split.*data\.group: user"):
        split(rows, group="user")


def test_given_splits_are_kept(named: Named) -> None:
    validation = named([("v1", "a"), ("v2", "b")], "dev.csv")
    splits = split(named(pairs(a=20, b=20)), validation=validation, test=0.25)
    assert texts(splits)["validation"] == {"v1", "v2"}
    assert sizes(splits) == {"train": 30, "validation": 2, "test": 10}


def test_nothing_is_drawn_where_all_splits_are_given(named: Named) -> None:
    rows = named(pairs(a=5, b=5))
    splits = split(rows, validation=named([("v", "a")]), test=named([("t", "b")]))
    assert sizes(splits) == {"train": 10, "validation": 1, "test": 1}


def test_a_hidden_test_split_is_not_drawn_where_the_config_names_one(named: Named) -> None:
    assert split(named(pairs(a=10, b=10)), test="test.csv").test is None


def test_a_class_with_one_row_is_trained_on(named: Named) -> None:
    for seed in range(5):
        splits = split(named(pairs(a=20, b=20, rare=1)), seed)
        assert splits.facts().class_counts["train"]["rare"] == 1


def test_a_class_of_two_goes_to_training_and_validation(named: Named) -> None:
    counts = split(named(pairs(a=20, b=20, rare=2))).facts().class_counts
    assert [counts[name]["rare"] for name in ("train", "validation", "test")] == [1, 1, 0]


def test_a_class_of_three_is_in_every_split(named: Named) -> None:
    counts = split(named(pairs(a=20, b=20, rare=3))).facts().class_counts
    assert [counts[name]["rare"] for name in ("train", "validation", "test")] == [1, 1, 1]


def test_classes_that_a_drawn_split_lacks_are_noted(named: Named) -> None:
    notes = split(named(pairs(a=20, b=20, rare=1))).notes
    assert [(note.kind, note.count) for note in notes] == [
        ("not_in_validation", 1),
        ("not_in_test", 1),
    ]
    assert "`rare`" in notes[0].message


def test_labels_keep_the_ids_of_their_names(named: Named) -> None:
    splits = split(named([("x1", "b"), ("x2", "a"), *pairs(a=9, b=9)]))
    assert splits.labels == ("a", "b")
    assert len(splits.train) > 0
    for (text,), label in zip(splits.train.texts, splits.train.labels, strict=True):
        assert splits.labels[label] == {"x1": "b", "x2": "a"}.get(text, text[0])


@pytest.mark.parametrize(("name", "instead"), [("validation", "or give"), ("test", "set it to 0")])
def test_a_split_too_small_for_its_classes_is_refused_with_a_size_that_works(
    named: Named, name: str, instead: str
) -> None:
    rows = named(pairs(**{f"c{number}": 10 for number in range(10)}))
    with pytest.raises(
        DataError, match=rf"`data\.{name}` is 0\.05: 5 of 100 rows.* 10 classes"
    ) as e:
        split(rows, **{name: 0.05})
    assert "Set it to 0.1 or more" in str(e.value)
    assert instead in str(e.value)
    split(rows, **{name: 0.1})


def test_the_classes_that_need_a_row_are_counted(named: Named) -> None:
    with pytest.raises(DataError, match="0 of 4 rows, too few for 1 class that needs at least one"):
        split(named(pairs(a=3, b=1)), validation=0.1, test=None)
    split(named(pairs(a=3, b=1)), validation=0.25, test=None)


@pytest.mark.parametrize("fraction", [0.1, 0.4])
@pytest.mark.parametrize(
    ("rows", "name"), [({"a": 1, "b": 1}, "validation"), ({"a": 2, "b": 2}, "test")]
)
def test_classes_with_too_few_rows_for_a_split_are_refused(
    named: Named, rows: dict[str, int], name: str, fraction: float
) -> None:
    said = rf"left for the {name} split: the classes have too few rows.*Give more rows of each"
    with pytest.raises(DataError, match=said) as e:
        split(named(pairs(**rows)), **{"validation": 0.5, "test": 0.4, name: fraction})
    assert ("set `data.test` to 0" in str(e.value)) == (name == "test")


def test_fractions_that_leave_nothing_to_train_on_are_refused(named: Named) -> None:
    with pytest.raises(DataError, match=r"`data\.validation` 0\.6 and `data\.test` 0\.4 leave no"):
        split(named(pairs(a=20, b=20)), validation=0.6, test=0.4)


def test_groups_that_given_splits_share_are_noted(named: Named) -> None:
    train = named(pairs(a=2, b=2), groups=["u", "v", "w", None])
    validation = named([("x", "a"), ("y", "b")], groups=["u", None])
    [note] = split(train, validation=validation, test=None, group="user").notes
    assert (note.kind, note.count) == ("group_in_validation", 1)


def test_texts_of_several_classes_are_drawn_too(named: Named) -> None:
    rows: Sequence[tuple[str, str]] = [(f"t{n // 2}", "ab"[n % 2]) for n in range(100)]
    splits = split(named(rows))
    assert sizes(splits) == {"train": 60, "validation": 20, "test": 20}
    assert Counter(splits.test.labels.tolist() if splits.test else ()) == {0: 10, 1: 10}
