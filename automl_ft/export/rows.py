"""How are rows to be predicted read, and predictions written beside them?"""

from __future__ import annotations

import csv
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import IO, Any

import pyarrow as pa
import pyarrow.parquet as pq

from automl_ft.data.readers import FORMATS, file_format, read_file
from automl_ft.errors import DataError, did_you_mean
from automl_ft.files.atomic import atomic_path

__all__ = ["check_ending", "read_rows", "texts_of", "with_columns", "write_rows"]

_TEXT_ENDINGS = (".txt", ".text")


def read_rows(path: Path, *, encoding: str = "utf-8", text_column: str = "text") -> pa.Table:
    """Read a file of rows with all their columns.

    Args:
        path: CSV, TSV, JSON, JSONL, Parquet or Arrow by its ending, or `.txt` with a text a line.
        encoding: Text encoding, for CSV, TSV, JSON and txt.
        text_column: What the only column of a `.txt` file is called.

    Returns:
        The rows in their order.

    Raises:
        DataError: The file is missing, of another kind or cannot be read.
    """
    if not path.is_file():
        siblings = [item.name for item in path.parent.glob("*")] if path.parent.is_dir() else []
        hint = did_you_mean(path.name, siblings)
        hint = f" {hint}" if hint.startswith("Did") else ""
        raise DataError(f"The file `{path}` does not exist.{hint} Give a file of rows.")
    if path.suffix.lower() in _TEXT_ENDINGS:
        return pa.table({text_column: pa.array(_lines(path, encoding), type=pa.string())})
    format_name = file_format(path)
    if format_name is None:
        accepted = ", ".join([*FORMATS, *_TEXT_ENDINGS])
        raise DataError(f"`{path}` has an ending that is not known; accepted: {accepted}.")
    raw = read_file(path, format_name=format_name, encoding=encoding, name=str(path))
    table: pa.Table = raw.dataset.with_format("arrow")[:]
    return table


def texts_of(table: pa.Table, columns: Sequence[str], place: str) -> list[tuple[str, ...]]:
    """Return the texts of each row; what is missing is an empty text.

    Args:
        table: The rows.
        columns: One or two text columns.
        place: Where the rows come from, for messages.

    Returns:
        A tuple of texts for each row.

    Raises:
        DataError: A column is missing.
    """
    for column in columns:
        if column not in table.column_names:
            raise DataError(
                f"`{place}` has no column `{column}`. {did_you_mean(column, table.column_names)}"
                " Name the column of the text with --text."
            )
    values = [table[column].to_pylist() for column in columns]
    return [
        tuple("" if value is None else str(value) for value in row)
        for row in zip(*values, strict=True)
    ]


def with_columns(table: pa.Table, new: Mapping[str, pa.Array], place: str) -> pa.Table:
    """Put columns beside those that are there.

    Args:
        table: The rows.
        new: Values by column, one for each row.
        place: Where the rows come from, for messages.

    Returns:
        The rows with the new columns at the end.

    Raises:
        DataError: There is a column of that name already.
    """
    taken = [name for name in new if name in table.column_names]
    if taken:
        raise DataError(
            f"`{place}` already has a column `{taken[0]}`, in which the prediction would go."
            " Rename or drop it first."
        )
    for name, values in new.items():
        table = table.append_column(name, values)
    return table


def check_ending(to: Path) -> None:
    """Refuse a target whose ending says nothing about the format.

    Args:
        to: The file to write.

    Raises:
        DataError: The ending is none of `.csv`, `.tsv`, `.jsonl`, `.parquet`, or the folder is
            missing.
    """
    if to.suffix.lower() not in _WRITERS:
        raise DataError(f"--to: `{to}` has another ending; accepted: {', '.join(_WRITERS)}.")
    if not to.parent.is_dir():
        raise DataError(f"--to: the folder `{to.parent}` does not exist. Make it first.")


def write_rows(table: pa.Table, to: Path | None, output: IO[str]) -> None:
    """Write rows to a file by its ending, whole or not at all, or as CSV to a stream.

    Args:
        table: The rows.
        to: The file, which `check_ending` accepts; None for the stream.
        output: The stream.
    """
    if to is None:
        _write_delimited(table, output, ",")
        return
    with atomic_path(to) as temporary:
        _WRITERS[to.suffix.lower()](table, temporary)


def _lines(path: Path, encoding: str) -> list[str]:
    try:
        text = path.read_text(encoding="utf-8-sig" if encoding == "utf-8" else encoding)
    except (UnicodeError, LookupError) as error:
        raise DataError(
            f"`{path}` cannot be read as {encoding}: {error}. Give its encoding with --encoding."
        ) from error
    # `splitlines` would also split at characters that are no ends of lines, such as U+2028.
    return text.removesuffix("\n").split("\n") if text else []


def _write_delimited(table: pa.Table, output: IO[str], separator: str) -> None:
    writer = csv.writer(output, delimiter=separator, lineterminator="\n")
    writer.writerow(table.column_names)
    for batch in table.to_batches(max_chunksize=10_000):
        columns = [column.to_pylist() for column in batch.columns]
        writer.writerows([_field(value) for value in row] for row in zip(*columns, strict=True))


def _field(value: Any) -> Any:
    """Write nested values as JSON; None becomes an empty field."""
    is_nested = isinstance(value, (list, dict))
    return json.dumps(value, ensure_ascii=False, default=str) if is_nested else value


def _delimited_file(separator: str) -> Callable[[pa.Table, Path], None]:
    def write(table: pa.Table, path: Path) -> None:
        with path.open("w", encoding="utf-8", newline="") as output:
            _write_delimited(table, output, separator)

    return write


def _json_lines(table: pa.Table, path: Path) -> None:
    with path.open("w", encoding="utf-8") as output:
        for batch in table.to_batches(max_chunksize=10_000):
            for row in batch.to_pylist():
                output.write(json.dumps(row, ensure_ascii=False, default=str) + "\n")


_WRITERS: Mapping[str, Callable[[pa.Table, Path], None]] = {
    ".csv": _delimited_file(","),
    ".tsv": _delimited_file("\t"),
    ".jsonl": _json_lines,
    ".parquet": pq.write_table,
}
