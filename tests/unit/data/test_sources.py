from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import datasets
import pytest

from automl_ft.config.study import DataConfig
from automl_ft.data import sources
from automl_ft.data.readers import RawTable
from automl_ft.data.sources import RawSplits, read_source
from automl_ft.errors import DataError

Config = Callable[..., DataConfig]
WriteCsv = Callable[..., Path]


def texts(splits: RawSplits) -> dict[str, list[str]]:
    return {
        name: [text for part in parts for text in part.dataset["text"][:]]
        for name, parts in splits.items()
    }


@pytest.fixture
def folder(write_csv: WriteCsv) -> Path:
    write_csv("data/train.csv", [("a", 0)])
    write_csv("data/dev.csv", [("b", 0)])
    return write_csv("data/test.csv", [("c", 0)]).parent


def test_one_file_is_the_training_split(write_csv: WriteCsv, config: Config) -> None:
    path = write_csv("anything.csv", [("a", 0), ("b", 1)])
    assert texts(read_source(config(path=path))) == {"train": ["a", "b"]}


def test_a_file_is_read_even_if_its_name_says_test(write_csv: WriteCsv, config: Config) -> None:
    path = write_csv("test.csv", [("a", 0)])
    assert texts(read_source(config(path=path))) == {"train": ["a"]}


def test_folder_gives_the_splits_that_its_files_are_called(folder: Path, config: Config) -> None:
    expected = {"train": ["a"], "validation": ["b"], "test": ["c"]}
    assert texts(read_source(config(path=folder))) == expected


@pytest.mark.parametrize("test", [None, 0])
def test_test_split_is_left_unread_where_none_is_wanted(
    folder: Path, config: Config, test: float | None
) -> None:
    (folder / "test.csv").write_bytes(b"\xff broken")
    assert set(read_source(config(path=folder, test=test))) == {"train", "validation"}


def test_files_below_data_are_found(folder: Path, config: Config) -> None:
    assert set(read_source(config(path=folder.parent))) == {"train", "validation", "test"}


def test_shards_of_a_split_are_joined_in_order(write_csv: WriteCsv, config: Config) -> None:
    write_csv("d/train-00001-of-00002.csv", [("b", 0)])
    path = write_csv("d/train-00000-of-00002.csv", [("a", 0)])
    assert texts(read_source(config(path=path.parent))) == {"train": ["a", "b"]}


def test_two_files_for_one_split_are_ambiguous(write_csv: WriteCsv, config: Config) -> None:
    write_csv("d/movies_train.csv", [("a", 0)])
    path = write_csv("d/books_train.csv", [("a", 0)])
    with pytest.raises(DataError, match=r"books_train\.csv.*movies_train\.csv.*`data\.train`"):
        read_source(config(path=path.parent))


def test_folder_with_one_file_of_any_name_is_that_file(write_csv: WriteCsv, config: Config) -> None:
    path = write_csv("d/reviews.csv", [("a", 0)])
    write_csv("d/.hidden.csv", [("b", 0)])
    assert texts(read_source(config(path=path.parent))) == {"train": ["a"]}


def test_folder_of_unclear_files_is_refused(write_csv: WriteCsv, config: Config) -> None:
    write_csv("d/one.csv", [("a", 0)])
    path = write_csv("d/two.csv", [("a", 0)])
    with pytest.raises(DataError, match=r"2 data files .*one\.csv, two\.csv.*`data\.train`"):
        read_source(config(path=path.parent))


def test_folder_without_data_files_is_refused(tmp_path: Path, config: Config) -> None:
    with pytest.raises(DataError, match=r"without data files.*\.parquet"):
        read_source(config(path=tmp_path))


def test_several_files_are_joined(write_csv: WriteCsv, config: Config) -> None:
    one, two = write_csv("one.csv", [("a", 0)]), write_csv("two.csv", [("b", 1)])
    assert texts(read_source(config(path=(str(one), str(two))))) == {"train": ["a", "b"]}


def test_several_files_whose_names_say_splits_are_splits(folder: Path, config: Config) -> None:
    paths = tuple(str(folder / name) for name in ("train.csv", "dev.csv"))
    assert texts(read_source(config(path=paths))) == {"train": ["a"], "validation": ["b"]}


def test_one_file_per_split_needs_no_path(folder: Path, config: Config) -> None:
    files: dict[str, Any] = {"train": folder / "train.csv", "validation": folder / "test.csv"}
    expected = {"train": ["a"], "validation": ["c"]}
    assert texts(read_source(config(**files))) == expected


def test_a_file_for_a_split_wins_over_the_folder(
    folder: Path, config: Config, write_csv: WriteCsv
) -> None:
    mine = write_csv("mine.csv", [("z", 0)])
    assert texts(read_source(config(path=folder, validation=mine)))["validation"] == ["z"]


@pytest.mark.parametrize("name", ["validation", "dev", "val"])
def test_a_split_may_be_named_by_any_of_its_usual_names(
    folder: Path, config: Config, name: str
) -> None:
    assert texts(read_source(config(path=folder, validation=name)))["validation"] == ["b"]


def test_a_split_may_be_given_another_role(folder: Path, config: Config) -> None:
    found = texts(read_source(config(path=folder, train="dev", validation="train", test=None)))
    assert found == {"train": ["b"], "validation": ["a"]}


@pytest.fixture
def saved(tmp_path: Path) -> Callable[..., Path]:
    def save(**splits: str) -> Path:
        tables = {k: datasets.Dataset.from_dict({"text": [v]}) for k, v in splits.items()}
        datasets.DatasetDict(tables).save_to_disk(str(tmp_path / "saved"))
        return tmp_path / "saved"

    return save


def test_saved_splits_get_our_names(saved: Callable[..., Path], config: Config) -> None:
    path = saved(train="a", dev="b", test="c")
    expected = {"train": ["a"], "validation": ["b"], "test": ["c"]}
    assert texts(read_source(config(path=path))) == expected


def test_the_only_split_is_trained_on_whatever_its_name(
    saved: Callable[..., Path], config: Config
) -> None:
    assert texts(read_source(config(path=saved(full="a", test="c")))) == {
        "train": ["a"],
        "test": ["c"],
    }


def test_several_splits_without_training_split_are_refused(
    saved: Callable[..., Path], config: Config
) -> None:
    with pytest.raises(DataError, match=r"no training split.*en, fr.*`data\.train`"):
        read_source(config(path=saved(en="a", fr="b")))


def test_a_split_that_is_not_there_gets_a_hint(saved: Callable[..., Path], config: Config) -> None:
    with pytest.raises(DataError, match=r"`data\.validation` is `tset`.*Did you mean `test`"):
        read_source(config(path=saved(train="a", test="b"), validation="tset"))


def test_missing_file_names_the_path_and_a_neighbour(write_csv: WriteCsv, config: Config) -> None:
    path = write_csv("train.csv", [("a", 0)]).with_name("trainn.csv")
    with pytest.raises(
        DataError, match=r"trainn\.csv`, which does not exist\. Did you mean `train"
    ) as e:
        read_source(config(path=path))
    assert "hub id" in str(e.value)


@pytest.mark.parametrize("key", ["train", "validation", "test"])
def test_missing_file_of_a_split_names_its_key(
    write_csv: WriteCsv, config: Config, key: str
) -> None:
    path = write_csv("data.csv", [("a", 0)])
    with pytest.raises(DataError, match=rf"`data\.{key}` is `gone\.csv`, which does not exist"):
        read_source(config(path=path, **{key: "gone.csv"}))


def test_missing_file_among_several_is_refused(write_csv: WriteCsv, config: Config) -> None:
    path = write_csv("data.csv", [("a", 0)])
    with pytest.raises(DataError, match=r"`gone\.csv`"):
        read_source(config(path=(str(path), "gone.csv")))


def test_folder_for_a_split_is_refused(folder: Path, config: Config) -> None:
    with pytest.raises(DataError, match=r"`data\.test` is .*a folder"):
        read_source(config(path=folder, test=folder))


def test_ending_that_is_not_known_is_refused(tmp_path: Path, config: Config) -> None:
    path = tmp_path / "data.xlsx"
    path.write_bytes(b"x")
    with pytest.raises(DataError, match=r"data\.xlsx.*ending.*\.jsonl.*`data\.format`"):
        read_source(config(path=path))


def test_given_format_reads_any_ending(write_csv: WriteCsv, config: Config) -> None:
    path = write_csv("data.txt", [("a", 0)])
    assert texts(read_source(config(path=path, format="csv"))) == {"train": ["a"]}


def test_names_that_are_no_path_are_hub_ids(
    config: Config, monkeypatch: pytest.MonkeyPatch
) -> None:
    table = RawTable(name="x", dataset=datasets.Dataset.from_dict({"text": ["a"]}))
    asked: list[tuple[str, str | None, str | None]] = []

    def read_hub(*args: str | None) -> dict[str, RawTable]:
        asked.append(args)  # type: ignore[arg-type]
        return {"train": table}

    monkeypatch.setattr(sources, "read_hub", read_hub)
    read_source(config(path="owner/name.v2", config="small", revision="main"))
    assert asked == [("owner/name.v2", "small", "main")]


@pytest.mark.parametrize("path", ["./owner", "a/b/c", "owner/train.csv", "/nowhere", "~/nothing"])
def test_paths_that_cannot_be_hub_ids_are_missing_files(config: Config, path: str) -> None:
    with pytest.raises(DataError, match="which does not exist"):
        read_source(config(path=path))
