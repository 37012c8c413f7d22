"""The study's own copy of its rows: what was split stays split, whatever happens to the source."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from automl_ft.data.table import Origins, Splits, TextTable
from automl_ft.errors import DataError
from automl_ft.files.atomic import atomic_path
from automl_ft.specs.codec import from_plain, to_plain
from automl_ft.specs.facts import DataNote

__all__ = ["load_saved_splits", "save_splits"]

_VERSION = 1


def save_splits(splits: Splits, folder: Path) -> None:
    """Write splits to a folder, whole or not at all; one that is there is replaced.

    Args:
        splits: The splits.
        folder: The folder; its parent is made where it is missing.

    Raises:
        OSError: The disk is full or the folder cannot be written.
    """
    manifest = {
        "version": _VERSION,
        "labels": list(splits.labels),
        "fingerprints": dict(splits.facts().split_fingerprints),
        "sources": {name: list(table.origins.sources) for name, table in splits.tables.items()},
        "notes": to_plain(splits.notes),
    }
    folder.parent.mkdir(parents=True, exist_ok=True)
    with atomic_path(folder) as temporary:
        temporary.mkdir()
        for name, table in splits.tables.items():
            pq.write_table(_to_arrow(table), temporary / f"{name}.parquet")
        text = json.dumps(manifest, indent=2, ensure_ascii=False)
        (temporary / "splits.json").write_text(text, encoding="utf-8")
        shutil.rmtree(folder, ignore_errors=True)


def load_saved_splits(folder: Path) -> Splits:
    """Read splits back, equal row by row to what was saved.

    Args:
        folder: Where they were saved.

    Returns:
        The splits.

    Raises:
        DataError: The folder is missing, or its rows are not those that were saved.
    """
    try:
        manifest = json.loads((folder / "splits.json").read_text(encoding="utf-8"))
        tables = {
            name: _from_arrow(pq.read_table(folder / f"{name}.parquet"), sources)
            for name, sources in manifest["sources"].items()
        }
        splits = Splits(
            train=tables["train"],
            validation=tables["validation"],
            test=tables.get("test"),
            labels=tuple(manifest["labels"]),
            notes=tuple(from_plain(DataNote, note) for note in manifest["notes"]),
        )
        is_intact = splits.facts().split_fingerprints == manifest["fingerprints"]
    except (OSError, ValueError, KeyError, IndexError, TypeError, pa.ArrowException) as error:
        raise _damaged(folder, str(error)) from error
    if not is_intact:
        raise _damaged(folder, "the rows do not match their fingerprint")
    return splits


def _to_arrow(table: TextTable) -> pa.Table:
    columns: dict[str, Any] = {
        f"text_{number}": pa.array(column, type=pa.large_string())
        for number, column in enumerate(zip(*table.texts, strict=True))
    }
    columns["label"] = np.asarray(table.labels, dtype=np.int64)
    columns["source"] = np.asarray(table.origins.source_ids, dtype=np.int32)
    columns["row"] = np.asarray(table.origins.row_numbers, dtype=np.int64)
    if table.groups is not None:
        columns["group"] = pa.array(table.groups, type=pa.large_string())
    return pa.table(columns)


def _from_arrow(table: pa.Table, sources: list[str]) -> TextTable:
    names = [name for name in table.column_names if name.startswith("text_")]
    has_groups = "group" in table.column_names
    return TextTable(
        texts=tuple(zip(*(table[name].to_pylist() for name in names), strict=True)),
        labels=table["label"].to_numpy(),
        origins=Origins(
            sources=tuple(sources),
            source_ids=table["source"].to_numpy(),
            row_numbers=table["row"].to_numpy(),
        ),
        groups=tuple(table["group"].to_pylist()) if has_groups else None,
    )


def _damaged(folder: Path, reason: str) -> DataError:
    return DataError(
        f"The study's copy of its rows in `{folder}` cannot be read: {reason}. Restore the folder"
        " from a backup, or delete the study and start it again."
    )
