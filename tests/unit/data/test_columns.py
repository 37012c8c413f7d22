from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import datasets
import pytest

from automl_ft.config.study import DataConfig
from automl_ft.data.columns import MappedData, map_columns
from automl_ft.data.readers import RawTable
from automl_ft.errors import DataError

Config = Callable[..., DataConfig]


def raw(columns: dict[str, Any], name: str = "train.csv", *, untyped: bool = False) -> RawTable:
    return RawTable(name=name, dataset=datasets.Dataset.from_dict(columns), is_untyped=untyped)


def classes(names: Sequence[str], values: Sequence[int | None]) -> RawTable:
    features = datasets.Features(
        {"text": datasets.Value("string"), "label": datasets.ClassLabel(names=list(names))}
    )
    columns = {"text": ["x"] * len(values), "label": list(values)}
    return RawTable(
        name="hub:train", dataset=datasets.Dataset.from_dict(columns, features=features)
    )


def of_labels(labels: Sequence[Any], *, untyped: bool = False) -> MappedData:
    table = raw({"text": ["x"] * len(labels), "label": list(labels)}, untyped=untyped)
    return map_columns({"train": [table]}, DataConfig(path="x"))


@pytest.mark.parametrize(
    ("labels", "names", "order"),
    [
        (["pos", "neg", "pos"], ("pos", "neg", "pos"), ("neg", "pos")),
        ([10, 9, 10], ("10", "9", "10"), ("9", "10")),
        ([-1, 1, 1], ("-1", "1", "1"), ("-1", "1")),
        ([2.0, 1.0, None], ("2", "1", None), ("1", "2")),
        ([True, False, None], ("True", "False", None), ("False", "True")),
        ([" pos", "pos ", "  "], ("pos", "pos", None), ("pos",)),
        (["10", "9", "9"], ("10", "9", "9"), ("9", "10")),
        (["1.5", "2", "2"], ("1.5", "2", "2"), ("1.5", "2")),
    ],
    ids=["text", "int", "signed", "float", "bool", "blanks", "digits", "typed text"],
)
def test_labels_become_class_names_in_a_stable_order(
    labels: list[Any], names: tuple[str | None, ...], order: tuple[str, ...]
) -> None:
    mapped = of_labels(labels)
    assert mapped.splits["train"].labels == names
    assert mapped.labels == order


def test_numbers_that_csv_holds_as_text_become_whole_numbers() -> None:
    mapped = of_labels(["2.0", "10", None], untyped=True)
    assert mapped.splits["train"].labels == ("2", "10", None)
    assert mapped.labels == ("2", "10")


@pytest.mark.parametrize("ending", ["", ".0"])
def test_large_numbers_that_csv_holds_as_text_stay_the_classes_they_are(ending: str) -> None:
    numbers = ("9007199254740992", "9007199254740993", "9" * 20, "9" * 40)
    mapped = of_labels([number + ending for number in numbers], untyped=True)
    assert mapped.splits["train"].labels == numbers
    assert mapped.labels == numbers


def test_large_numbers_that_are_not_whole_look_like_regression() -> None:
    with pytest.raises(DataError, match=r"holds 9007199254740993\.5 in row 2.*regression"):
        of_labels(["1", "9007199254740993.5"], untyped=True)


@pytest.mark.parametrize("label", ["007", "1e3", "n/a"])
def test_csv_labels_that_are_not_all_numbers_stay_as_they_are(label: str) -> None:
    assert of_labels(["2.0", label], untyped=True).splits["train"].labels == ("2.0", label)


def test_nan_labels_are_missing() -> None:
    assert of_labels([1.0, float("nan")]).splits["train"].labels == ("1", None)


@pytest.mark.parametrize(("labels", "untyped"), [([1.0, 2.5], False), (["1.0", "2.5"], True)])
def test_labels_that_are_not_whole_look_like_regression(labels: list[Any], untyped: bool) -> None:
    with pytest.raises(DataError, match=r"`label` of `train\.csv` holds 2\.5 in row 2.*regression"):
        of_labels(labels, untyped=untyped)


def test_lists_of_labels_are_refused() -> None:
    with pytest.raises(DataError, match=r"`label` of `train\.csv` holds lists"):
        of_labels([[1], [2]])


def test_labels_of_another_type_are_refused_with_the_value() -> None:
    with pytest.raises(DataError, match=r"holds b'z' in row 1, of type bytes"):
        of_labels([b"z"])


def test_class_label_names_are_used_in_their_own_order() -> None:
    mapped = map_columns({"train": [classes(["pos", "neg"], [1, 0])]}, DataConfig(path="x"))
    assert mapped.splits["train"].labels == ("neg", "pos")
    assert mapped.labels == ("pos", "neg")


def test_class_label_minus_one_and_none_are_missing() -> None:
    mapped = map_columns({"train": [classes(["a", "b"], [-1, None, 1])]}, DataConfig(path="x"))
    assert mapped.splits["train"].labels == (None, None, "b")


def test_class_label_out_of_range_is_refused() -> None:
    features = datasets.Features(
        {"text": datasets.Value("string"), "label": datasets.Value("int64")}
    )
    plain = datasets.Dataset.from_dict({"text": ["x"], "label": [7]}, features=features)
    features["label"] = datasets.ClassLabel(names=["a", "b"])
    table = plain.cast_column("label", datasets.Value("int64"))
    table.info.features = features
    with pytest.raises(DataError, match="holds 7, but its ClassLabel names only 2"):
        map_columns({"train": [RawTable(name="t", dataset=table)]}, DataConfig(path="x"))


def test_class_names_that_no_row_has_are_left_out() -> None:
    mapped = map_columns({"train": [classes(["a", "b", "c"], [0, 2])]}, DataConfig(path="x"))
    assert mapped.labels == ("a", "c")


def test_names_beyond_a_class_label_come_after_it() -> None:
    tables = {
        "train": [classes(["pos", "neg"], [0, 1])],
        "test": [raw({"text": ["x"], "label": ["mixed"]}, "test.csv")],
    }
    assert map_columns(tables, DataConfig(path="x")).labels == ("pos", "neg", "mixed")


def test_typed_and_untyped_files_agree_on_the_name_of_a_number() -> None:
    tables = {
        "train": [raw({"text": ["x", "y"], "label": ["1.0", "2"]}, untyped=True)],
        "validation": [raw({"text": ["x", "y"], "label": [1, 2]}, "dev.jsonl")],
    }
    assert map_columns(tables, DataConfig(path="x")).labels == ("1", "2")


def test_files_of_one_split_are_joined_with_their_origins() -> None:
    parts = [raw({"text": ["x"], "label": ["a"]}), raw({"text": ["y"], "label": ["b"]}, "two.csv")]
    rows = map_columns({"train": parts}, DataConfig(path="x")).splits["train"]
    assert rows.texts == (("x",), ("y",))
    assert rows.origins.describe([0, 1]) == "row 1 of train.csv; row 1 of two.csv"


def test_groups_of_joined_files_are_kept(config: Config) -> None:
    parts = [raw({"text": ["x"], "label": ["a"], "g": [n]}) for n in (1, None)]
    rows = map_columns({"train": parts}, config(path="x", group="g")).splits["train"]
    assert rows.groups == ("1", None)


def test_two_text_columns_make_pairs_and_missing_fields_are_empty(config: Config) -> None:
    table = raw({"q": ["a", None], "p": ["b", "c"], "label": [0, 1]})
    rows = map_columns({"train": [table]}, config(path="x", text=("q", "p"))).splits["train"]
    assert rows.texts == (("a", "b"), ("", "c"))


@pytest.mark.parametrize(
    ("fields", "key"),
    [({"text": ("txet",)}, "text"), ({"label": "labell"}, "label"), ({"group": "groupp"}, "group")],
)
def test_a_mistyped_column_gets_a_hint_and_the_list(
    config: Config, fields: dict[str, Any], key: str
) -> None:
    table = raw({"text": ["x"], "label": [1], "group": ["g"]})
    with pytest.raises(DataError, match=rf"`data\.{key}` is .*Did you mean `{key}`.*text, label"):
        map_columns({"train": [table]}, config(path="x", **fields))


def test_a_column_that_nothing_resembles_gets_the_list(config: Config) -> None:
    table = raw({"text": ["x"], "label": [1]})
    with pytest.raises(DataError, match=r"`zzz`, but `train\.csv` has no .*Accepted: label, text"):
        map_columns({"train": [table]}, config(path="x", label="zzz"))


def test_test_split_without_label_column_has_no_labels() -> None:
    tables = {"train": [raw({"text": ["x"], "label": ["a"]})], "test": [raw({"text": ["y"]})]}
    assert map_columns(tables, DataConfig(path="x")).splits["test"].labels == (None,)


def test_validation_split_without_label_column_is_refused() -> None:
    tables = {"train": [raw({"text": ["x"], "label": ["a"]})], "validation": [raw({"text": ["y"]})]}
    with pytest.raises(DataError, match=r"`data\.label`"):
        map_columns(tables, DataConfig(path="x"))


@pytest.mark.parametrize(
    ("values", "held"),
    [([1, 2], "int64"), ([1.5, None], "double|float64"), ([["a"], ["b"]], "lists or structures")],
)
def test_text_column_of_another_type_is_refused_with_those_that_hold_text(
    values: list[Any], held: str
) -> None:
    table = raw({"text": values, "body": ["a", "b"], "label": [0, 1]})
    with pytest.raises(DataError, match=rf"`text`.*holds ({held}), not text\..*hold text: body"):
        map_columns({"train": [table]}, DataConfig(path="x"))


def test_class_labels_are_no_text(config: Config) -> None:
    table = classes(["a", "b"], [0]).dataset.add_column("other", ["c"])
    fields = {"text": ("label",), "label": "other"}
    with pytest.raises(DataError, match="holds class labels, not text"):
        map_columns({"train": [RawTable(name="t", dataset=table)]}, config(path="x", **fields))


@pytest.mark.parametrize("text", [("label",), ("text", "label")])
def test_a_label_that_is_also_a_text_is_refused(config: Config, text: tuple[str, ...]) -> None:
    with pytest.raises(DataError, match=r"`data\.label` is `label`.*would read the answer"):
        map_columns({"train": [raw({"text": ["x"], "label": ["a"]})]}, config(path="x", text=text))


def test_mixed_types_are_no_text(write_jsonl: Any, config: Config) -> None:
    path = write_jsonl("a.jsonl", [{"text": "x", "label": 1}, {"text": 2, "label": 1}])
    from automl_ft.data.sources import read_source

    data = config(path=path)
    with pytest.raises(DataError, match="values of mixed types, not text"):
        map_columns(read_source(data), data)


def test_mixed_labels_of_json_are_named_one_by_one(write_jsonl: Any, config: Config) -> None:
    path = write_jsonl("a.jsonl", [{"text": "x", "label": 1}, {"text": "y", "label": "b"}])
    from automl_ft.data.sources import read_source

    data = config(path=path)
    assert map_columns(read_source(data), data).labels == ("1", "b")


def test_all_missing_texts_are_empty_rather_than_of_a_wrong_type() -> None:
    table = raw({"text": [None, None], "label": ["a", "b"]})
    rows = map_columns({"train": [table]}, DataConfig(path="x")).splits["train"]
    assert rows.texts == (("",), ("",))


def test_rows_that_were_selected_are_read_in_their_order() -> None:
    table = datasets.Dataset.from_dict({"text": ["x", "y"], "label": ["a", "b"]}).select([1, 0])
    rows = map_columns({"train": [RawTable(name="t", dataset=table)]}, DataConfig(path="x"))
    assert rows.splits["train"].texts == (("y",), ("x",))
