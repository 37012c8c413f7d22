"""Which column is the text, the label, the group: raw tables into texts and class names.

Only types are checked here; what the rows say is checked in `data.cleaning`.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from decimal import Decimal
from typing import Any

import datasets

from automl_ft.config.study import DataConfig
from automl_ft.data.readers import RawTable
from automl_ft.data.table import IntArray, Origins
from automl_ft.errors import DataError, did_you_mean

__all__ = ["MappedData", "NamedRows", "map_columns"]

_NUMBER = re.compile(r"[+-]?(0|[1-9]\d*)(\.\d+)?")
_TEXT_TYPES = ("string", "large_string", "string_view")


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class NamedRows:
    """Rows with their columns mapped; texts may be blank and labels missing."""

    texts: tuple[tuple[str, ...], ...]
    """Text fields of each row; a missing field is empty."""
    labels: tuple[str | None, ...]
    """Class name of each row; None where it is missing."""
    origins: Origins
    """Where each row came from."""
    groups: tuple[str | None, ...] | None
    """Group of each row, where a group column was named; None where it is missing."""

    def __len__(self) -> int:
        return len(self.texts)

    def take(self, indices: IntArray) -> NamedRows:
        """Return some rows.

        Args:
            indices: Row indices in the wanted order.

        Returns:
            The rows.
        """
        rows = indices.tolist()
        return NamedRows(
            texts=tuple(self.texts[row] for row in rows),
            labels=tuple(self.labels[row] for row in rows),
            origins=self.origins.take(indices),
            groups=None if self.groups is None else tuple(self.groups[row] for row in rows),
        )


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class MappedData:
    """All splits with their columns mapped."""

    splits: Mapping[str, NamedRows]
    """Rows by split."""
    labels: tuple[str, ...]
    """Class names: a `ClassLabel`'s own order, else numbers by size, else sorted."""


def map_columns(raw: Mapping[str, Sequence[RawTable]], config: DataConfig) -> MappedData:
    """Map the columns of every table, and name the classes alike in all of them.

    Whole floats and numbers that CSV holds as text become whole numbers (`2.0` is class `2`).
    Blanks around a class name do not count. -1 of a `ClassLabel` and empty text mean that the
    label is missing, as does a test split without label column.

    Args:
        raw: Raw tables by split.
        config: Names the columns.

    Returns:
        Rows by split, and the classes.

    Raises:
        DataError: A column is not there or of a wrong type, or the labels are no classes.
    """
    if config.label in config.text:
        raise DataError(
            f"`data.label` is `{config.label}`, which `data.text` names too: the model would read"
            " the answer. Name the column of the classes in `data.label` and leave it out of"
            " `data.text`."
        )
    tables = [(split, table) for split, parts in raw.items() for table in parts]
    values = [_label_values(table, config, is_test=split == "test") for split, table in tables]
    untyped = [
        value
        for (_, table), column in zip(tables, values, strict=True)
        if table.is_untyped
        for value in column
        if value is not None
    ]
    are_numbers = bool(untyped) and all(_NUMBER.fullmatch(value) for value in untyped)
    parts: dict[str, list[NamedRows]] = {}
    for (split, table), column in zip(tables, values, strict=True):
        numbers = are_numbers and table.is_untyped
        names = _class_names(column, table, config, are_numbers=numbers)
        parts.setdefault(split, []).append(_named_rows(table, names, config))
    splits = {split: _joined(rows) for split, rows in parts.items()}
    present = {name for rows in splits.values() for name in rows.labels if name is not None}
    declared = [name for _, table in tables for name in _declared_names(table, config)]
    return MappedData(splits=splits, labels=_ordered(present, declared))


def _label_values(table: RawTable, config: DataConfig, *, is_test: bool) -> Sequence[Any]:
    """Return the label column's values; blank text is None."""
    columns = table.dataset.column_names
    if config.label not in columns and is_test:
        return [None] * len(table.dataset)
    _require_column(config.label, "data.label", table)
    feature = table.dataset.features[config.label]
    if not isinstance(feature, (datasets.Value, datasets.ClassLabel, datasets.Json)):
        raise DataError(
            f"Column `{config.label}` of `{table.name}` holds {_type_name(feature)}, not one label"
            " per row; several labels a row are not supported. Accepted: text, whole numbers,"
            " true and false, ClassLabel."
        )
    values = _values(table.dataset, config.label)
    if isinstance(feature, datasets.ClassLabel):
        return [_class_label(value, feature, table, config) for value in values]
    return [(value.strip() or None) if isinstance(value, str) else value for value in values]


def _class_label(
    value: int | None, feature: datasets.ClassLabel, table: RawTable, config: DataConfig
) -> str | None:
    if value is None or value < 0:
        return None
    if value >= feature.num_classes:
        raise DataError(
            f"Column `{config.label}` of `{table.name}` holds {value}, but its ClassLabel names"
            f" only {feature.num_classes} classes, from 0. Cast the column to the right ClassLabel."
        )
    name: str = feature.int2str(value)
    return name


def _class_names(
    values: Sequence[Any], table: RawTable, config: DataConfig, *, are_numbers: bool
) -> tuple[str | None, ...]:
    names: list[str | None] = []
    for row, value in enumerate(values, start=1):
        number = _exact(value) if are_numbers and value is not None else value
        if isinstance(number, float) and math.isnan(number):
            names.append(None)
        elif isinstance(number, (float, Decimal)) and not _is_whole(number):
            raise DataError(
                f"Column `{config.label}` of `{table.name}` holds {value} in row {row}, which is"
                " not whole, so it looks like regression. Accepted as classes: text, whole numbers,"
                " true and false, ClassLabel. Turn ranges of the number into classes first."
            )
        elif number is None or isinstance(number, (str, bool, int, float, Decimal)):
            whole = int(number) if isinstance(number, (float, Decimal)) else number
            names.append(None if whole is None else str(whole))
        else:
            raise DataError(
                f"Column `{config.label}` of `{table.name}` holds {value!r} in row {row}, of type"
                f" {type(value).__name__}. Accepted: text, whole numbers, true and"
                " false, ClassLabel."
            )
    return tuple(names)


def _exact(text: str) -> int | Decimal:
    """Read a number without rounding it, so that large ones stay different classes."""
    return Decimal(text) if "." in text else int(text)


def _is_whole(number: float | Decimal) -> bool:
    if isinstance(number, Decimal):
        return number == number.to_integral_value()
    return number.is_integer()


def _named_rows(table: RawTable, labels: tuple[str | None, ...], config: DataConfig) -> NamedRows:
    fields = []
    for column in config.text:
        _require_column(column, "data.text", table)
        _require_text(column, table)
        fields.append([value or "" for value in _values(table.dataset, column)])
    groups = None
    if config.group is not None:
        _require_column(config.group, "data.group", table)
        values = _values(table.dataset, config.group)
        groups = tuple(None if value is None else str(value) for value in values)
    return NamedRows(
        texts=tuple(zip(*fields, strict=True)),
        labels=labels,
        origins=Origins.of_source(table.name, len(labels)),
        groups=groups,
    )


def _joined(parts: Sequence[NamedRows]) -> NamedRows:
    if len(parts) == 1:
        return parts[0]
    groups = None if parts[0].groups is None else [g for part in parts for g in part.groups or ()]
    return NamedRows(
        texts=tuple(texts for part in parts for texts in part.texts),
        labels=tuple(label for part in parts for label in part.labels),
        origins=Origins.joined([part.origins for part in parts]),
        groups=None if groups is None else tuple(groups),
    )


def _declared_names(table: RawTable, config: DataConfig) -> Sequence[str]:
    feature = table.dataset.features.get(config.label)
    return feature.names if isinstance(feature, datasets.ClassLabel) else ()


def _ordered(names: set[str], declared: Sequence[str]) -> tuple[str, ...]:
    """Order class names so that the same names always get the same ids."""
    first = [name for name in dict.fromkeys(declared) if name in names]
    rest = sorted(names.difference(first))
    if all(re.fullmatch(r"[+-]?\d+", name) for name in rest):
        rest.sort(key=int)
    return (*first, *rest)


def _values(dataset: datasets.Dataset, column: str) -> Sequence[Any]:
    values: Sequence[Any] = dataset.select_columns([column]).with_format(None)[:][column]
    return values


def _require_column(column: str, key: str, table: RawTable) -> None:
    columns = table.dataset.column_names
    if column not in columns:
        hint = did_you_mean(column, columns)
        listed = f" Its columns: {', '.join(columns)}." if hint.startswith("Did") else ""
        raise DataError(
            f"`{key}` is `{column}`, but `{table.name}` has no such column. {hint}{listed}"
        )


def _require_text(column: str, table: RawTable) -> None:
    features = table.dataset.features
    feature = features[column]
    if isinstance(feature, datasets.Value) and feature.dtype in (*_TEXT_TYPES, "null"):
        return
    texts = [name for name, other in features.items() if getattr(other, "dtype", "") in _TEXT_TYPES]
    there = f" Columns that hold text: {', '.join(texts)}." if texts else ""
    raise DataError(
        f"`data.text` names `{column}`, but in `{table.name}` that column holds"
        f" {_type_name(feature)}, not text.{there}"
    )


def _type_name(feature: object) -> str:
    if isinstance(feature, datasets.ClassLabel):
        return "class labels"
    if isinstance(feature, datasets.Value):
        return str(feature.dtype)
    return "values of mixed types" if isinstance(feature, datasets.Json) else "lists or structures"
