"""The labelled rows of a study in memory: one table per split, and where each row came from."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from automl_ft.data.fingerprint import combined_fingerprint, rows_fingerprint
from automl_ft.specs.facts import DataFacts, DataNote

__all__ = ["IntArray", "Origins", "Splits", "TextTable"]

IntArray: TypeAlias = NDArray[np.signedinteger[Any]]
"""A numpy array of whole numbers."""


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Origins:
    """Where rows came from, for messages; 12 bytes a row."""

    sources: tuple[str, ...]
    """Names of files or splits, as a message shows them."""
    source_ids: IntArray
    """Index into `sources` of each row, int32, shape (num_rows,)."""
    row_numbers: IntArray
    """Number of each row in its source, counted from 1 without the header, shape (num_rows,)."""

    def take(self, indices: IntArray) -> Origins:
        """Return the origins of some rows.

        Args:
            indices: Row indices in the wanted order.

        Returns:
            Their origins.
        """
        return Origins(
            sources=self.sources,
            source_ids=self.source_ids[indices],
            row_numbers=self.row_numbers[indices],
        )

    def describe(self, indices: Sequence[int] | IntArray, limit: int = 5) -> str:
        """Name the first few rows in words.

        Args:
            indices: Row indices, at least one.
            limit: How many rows to name.

        Returns:
            Words such as `rows 3, 17, 20, 31, 40, ... of train.csv`.
        """
        shown: dict[int, list[str]] = {}
        for index in list(indices)[:limit]:
            numbers = shown.setdefault(int(self.source_ids[index]), [])
            numbers.append(str(int(self.row_numbers[index])))
        if len(indices) > limit:
            shown[next(reversed(shown))].append("...")
        parts = [
            f"row{'s' * (len(numbers) > 1)} {', '.join(numbers)} of {self.sources[source]}"
            for source, numbers in shown.items()
        ]
        return "; ".join(parts)

    @staticmethod
    def of_source(source: str, num_rows: int) -> Origins:
        """Return the origins of all rows of one source.

        Args:
            source: Name of the file or split.
            num_rows: Its rows.

        Returns:
            Origins numbered from 1.
        """
        return Origins(
            sources=(source,),
            source_ids=np.zeros(num_rows, dtype=np.int32),
            row_numbers=np.arange(1, num_rows + 1, dtype=np.int64),
        )

    @staticmethod
    def joined(parts: Sequence[Origins]) -> Origins:
        """Return the origins of tables laid end to end.

        Args:
            parts: At least one.

        Returns:
            Their rows in order.
        """
        names = tuple(dict.fromkeys(name for part in parts for name in part.sources))
        ids = [
            np.asarray([names.index(name) for name in part.sources], dtype=np.int32)[
                part.source_ids
            ]
            for part in parts
        ]
        return Origins(
            sources=names,
            source_ids=np.concatenate(ids),
            row_numbers=np.concatenate([part.row_numbers for part in parts]),
        )


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class TextTable:
    """The rows of one split, checked; nobody changes them."""

    texts: tuple[tuple[str, ...], ...]
    """One or two text fields of each row; every row has the same number."""
    labels: IntArray
    """Class id of each row, int64, shape (num_rows,)."""
    origins: Origins
    """Where each row came from."""
    groups: tuple[str, ...] | None = None
    """Group of each row, where a group column was named."""

    def __len__(self) -> int:
        return len(self.texts)

    def take(self, indices: IntArray) -> TextTable:
        """Return some rows as a table.

        Args:
            indices: Row indices in the wanted order.

        Returns:
            The rows.
        """
        rows = indices.tolist()
        return TextTable(
            texts=tuple(self.texts[row] for row in rows),
            labels=self.labels[indices],
            origins=self.origins.take(indices),
            groups=None if self.groups is None else tuple(self.groups[row] for row in rows),
        )


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Splits:
    """A study's data: its splits, its classes, and what was met while reading."""

    train: TextTable
    """Rows to train on."""
    validation: TextTable
    """Rows that trials are ranked on."""
    test: TextTable | None
    """Rows that the search never reads; None where there is no test split."""
    labels: tuple[str, ...]
    """Class names in the order of their ids."""
    notes: tuple[DataNote, ...] = ()
    """What was met while reading, checking and splitting."""

    @property
    def tables(self) -> Mapping[str, TextTable]:
        """The splits that exist, by name, in the order train, validation, test."""
        tables = {"train": self.train, "validation": self.validation}
        return tables if self.test is None else {**tables, "test": self.test}

    def facts(self) -> DataFacts:
        """Return what a study stores about its data.

        Returns:
            Counts, fingerprints and notes; a missing test split counts 0 rows.
        """
        counts = {name: self._class_counts(table) for name, table in self.tables.items()}
        no_test = {"test": 0} if self.test is None else {}
        prints = {
            name: rows_fingerprint(table.texts, (self.labels[label] for label in table.labels))
            for name, table in self.tables.items()
        }
        return DataFacts(
            labels=self.labels,
            num_examples={**{name: len(table) for name, table in self.tables.items()}, **no_test},
            class_counts=counts,
            fingerprint=combined_fingerprint(prints),
            split_fingerprints=prints,
            notes=self.notes,
        )

    def _class_counts(self, table: TextTable) -> dict[str, int]:
        counts = Counter(table.labels.tolist())
        return {name: counts[label] for label, name in enumerate(self.labels)}
