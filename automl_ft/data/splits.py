"""How missing splits are drawn: stratified, with duplicates and groups kept together.

The draw depends on the seed and on the rows' texts, never on their order. scikit-learn's
`StratifiedGroupKFold` keeps groups together too, but knows only fractions 1/k and is several times
slower (3 s for 20,000 rows on one core, this takes 2 s for 100,000); hence iterative stratification
(Sechidis et al., On the Stratification of Multi-Label Data, 2011) over units of rows that belong
together.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import coo_matrix, csr_matrix
from scipy.sparse.csgraph import connected_components

from automl_ft.config.study import DataConfig
from automl_ft.data.columns import NamedRows
from automl_ft.data.fingerprint import text_key
from automl_ft.data.table import IntArray, Splits, TextTable
from automl_ft.errors import DataError
from automl_ft.specs.facts import DataNote

__all__ = ["make_splits"]

_FloatArray = NDArray[np.floating[Any]]


def make_splits(
    rows: Mapping[str, NamedRows],
    labels: Sequence[str],
    config: DataConfig,
    seed: int,
) -> Splits:
    """Keep the splits that are given and draw the missing ones from the training rows.

    Args:
        rows: Clean rows by split; `train` is what missing splits are drawn from.
        labels: Class names by id.
        config: Holds the fractions, of the rows that are drawn from.
        seed: Seed of the draw.

    Returns:
        The splits; rows keep their order in the source.

    Raises:
        DataError: A split would be too small for its classes, or groups leave one empty.
    """
    ids = {label: number for number, label in enumerate(labels)}
    tables = {name: _table(part, ids) for name, part in rows.items()}
    wanted = {"validation": config.validation, "test": config.test}
    fractions = {
        name: float(value)
        for name, value in wanted.items()
        if name not in rows and isinstance(value, (int, float)) and value > 0
    }
    notes = list(_group_notes(rows))
    if fractions:
        pool = tables["train"]
        assigned = _draw(rows["train"], pool.labels, fractions, seed)
        names = ("train", *fractions)
        for number, name in enumerate(names):
            chosen = np.flatnonzero(assigned == number)
            _check_not_empty(name, chosen, config)
            tables[name] = pool.take(chosen)
        notes.extend(_absent_notes(tables, names, labels))
    return Splits(
        train=tables["train"],
        validation=tables["validation"],
        test=tables.get("test"),
        labels=tuple(labels),
        notes=tuple(notes),
    )


def _table(rows: NamedRows, ids: Mapping[str, int]) -> TextTable:
    groups = rows.groups
    return TextTable(
        texts=rows.texts,
        labels=np.asarray([ids[label] for label in rows.labels if label is not None], np.int64),
        origins=rows.origins,
        groups=None if groups is None else tuple(group or "" for group in groups),
    )


def _draw(rows: NamedRows, labels: IntArray, fractions: Mapping[str, float], seed: int) -> IntArray:
    """Return the split of each row: 0 for train, then the fractions in their order."""
    if sum(fractions.values()) >= 1:
        given = " and ".join(f"`data.{name}` {value:g}" for name, value in fractions.items())
        raise DataError(f"{given} leave no rows to train on. Their sum must be below 1.")
    keys = [text_key(texts) for texts in rows.texts]
    units = _units(keys, rows.groups)
    order = _unit_order(keys, units, seed)
    counts = _class_counts(units, labels)
    quotas = _quotas(counts, fractions)
    return _allocate(counts, quotas, order)[units]


def _units(keys: Sequence[bytes], groups: Sequence[str | None] | None) -> IntArray:
    """Return the unit of each row: rows linked by an equal text or an equal group."""
    _, texts = np.unique(np.asarray(keys), return_inverse=True)
    if groups is None:
        return np.asarray(texts, dtype=np.int64)
    # A row without group is a group of its own; row numbers cannot clash with group names.
    names = [("", row) if group is None else (group, -1) for row, group in enumerate(groups)]
    numbers = {name: number for number, name in enumerate(dict.fromkeys(names))}
    offset = int(texts.max()) + 1
    members = np.asarray([numbers[name] for name in names], dtype=np.int64) + offset
    size = offset + len(numbers)
    links = coo_matrix((np.ones(len(keys), dtype=np.int8), (texts, members)), shape=(size, size))
    _, components = connected_components(links, directed=False)
    _, units = np.unique(components[texts], return_inverse=True)
    return np.asarray(units, dtype=np.int64)


def _unit_order(keys: Sequence[bytes], units: IntArray, seed: int) -> IntArray:
    """Return the units, large ones first, those of one size shuffled by the seed."""
    salt = str(seed).encode()
    digests = [hashlib.blake2b(key, digest_size=8, key=salt).digest() for key in keys]
    priority = np.frombuffer(b"".join(digests), dtype=">u8")
    lowest = np.full(int(units.max()) + 1, np.iinfo(np.uint64).max, dtype=np.uint64)
    np.minimum.at(lowest, units, priority.astype(np.uint64))
    return np.lexsort((lowest, -np.bincount(units)))


def _class_counts(units: IntArray, labels: IntArray) -> csr_matrix:
    """Return rows by unit and class, sparse, of shape (num_units, num_classes)."""
    counts = csr_matrix((np.ones(len(units), dtype=np.int64), (units, labels)))
    counts.sum_duplicates()
    return counts


def _quotas(counts: csr_matrix, fractions: Mapping[str, float]) -> _FloatArray:
    """Return wanted rows by split (train first) and class.

    A class goes to training first, then to validation, then to test, so that one with a single
    unit is trained on.
    """
    totals = np.asarray(counts.sum(axis=0)).ravel()
    num_units = counts.getnnz(axis=0)
    drawn = []
    for rank, (name, fraction) in enumerate(fractions.items(), start=1):
        eligible = num_units > rank
        quota = _rounded(totals * fraction)
        needed, size = int(eligible.sum()), int(quota.sum())
        if size < needed:
            raise _too_small(name, fraction, size, needed, int(totals.sum()))
        drawn.append(np.where(eligible, np.maximum(quota, 1), 0))
    return np.stack([totals - np.sum(drawn, axis=0), *drawn]).astype(np.float64)


def _rounded(shares: _FloatArray) -> IntArray:
    """Round so that the sum is right, by largest remainder."""
    whole = np.floor(shares).astype(np.int64)
    missing = round(float(shares.sum())) - int(whole.sum())
    whole[np.argsort(whole - shares, kind="stable")[:missing]] += 1
    return whole


def _allocate(counts: csr_matrix, quotas: _FloatArray, order: IntArray) -> IntArray:
    """Give each unit to the split that still lacks most of its classes' rows."""
    remaining = quotas.copy()
    totals = np.maximum(np.asarray(counts.sum(axis=0)).ravel(), 1)
    assigned = np.zeros(counts.shape[0], dtype=np.int64)
    for unit in order:
        part = slice(counts.indptr[unit], counts.indptr[unit + 1])
        classes, held = counts.indices[part], counts.data[part]
        scores = remaining[:, classes] @ (held / totals[classes])
        split = int(np.argmax(scores))
        assigned[unit] = split
        remaining[split, classes] -= held
    return assigned


def _too_small(name: str, fraction: float, size: int, needed: int, total: int) -> DataError:
    # Every class that needs a row has two at least, so this is never above a half.
    least = np.ceil(100 * needed / total) / 100
    instead = ", or set it to 0 for no test split" if name == "test" else ""
    classes = "1 class that needs" if needed == 1 else f"{needed} classes that need"
    each = "" if needed == 1 else " each"
    return DataError(
        f"`data.{name}` is {fraction:g}: {size} of {total} rows, too few for {classes} at least one"
        f" row{each}. Set it to {least:g} or more{instead}, or give more rows."
    )


def _check_not_empty(name: str, chosen: IntArray, config: DataConfig) -> None:
    if len(chosen):
        return
    instead = ", or set `data.test` to 0 for no test split" if name == "test" else ""
    if config.group is None:
        raise DataError(
            f"No rows are left for the {name} split: the classes have too few rows to be divided"
            " (those of one text stay together and count once). Give more rows of each class, or"
            f" files for the splits{instead}."
        )
    raise DataError(
        f"No rows are left for the {name} split: the groups of `data.group: {config.group}` or"
        " repeated texts are too large to be divided. Give more groups, or files for the"
        f" splits{instead}."
    )


def _absent_notes(
    tables: Mapping[str, TextTable], names: Sequence[str], labels: Sequence[str]
) -> list[DataNote]:
    """Note classes that groups and duplicates kept out of a drawn split."""
    notes = []
    for name in names:
        absent = np.flatnonzero(np.bincount(tables[name].labels, minlength=len(labels)) == 0)
        if len(absent):
            listed = ", ".join(f"`{labels[number]}`" for number in absent[:5])
            more = ", ..." if len(absent) > 5 else ""
            message = (
                f"The {name} split that was drawn has no row of {len(absent)}"
                f" class{'' if len(absent) == 1 else 'es'} with too few rows or groups:"
                f" {listed}{more}."
            )
            notes.append(DataNote(kind=f"not_in_{name}", message=message, count=len(absent)))
    return notes


def _group_notes(rows: Mapping[str, NamedRows]) -> list[DataNote]:
    """Note groups that given splits share: they are kept as given."""
    train = set(rows["train"].groups or ()) - {None}
    notes = []
    for name in ("validation", "test"):
        if name in rows and train:
            shared = train.intersection(rows[name].groups or ())
            if shared:
                message = f"{len(shared)} groups of the given {name} split are also trained on."
                notes.append(DataNote(kind=f"group_in_{name}", message=message, count=len(shared)))
    return notes
