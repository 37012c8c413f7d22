"""How one file, folder or hub data set becomes a `datasets.Dataset`, with errors a user can act on.

Which of them are read, and for which split, is decided in `data.sources`.
"""

from __future__ import annotations

import csv
import shutil
import tempfile
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import datasets
from pandas.errors import ParserWarning

from automl_ft.errors import DataError

__all__ = ["FORMATS", "RawTable", "file_format", "read_file", "read_hub", "read_saved_folder"]

FORMATS: Mapping[str, str] = {
    ".csv": "csv",
    ".tsv": "tsv",
    ".tab": "tsv",
    ".json": "json",
    ".jsonl": "jsonl",
    ".ndjson": "jsonl",
    ".parquet": "parquet",
    ".pq": "parquet",
    ".arrow": "arrow",
}
"""Format of a file by its ending."""


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class RawTable:
    """Rows as they were read, nothing checked."""

    name: str
    """The file or split, as messages show it."""
    dataset: datasets.Dataset
    """The rows with all their columns."""
    is_untyped: bool = False
    """Whether every value is a string because the format knows no types (CSV, TSV)."""


def file_format(path: Path, given: str | None = None) -> str | None:
    """Return the format of a file.

    Args:
        path: The file; it need not exist.
        given: `data.format`, which wins.

    Returns:
        One of `FORMATS`' values, or None if the ending is not known.
    """
    return given or FORMATS.get(path.suffix.lower())


def read_file(path: Path, *, format_name: str, encoding: str, name: str) -> RawTable:
    """Read one data file; what lies in `datasets`' cache plays no part.

    In CSV and TSV every value stays the text it is: `NA` and `null` are texts, only an empty
    field is missing.

    Args:
        path: An existing file.
        format_name: One of `FORMATS`' values.
        encoding: Text encoding, for CSV, TSV and JSON.
        name: The file as messages show it.

    Returns:
        Its rows.

    Raises:
        DataError: The file is empty, broken or of another encoding.
    """
    try:
        if format_name in ("csv", "tsv"):
            separator = "," if format_name == "csv" else "\t"
            dataset = _read_delimited(path, separator, _bom_aware(path, encoding), name)
            return RawTable(name=name, dataset=dataset, is_untyped=True)
        if path.stat().st_size == 0:
            raise DataError(f"`{name}` is empty. Give a file with rows.")
        if "json" in format_name:
            _check_encoding(path, encoding)
            options = {"encoding": _bom_aware(path, encoding)}
            return RawTable(name=name, dataset=_load("json", path, options))
        return RawTable(name=name, dataset=_load(format_name, path, {}))
    except LookupError as error:
        raise DataError(
            f"`data.encoding` is `{encoding}`, which is no text encoding that Python knows."
            " Use for example utf-8, utf-16, cp1252 or gb18030."
        ) from error
    except (OSError, ValueError, RuntimeError, datasets.exceptions.DatasetsError) as error:
        raise _explained(error, path, encoding, name) from error


def read_saved_folder(folder: Path) -> dict[str, RawTable] | None:
    """Read a folder that `save_to_disk` wrote.

    Args:
        folder: An existing folder.

    Returns:
        Tables by split (`train` for a `Dataset` without splits), or None if the folder is
        none of `save_to_disk`.

    Raises:
        DataError: The folder is broken.
    """
    is_dict = (folder / "dataset_dict.json").is_file()
    if not is_dict and not (folder / "state.json").is_file():
        return None
    try:
        with _quiet():
            loaded = datasets.load_from_disk(str(folder), keep_in_memory=True)
    except (OSError, ValueError, KeyError) as error:
        raise DataError(
            f"`{folder}` looks like a `save_to_disk` folder but cannot be read: {_cause(error)}"
            " Save it again with `dataset.save_to_disk(...)`."
        ) from error
    if not is_dict:
        return {"train": RawTable(name=str(folder), dataset=loaded)}
    return {
        split: RawTable(name=f"{folder}:{split}", dataset=table) for split, table in loaded.items()
    }


def read_hub(identifier: str, config: str | None, revision: str | None) -> dict[str, RawTable]:
    """Read a data set of the Hugging Face hub, through the usual cache.

    Args:
        identifier: `name` or `owner/name`.
        config: Its configuration.
        revision: Branch, tag or commit.

    Returns:
        Tables by split.

    Raises:
        DataError: It does not exist, cannot be reached, or needs a configuration.
    """
    try:
        with _quiet():
            loaded = datasets.load_dataset(identifier, name=config, revision=revision)
    # Whatever goes wrong below (network, hub, parsing) comes as one of a dozen exception types
    # of four libraries; all of them mean that this data set cannot be read.
    except Exception as error:
        raise _hub_error(error, identifier, config) from error
    return {
        split: RawTable(name=f"{identifier}:{split}", dataset=table)
        for split, table in loaded.items()
    }


def _hub_error(error: Exception, identifier: str, config: str | None) -> DataError:
    reason = _cause(error)
    if isinstance(error, ConnectionError) or "Offline" in reason:
        return DataError(
            f"`data.path` is `{identifier}`, which is no local file, folder or bundled data set,"
            f" and the Hugging Face hub cannot be reached: {reason} Without a network, save it"
            ' elsewhere with `datasets.load_dataset(...).save_to_disk("folder")` and set'
            " `data.path` to that folder, or give a file."
        )
    remedy = "Check the name, or give a local file or folder."
    if "config name" in reason.lower() or "BuilderConfig" in reason:
        given = "none is given" if config is None else f"it is `{config}`"
        remedy = f"Set `data.config` to one of its configurations ({given})."
    return DataError(
        f"`data.path` is `{identifier}`, which is no local file, folder or bundled data set, and"
        f" cannot be read from the Hugging Face hub: {reason} {remedy}"
    )


def _read_delimited(path: Path, separator: str, encoding: str, name: str) -> datasets.Dataset:
    header = _header(path, separator, encoding, name)
    quoting = csv.QUOTE_MINIMAL
    if separator == "\t" and not _is_quoted(path, separator, encoding):
        quoting = csv.QUOTE_NONE
    options = {
        "sep": separator,
        "encoding": encoding,
        "features": datasets.Features({column: datasets.Value("string") for column in header}),
        "names": header,
        "header": 0,
        "index_col": False,
        "quoting": quoting,
        "keep_default_na": False,
        "na_values": [""],
        # In a file of one column an empty line is a row with an empty field.
        "skip_blank_lines": len(header) > 1,
    }
    return _load("csv", path, options)


def _header(path: Path, separator: str, encoding: str, name: str) -> list[str]:
    """Return the column names; one that is empty gets the name that pandas gives it."""
    with path.open(encoding=encoding, newline="") as lines:
        header = next(csv.reader(lines, delimiter=separator), None)
        if not header:
            raise DataError(
                f"`{name}` is empty or begins with an empty line. Its first line must name the"
                " columns."
            )
        if not any(len(header) == 1 or line.strip(" \r\n") for line in lines):
            raise DataError(f"`{name}` has a header but no rows. Give a file with rows.")
    names = [column.strip() or f"Unnamed: {n}" for n, column in enumerate(header)]
    repeated = next((column for column in names if names.count(column) > 1), None)
    if repeated is not None:
        raise DataError(
            f"`{name}` names several columns `{repeated}`, so it is open which one is meant. Rename"
            " or drop all but one of them in the first line."
        )
    return names


def _is_quoted(path: Path, separator: str, encoding: str) -> bool:
    """Tell whether quotes in a TSV file enclose fields, or are just part of the text.

    TSV has no quoting by its definition, but pandas and spreadsheets write it. A file is taken
    as quoted only if it reads without a fault that way and every row has the header's width.
    """
    with path.open(encoding=encoding, newline="") as lines:
        reader = csv.reader(lines, delimiter=separator, strict=True)
        try:
            width = len(next(reader))
            return all(len(row) in (0, width) for row in reader)
        except csv.Error:
            return False


def _load(builder: str, path: Path, options: Mapping[str, object]) -> datasets.Dataset:
    # NOTE: datasets' own cache knows a local file by its path and modification time only, so a
    # file that was replaced by a copy of the same age would be read stale. A cache of its own,
    # thrown away at once, cannot go stale; the study keeps its own copy of the rows anyway.
    with tempfile.TemporaryDirectory(prefix="automl-ft-") as cache, _quiet():
        return datasets.load_dataset(
            builder,
            data_files={"train": [str(_plainly_named(path, Path(cache)))]},
            split="train",
            cache_dir=cache,
            keep_in_memory=True,
            **options,
        )


def _plainly_named(path: Path, folder: Path) -> Path:
    """Give a file a name that holds no `[`, `]`, `*` or `?`: datasets takes names for patterns."""
    ending = path.suffix if path.suffix[1:].isalnum() else ""
    plain = folder / f"rows{ending}"
    try:
        plain.symlink_to(path.resolve())
    except OSError:
        # Windows lets only some users make links.
        shutil.copyfile(path, plain)
    return plain


@contextmanager
def _quiet() -> Iterator[None]:
    """Read without progress bars and log lines; a row that is too long is an error, not lost."""
    had_bars = not datasets.are_progress_bars_disabled()
    verbosity = datasets.logging.get_verbosity()
    datasets.disable_progress_bars()
    datasets.logging.set_verbosity(datasets.logging.CRITICAL)
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("error", category=ParserWarning)
            yield
    finally:
        datasets.logging.set_verbosity(verbosity)
        if had_bars:
            datasets.enable_progress_bars()


def _bom_aware(path: Path, encoding: str) -> str:
    """Return `utf-8-sig` for UTF-8 files that begin with a byte order mark, as Excel's do."""
    if encoding.lower().replace("_", "-") not in ("utf-8", "utf8"):
        return encoding
    with path.open("rb") as file:
        return "utf-8-sig" if file.read(3) == b"\xef\xbb\xbf" else encoding


def _check_encoding(path: Path, encoding: str) -> None:
    """Decode a file once, because the JSON reader passes bytes on that are no UTF-8."""
    with path.open(encoding=encoding, newline="") as file:
        while file.read(1 << 20):
            pass


def _explained(error: Exception, path: Path, encoding: str, name: str) -> DataError:
    chain: BaseException | None = error
    while chain is not None:
        if isinstance(chain, UnicodeError):
            return _encoding_error(path, encoding, name)
        chain = chain.__cause__
    reason = _cause(error)
    if "loss of data" in reason:
        reason = "every row has more fields than the header names."
    return DataError(
        f"`{name}` cannot be read: {reason} Mend the file, or set `data.format` if it is of another"
        f" format ({', '.join(sorted(set(FORMATS.values())))})."
    )


def _encoding_error(path: Path, encoding: str, name: str) -> DataError:
    data = path.read_bytes()
    place = ""
    try:
        data.decode(encoding)
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        byte = data[error.start]
        place = f" Byte {error.start} (0x{byte:02x}, line {line}) does not fit."
    return DataError(
        f"`{name}` is not encoded in {encoding}.{place} Set `data.encoding` to the file's encoding,"
        " for example cp1252 or utf-16, or save the file as UTF-8."
    )


def _cause(error: BaseException) -> str:
    """Return the innermost reason as one sentence on one line."""
    while error.__cause__ is not None:
        error = error.__cause__
    text = " ".join(str(error).split()) or type(error).__name__
    return text if text.endswith((".", "!", "?")) else f"{text}."
