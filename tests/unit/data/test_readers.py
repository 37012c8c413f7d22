from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import datasets
import pytest

from automl_ft.data.readers import RawTable, file_format, read_file, read_hub, read_saved_folder
from automl_ft.errors import DataError

ROWS = {"text": ["one", "two"], "label": [0, 1]}


def read(path: Path, format_name: str | None = None, encoding: str = "utf-8") -> RawTable:
    known = format_name or file_format(path)
    assert known is not None
    return read_file(path, format_name=known, encoding=encoding, name=path.name)


def rows(table: RawTable) -> dict[str, list[Any]]:
    return dict(table.dataset[:])


def write(path: Path, text: str, encoding: str = "utf-8") -> Path:
    path.write_bytes(text.encode(encoding))
    return path


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("a.CSV", "csv"),
        ("a.tab", "tsv"),
        ("a.ndjson", "jsonl"),
        ("a.pq", "parquet"),
        ("a.doc", None),
    ],
)
def test_format_is_guessed_from_the_ending(name: str, expected: str | None) -> None:
    assert file_format(Path(name)) == expected


def test_given_format_wins_over_the_ending() -> None:
    assert file_format(Path("a.csv"), "tsv") == "tsv"


def test_csv_keeps_words_that_pandas_takes_for_missing(tmp_path: Path) -> None:
    path = write(tmp_path / "a.csv", "text,label\nNA,null\nNone,nan\n")
    assert rows(read(path)) == {"text": ["NA", "None"], "label": ["null", "nan"]}


def test_csv_takes_only_empty_fields_for_missing(tmp_path: Path) -> None:
    path = write(tmp_path / "a.csv", "text,label\n,1\nx,\n")
    assert rows(read(path)) == {"text": [None, "x"], "label": ["1", None]}


def test_csv_keeps_newlines_inside_quotes(tmp_path: Path) -> None:
    path = write(tmp_path / "a.csv", 'text,label\n"two\nlines",1\n')
    assert rows(read(path))["text"] == ["two\nlines"]


def test_csv_keeps_numbers_as_the_text_they_are(tmp_path: Path) -> None:
    path = write(tmp_path / "a.csv", "text,label\n007,1.0\n")
    assert rows(read(path)) == {"text": ["007"], "label": ["1.0"]}


def test_csv_type_does_not_depend_on_the_first_10000_rows(tmp_path: Path) -> None:
    path = write(tmp_path / "a.csv", "text,label\n" + "1,\n" * 10_001 + "x,y\n")
    assert read(path).dataset[-1] == {"text": "x", "label": "y"}


def test_csv_header_may_hold_a_byte_order_mark(tmp_path: Path) -> None:
    path = write(tmp_path / "a.csv", "text,label\nx,1\n", encoding="utf-8-sig")
    assert read(path).dataset.column_names == ["text", "label"]


def test_csv_columns_without_name_are_told_apart(tmp_path: Path) -> None:
    path = write(tmp_path / "a.csv", ",text,\n0,a,b\n")
    assert read(path).dataset.column_names == ["Unnamed: 0", "text", "Unnamed: 2"]


@pytest.mark.parametrize("header", ["text,label,label", "label ,text, label"])
def test_csv_with_two_columns_of_one_name_is_refused(tmp_path: Path, header: str) -> None:
    path = write(tmp_path / "a.csv", f"{header}\nx,1,2\n")
    with pytest.raises(DataError, match=r"`a\.csv` names several columns `label`"):
        read(path)


@pytest.mark.parametrize("text", ["text,label", "text,label\n", "text,label\r\n\r\n", "text\n"])
def test_csv_without_rows_is_refused(tmp_path: Path, text: str) -> None:
    with pytest.raises(DataError, match=r"`a\.csv` has a header but no rows\."):
        read(write(tmp_path / "a.csv", text))


def test_csv_of_empty_fields_has_rows(tmp_path: Path) -> None:
    assert rows(read(write(tmp_path / "a.csv", "text,label\n,\n"))) == {
        "text": [None],
        "label": [None],
    }


@pytest.mark.parametrize("name", ["a.csv", "a.tsv"])
@pytest.mark.parametrize("end", ["\n", "\r\n"])
def test_empty_lines_of_a_file_of_one_column_are_rows(tmp_path: Path, name: str, end: str) -> None:
    path = write(tmp_path / name, end.join(["text", "", "w1", "", "", "w2", "", ""]))
    assert rows(read(path)) == {"text": [None, "w1", None, None, "w2", None]}


def test_empty_lines_between_rows_of_several_columns_do_not_count(tmp_path: Path) -> None:
    path = write(tmp_path / "a.csv", "text,label\n\nx,1\n\ny,2\n")
    assert rows(read(path))["text"] == ["x", "y"]


@pytest.mark.parametrize("name", ["g[1]/d.csv", "g/d[1].csv", "g/*.csv", "g/?d.csv", "g/d.[csv]"])
def test_a_name_that_looks_like_a_pattern_is_just_a_name(tmp_path: Path, name: str) -> None:
    (tmp_path / name).parent.mkdir()
    write(tmp_path / name, "text,label\nx,1\n")
    write((tmp_path / name).with_name("1d.csv"), "text,label\nother,1\n")
    assert rows(read(tmp_path / name, "csv"))["text"] == ["x"]


def test_the_name_of_the_working_folder_does_not_matter(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "g[1]*").mkdir()
    write(tmp_path / "g[1]*" / "d.csv", "text,label\nx,1\n")
    monkeypatch.chdir(tmp_path / "g[1]*")
    assert rows(read(Path("d.csv")))["text"] == ["x"]


def test_where_links_cannot_be_made_the_file_is_copied(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(self: Path, target: Path) -> None:
        raise OSError("A required privilege is not held by the client")

    monkeypatch.setattr(Path, "symlink_to", refuse)
    path = write(tmp_path / "d[1].csv", "text,label\nx,1\n")
    assert rows(read(path))["text"] == ["x"]


def test_csv_with_a_row_that_is_too_long_is_refused_with_its_line(tmp_path: Path) -> None:
    path = write(tmp_path / "a.csv", "text,label\nx,1\ny,2,3\n")
    with pytest.raises(DataError, match=r"`a\.csv` cannot be read: .*line 3"):
        read(path)


def test_csv_whose_rows_are_all_longer_than_the_header_is_refused(tmp_path: Path) -> None:
    path = write(tmp_path / "a.csv", "text,label\nx,1,2\ny,2,3\n")
    with pytest.raises(DataError, match="more fields than the header"):
        read(path)


def test_csv_with_an_open_quote_is_refused(tmp_path: Path) -> None:
    path = write(tmp_path / "a.csv", 'text,label\n"x,1\n')
    with pytest.raises(DataError, match=r"a\.csv.*EOF inside string"):
        read(path)


@pytest.mark.parametrize("name", ["a.csv", "a.tsv", "a.jsonl", "a.parquet"])
def test_empty_file_is_refused_by_name(tmp_path: Path, name: str) -> None:
    with pytest.raises(DataError, match=rf"`{name}` is empty"):
        read(write(tmp_path / name, ""))


def test_tsv_with_quotes_as_part_of_the_text_keeps_every_row(tmp_path: Path) -> None:
    path = write(tmp_path / "a.tsv", 'text\tlabel\n"half a quote\t1\nplain\t0\n"again\t1\n')
    assert rows(read(path))["text"] == ['"half a quote', "plain", '"again']


def test_tsv_with_quoted_fields_is_unquoted(tmp_path: Path) -> None:
    path = write(tmp_path / "a.tsv", 'text\tlabel\n"a\tb"\t1\n')
    assert rows(read(path)) == {"text": ["a\tb"], "label": ["1"]}


def test_jsonl_keeps_types(write_jsonl: Callable[..., Path]) -> None:
    path = write_jsonl("a.jsonl", [{"text": "x", "label": True}, {"text": "y", "label": None}])
    table = read(path)
    assert not table.is_untyped
    assert rows(table)["label"] == [True, None]


def test_json_array_is_read(tmp_path: Path) -> None:
    path = write(tmp_path / "a.json", '[{"text": "x", "label": 1}, {"text": "y", "label": 2}]')
    assert rows(read(path)) == {"text": ["x", "y"], "label": [1, 2]}


def test_broken_json_is_refused_by_name(tmp_path: Path) -> None:
    path = write(tmp_path / "a.jsonl", '{"text": "x"}\n{"text": \n')
    with pytest.raises(DataError, match=r"`a\.jsonl` cannot be read"):
        read(path)


def test_parquet_is_read_with_class_labels(tmp_path: Path) -> None:
    features = datasets.Features(
        {"text": datasets.Value("string"), "label": datasets.ClassLabel(names=["n", "p"])}
    )
    datasets.Dataset.from_dict(ROWS, features=features).to_parquet(str(tmp_path / "a.parquet"))
    assert read(tmp_path / "a.parquet").dataset.features["label"].names == ["n", "p"]


def test_arrow_is_read(tmp_path: Path) -> None:
    datasets.Dataset.from_dict(ROWS).save_to_disk(str(tmp_path / "saved"))
    [path] = (tmp_path / "saved").glob("*.arrow")
    assert rows(read(path)) == ROWS


def test_file_that_is_no_parquet_is_refused_with_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"a\.parquet.*data\.format"):
        read(write(tmp_path / "a.parquet", "text,label\n"))


@pytest.mark.parametrize("name", ["a.csv", "a.tsv", "a.jsonl"])
def test_wrong_encoding_names_file_byte_line_and_key(tmp_path: Path, name: str) -> None:
    line = '{"text": "\u00e9t\u00e9", "label": "a"}\n' if "json" in name else "\u00e9t\u00e9\t,a\n"
    path = write(tmp_path / name, ("text,label\n" if "json" not in name else line) + line, "cp1252")
    with pytest.raises(
        DataError, match=rf"`{name}` is not .* utf-8\. Byte \d+ \(0xe9, line \d\)"
    ) as e:
        read(path)
    assert "data.encoding" in str(e.value)


@pytest.mark.parametrize("name", ["a.csv", "a.jsonl"])
def test_given_encoding_is_used(tmp_path: Path, name: str) -> None:
    text = "text,label\n\u00e9t\u00e9,a\n" if name == "a.csv" else '{"text": "\u00e9t\u00e9"}\n'
    path = write(tmp_path / name, text, "cp1252")
    assert rows(read(path, encoding="cp1252"))["text"] == ["\u00e9t\u00e9"]


@pytest.mark.parametrize("name", ["a.csv", "a.jsonl"])
def test_unknown_encoding_is_refused(tmp_path: Path, name: str) -> None:
    text = "text,label\nx,a\n" if name == "a.csv" else '{"text": "x"}\n'
    with pytest.raises(DataError, match=r"`data\.encoding` is `klingon`"):
        read(write(tmp_path / name, text), encoding="klingon")


def test_a_file_that_was_replaced_at_the_same_age_is_read_anew(tmp_path: Path) -> None:
    path = write(tmp_path / "a.csv", "text,label\nold,1\n")
    age = path.stat()
    assert rows(read(path))["text"] == ["old"]
    write(path, "text,label\nnew,1\n")
    os.utime(path, ns=(age.st_atime_ns, age.st_mtime_ns))
    assert rows(read(path))["text"] == ["new"]


def test_reading_leaves_progress_bars_and_verbosity_as_they_were(tmp_path: Path) -> None:
    datasets.enable_progress_bars()
    before = datasets.logging.get_verbosity()
    read(write(tmp_path / "a.csv", "text,label\nx,1\n"))
    assert not datasets.are_progress_bars_disabled()
    assert datasets.logging.get_verbosity() == before


def test_reading_prints_nothing(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(DataError):
        read(write(tmp_path / "a.csv", "text,label\nx,1\ny,2,3\n"))
    assert capfd.readouterr() == ("", "")


def test_saved_dataset_is_the_training_split(tmp_path: Path) -> None:
    datasets.Dataset.from_dict(ROWS).save_to_disk(str(tmp_path / "saved"))
    found = read_saved_folder(tmp_path / "saved")
    assert found is not None
    assert {name: rows(table) for name, table in found.items()} == {"train": ROWS}


def test_saved_dataset_dict_keeps_its_splits(tmp_path: Path) -> None:
    table = datasets.Dataset.from_dict(ROWS)
    datasets.DatasetDict(train=table, dev=table).save_to_disk(str(tmp_path / "saved"))
    assert set(read_saved_folder(tmp_path / "saved") or ()) == {"train", "dev"}


def test_other_folders_are_no_saved_data_sets(tmp_path: Path) -> None:
    assert read_saved_folder(tmp_path) is None


def test_damaged_saved_folder_is_refused(tmp_path: Path) -> None:
    datasets.Dataset.from_dict(ROWS).save_to_disk(str(tmp_path / "saved"))
    (tmp_path / "saved" / "dataset_info.json").unlink()
    with pytest.raises(DataError, match="save_to_disk"):
        read_saved_folder(tmp_path / "saved")


def fake_hub(monkeypatch: pytest.MonkeyPatch, answer: object) -> list[dict[str, Any]]:
    calls: list[dict[str, Any]] = []

    def load_dataset(path: str, **options: Any) -> object:
        calls.append({"path": path, **options})
        if isinstance(answer, Exception):
            raise answer
        return answer

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    return calls


def test_hub_data_set_is_asked_for_with_config_and_revision(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    table = datasets.Dataset.from_dict(ROWS)
    calls = fake_hub(monkeypatch, datasets.DatasetDict(train=table))
    found = read_hub("owner/name", "small", "v1")
    assert calls == [{"path": "owner/name", "name": "small", "revision": "v1"}]
    assert found["train"].name == "owner/name:train"


def test_hub_without_network_says_how_to_use_a_local_folder(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    fake_hub(monkeypatch, ConnectionError("Couldn't reach 'owner/name' on the Hub"))
    with pytest.raises(
        DataError, match=r"`owner/name`.*cannot be reached.*save_to_disk.*data\.path"
    ):
        read_hub("owner/name", None, None)


def test_hub_data_set_that_needs_a_configuration_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    fake_hub(monkeypatch, ValueError("Config name is missing.\nPick one among: ['a', 'b']"))
    with pytest.raises(DataError, match=r"\['a', 'b'\].*Set `data\.config`.*none is given"):
        read_hub("owner/name", None, None)


def test_hub_names_the_configuration_that_does_not_exist(monkeypatch: pytest.MonkeyPatch) -> None:
    fake_hub(monkeypatch, ValueError("BuilderConfig 'x' not found. Available: ['a']"))
    with pytest.raises(DataError, match="it is `x`"):
        read_hub("owner/name", "x", None)


def test_hub_data_set_that_does_not_exist_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    fake_hub(monkeypatch, datasets.exceptions.DatasetNotFoundError("Dataset 'x/y' doesn't exist"))
    with pytest.raises(DataError, match=r"`x/y`.*doesn't exist.*Check the name"):
        read_hub("x/y", None, None)
