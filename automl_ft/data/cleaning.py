"""What is wrong with the rows, what is done about it, and how the user is told.

Rows that cannot be used are dropped with a note that counts them and names the first few; what
makes the data useless is a `DataError`. Two decisions need their reasons here:

- A text of the training split that recurs in a given validation or test split is dropped from
  training: the splits that measure stay as they were given, and no score profits from having
  seen the answer. (Drawn splits cannot leak: duplicates stay together.)
- A class that no training row has is kept in validation and test: the model will get those rows
  wrong, as it would in use. Dropping them would flatter the score.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence

import numpy as np

from automl_ft.data.columns import MappedData, NamedRows
from automl_ft.data.fingerprint import text_key
from automl_ft.errors import DataError
from automl_ft.specs.facts import DataNote

__all__ = ["CleanData", "clean"]

CleanData = tuple[Mapping[str, NamedRows], tuple[str, ...], tuple[DataNote, ...]]
"""Rows by split, class names, notes."""

_SHOWN = 5
_FEW_CLASSES = 20


def clean(data: MappedData) -> CleanData:
    """Drop what cannot be used and note what is worth knowing.

    Args:
        data: Rows by split as they were read.

    Returns:
        Rows by split, all with texts and labels; the classes that are left; the notes.

    Raises:
        DataError: A split is empty, there are fewer than two classes, or nearly as many as rows.
    """
    notes: list[DataNote] = []
    splits = _without_hidden_test(data.splits, notes)
    splits = {name: _usable(name, rows, notes) for name, rows in splits.items()}
    splits["train"] = _without_leaks(splits, notes)
    _note_recurring_in_test(splits, notes)
    _note_conflicts(splits, notes)
    labels = _used_labels(splits, data.labels)
    _check_classes(splits, labels)
    _note_rare_classes(splits, labels, notes)
    return splits, labels, tuple(notes)


def _without_hidden_test(
    splits: Mapping[str, NamedRows], notes: list[DataNote]
) -> dict[str, NamedRows]:
    """Leave out a test split whose labels are held back, as GLUE's are."""
    kept = dict(splits)
    test = kept.get("test")
    if test is None or not len(test):
        return kept
    names = set(test.labels)
    if names == {None} or (names == {"-1"} and "-1" not in kept["train"].labels):
        del kept["test"]
        notes.append(
            DataNote(
                kind="hidden_test_labels",
                message=f"The test split ({len(test)} rows of {test.origins.sources[0]}) has no"
                " labels; it is left out.",
                count=len(test),
            )
        )
    return kept


def _usable(split: str, rows: NamedRows, notes: list[DataNote]) -> NamedRows:
    """Drop rows without text or label."""
    blank = np.asarray([not any(map(str.strip, texts)) for texts in rows.texts], dtype=bool)
    unlabelled = np.asarray([label is None for label in rows.labels], dtype=bool) & ~blank
    for kind, mask, what in (
        ("empty_text", blank, "an empty text"),
        ("missing_label", unlabelled, "no label"),
    ):
        found = np.flatnonzero(mask)
        if len(found):
            where = rows.origins.describe(found, _SHOWN)
            message = f"{_count(found, 'row')} of {split} with {what} left out: {where}."
            notes.append(DataNote(kind=kind, message=message, count=len(found)))
    kept = np.flatnonzero(~(blank | unlabelled))
    if not len(kept):
        reason = (
            "has no rows"
            if not len(rows)
            else f"has no row with both text and label ({len(rows)} were read)"
        )
        raise DataError(
            f"The {split} split {reason}. Check `data.text`, `data.label` and the files."
        )
    return rows if len(kept) == len(rows) else rows.take(kept)


def _without_leaks(splits: Mapping[str, NamedRows], notes: list[DataNote]) -> NamedRows:
    """Drop training rows whose text recurs in a given validation or test split."""
    train = splits["train"]
    keys = [text_key(texts) for texts in train.texts]
    leaked = np.zeros(len(train), dtype=bool)
    for split in ("validation", "test"):
        if split not in splits:
            continue
        held_out = {text_key(texts) for texts in splits[split].texts}
        found = np.flatnonzero([key in held_out for key in keys])
        leaked[found] = True
        if len(found):
            message = (
                f"{_count(found, 'training row')} with a text that recurs in {split} left out of"
                f" training: {train.origins.describe(found, _SHOWN)}."
            )
            notes.append(DataNote(kind=f"train_in_{split}", message=message, count=len(found)))
    if leaked.all():
        raise DataError(
            f"All {len(train)} texts of the training split recur in validation or test, so there is"
            " nothing to learn from that is not also measured on. Give splits of different rows."
        )
    return train.take(np.flatnonzero(~leaked)) if leaked.any() else train


def _note_recurring_in_test(splits: Mapping[str, NamedRows], notes: list[DataNote]) -> None:
    if not {"validation", "test"} <= splits.keys():
        return
    validation = splits["validation"]
    keys = {text_key(texts) for texts in splits["test"].texts}
    found = np.flatnonzero([text_key(texts) in keys for texts in validation.texts])
    if len(found):
        message = (
            f"{_count(found, 'validation row')} with a text that recurs in test:"
            f" {validation.origins.describe(found, _SHOWN)}. They are kept, so the test score is"
            " not wholly fresh."
        )
        notes.append(DataNote(kind="validation_in_test", message=message, count=len(found)))


def _note_conflicts(splits: Mapping[str, NamedRows], notes: list[DataNote]) -> None:
    """Note rows of one text with different labels; they are kept, as noise or as ambiguity."""
    labels: dict[bytes, set[str | None]] = {}
    keys = {name: [text_key(texts) for texts in rows.texts] for name, rows in splits.items()}
    for name, rows in splits.items():
        for key, label in zip(keys[name], rows.labels, strict=True):
            labels.setdefault(key, set()).add(label)
    conflicting = {key for key, names in labels.items() if len(names) > 1}
    if not conflicting:
        return
    found = {name: np.flatnonzero([k in conflicting for k in keys[name]]) for name in splits}
    count = sum(map(len, found.values()))
    where = "; ".join(
        splits[name].origins.describe(rows, _SHOWN) for name, rows in found.items() if len(rows)
    )
    message = (
        f"{count} rows share {len(conflicting)} text{'s' if len(conflicting) > 1 else ''} but"
        f" differ in their labels: {where}. They are kept."
    )
    notes.append(DataNote(kind="conflicting_duplicates", message=message, count=count))


def _used_labels(splits: Mapping[str, NamedRows], labels: Sequence[str]) -> tuple[str, ...]:
    used = {label for rows in splits.values() for label in rows.labels}
    return tuple(label for label in labels if label in used)


def _check_classes(splits: Mapping[str, NamedRows], labels: Sequence[str]) -> None:
    train = splits["train"]
    classes = set(train.labels)
    if len(classes) < 2:
        raise DataError(
            f"All {len(train)} training rows are of one class, `{train.labels[0]}`. At least two"
            " classes are needed. Check `data.label`."
        )
    if len(classes) > max(_FEW_CLASSES, len(train) / 2):
        raise DataError(
            f"The training rows hold {len(classes)} classes in {len(train)} rows, such as"
            f" {_names(labels[:3])}. Classification needs several rows a class. Check `data.label`."
        )


def _note_rare_classes(
    splits: Mapping[str, NamedRows], labels: Sequence[str], notes: list[DataNote]
) -> None:
    counts = {name: Counter(rows.labels) for name, rows in splits.items()}
    trained = counts["train"]
    untrained = [label for label in labels if label not in trained]
    if untrained:
        found = sum(count[label] for count in counts.values() for label in untrained)
        message = (
            f"No training row has {_classes(untrained)}, but {found} rows of validation or test do."
            " They are kept and will be counted as errors; give training rows of the class, or"
            " leave those rows out."
        )
        notes.append(DataNote(kind="label_not_in_train", message=message, count=found))
    single = [label for label in labels if trained[label] == 1]
    if single:
        rows = np.flatnonzero([label in set(single) for label in splits["train"].labels])
        message = (
            f"Only one training row has {_classes(single)}"
            f" ({splits['train'].origins.describe(rows, _SHOWN)}); it stays in training."
        )
        notes.append(DataNote(kind="single_example", message=message, count=len(single)))
    for split in ("validation", "test"):
        absent = [label for label in labels if split in counts and label not in counts[split]]
        if absent:
            message = f"The given {split} split has no row of {_classes(absent)}."
            notes.append(DataNote(kind=f"not_in_{split}", message=message, count=len(absent)))


def _classes(names: Sequence[str]) -> str:
    return f"{'class' if len(names) == 1 else f'each of {len(names)} classes'} {_names(names)}"


def _names(names: Sequence[str]) -> str:
    listed = ", ".join(f"`{name}`" for name in names[:_SHOWN])
    return listed + (", ..." if len(names) > _SHOWN else "")


def _count(rows: Sequence[int] | np.ndarray, noun: str) -> str:
    return f"{len(rows)} {noun}{'' if len(rows) == 1 else 's'}"
