from __future__ import annotations

import io
import json

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from automl_ft.errors import DataError
from automl_ft.export.rows import check_ending, read_rows, texts_of, with_columns, write_rows

TABLE = pa.table({"id": ["007", "8"], "text": ["a, b", None]})


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("r.csv", 'id,text\n007,"a, b"\n8,\n'),
        ("r.tsv", "id\ttext\n007\ta, b\n8\t\n"),
        ("r.jsonl", '{"id": "007", "text": "a, b"}\n{"id": "8", "text": null}\n'),
        ("r.json", '[{"id": "007", "text": "a, b"}, {"id": "8", "text": null}]'),
    ],
)
def test_rows_are_read_as_they_are(tmp_path, name, content):
    (tmp_path / name).write_text(content)
    assert read_rows(tmp_path / name).to_pylist() == TABLE.to_pylist()


def test_a_parquet_file_keeps_its_types(tmp_path):
    table = pa.table({"n": pa.array([1, 2], pa.int16()), "tags": [["a"], []]})
    pq.write_table(table, tmp_path / "r.parquet")
    assert read_rows(tmp_path / "r.parquet").schema.field("n").type == pa.int16()


def test_a_text_file_is_one_text_a_line(tmp_path):
    (tmp_path / "r.txt").write_bytes("\ufeffone\r\n\r\ntwo\u2028still two\n".encode())
    found = read_rows(tmp_path / "r.txt", text_column="review")
    assert found.to_pydict() == {"review": ["one", "", "two\u2028still two"]}


def test_an_empty_text_file_has_no_rows(tmp_path):
    (tmp_path / "r.txt").touch()
    assert len(read_rows(tmp_path / "r.txt")) == 0


def test_another_encoding_is_read_when_it_is_named(tmp_path):
    for name, content in (("r.txt", "na\u00efve\n"), ("r.csv", "text\nna\u00efve\n")):
        (tmp_path / name).write_bytes(content.encode("latin-1"))
        with pytest.raises(DataError, match="utf-8"):
            read_rows(tmp_path / name)
        assert read_rows(tmp_path / name, encoding="latin-1").to_pydict() == {
            "text": ["na\u00efve"]
        }


def test_a_missing_file_is_met_with_a_suggestion(tmp_path):
    (tmp_path / "reviews.csv").touch()
    with pytest.raises(DataError, match=r"Did you mean `reviews.csv`"):
        read_rows(tmp_path / "review.csv")
    with pytest.raises(DataError, match=r"does not exist\. Give"):
        read_rows(tmp_path / "no" / "such.csv")


def test_an_unknown_ending_is_refused(tmp_path):
    (tmp_path / "r.docx").touch()
    with pytest.raises(DataError, match=r"r.docx` has an ending.*\.csv.*\.txt"):
        read_rows(tmp_path / "r.docx")


def test_missing_and_other_values_become_texts():
    table = pa.table({"a": ["x", None], "b": [1, 2]})
    assert texts_of(table, ["a", "b"], "r") == [("x", "1"), ("", "2")]


def test_a_missing_column_is_met_with_a_suggestion():
    with pytest.raises(DataError, match=r"`r.csv` has no column `txt`. Did you mean `text`"):
        texts_of(TABLE, ["txt"], "r.csv")


def test_new_columns_come_last():
    found = with_columns(TABLE, {"label": pa.array(["x", "y"])}, "r")
    assert found.column_names == ["id", "text", "label"]


def test_a_column_is_never_overwritten():
    with pytest.raises(DataError, match="`r` already has a column `id`"):
        with_columns(TABLE, {"id": pa.array(["x", "y"])}, "r")


def test_csv_goes_to_a_stream_without_a_file():
    stream = io.StringIO()
    write_rows(TABLE, None, stream)
    assert stream.getvalue() == 'id,text\n007,"a, b"\n8,\n'


def test_nested_values_are_json_in_csv():
    stream = io.StringIO()
    write_rows(pa.table({"t": [["\u00e9", "b"]], "d": [{"k": 1}]}), None, stream)
    assert stream.getvalue() == 't,d\n"[""\u00e9"", ""b""]","{""k"": 1}"\n'


@pytest.mark.parametrize("name", ["o.csv", "o.tsv", "o.jsonl", "o.parquet"])
def test_what_is_written_can_be_read_back(tmp_path, name):
    write_rows(TABLE, tmp_path / name, io.StringIO())
    assert read_rows(tmp_path / name).to_pylist() == TABLE.to_pylist()


def test_json_lines_keep_letters_and_nulls(tmp_path):
    write_rows(pa.table({"t": ["\u00e9", None]}), tmp_path / "o.jsonl", io.StringIO())
    lines = (tmp_path / "o.jsonl").read_text(encoding="utf-8").splitlines()
    assert lines[0] == '{"t": "\u00e9"}'
    assert json.loads(lines[1]) == {"t": None}


def test_a_target_needs_a_known_ending_and_a_folder(tmp_path):
    check_ending(tmp_path / "o.CSV")
    with pytest.raises(DataError, match=r"o.xls` has another ending; accepted: \.csv"):
        check_ending(tmp_path / "o.xls")
    with pytest.raises(DataError, match="no` does not exist"):
        check_ending(tmp_path / "no" / "o.csv")
