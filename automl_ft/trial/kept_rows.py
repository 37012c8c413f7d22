"""Where does a study keep its rows, and when is what lies there theirs?

Its own copy of the rows, and the encoded rows of each checkpoint, under a key of all that they
depend on; these are mapped into memory, not read.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path

from automl_ft.data.encoding import EncodedSplit
from automl_ft.data.saved import load_saved_splits, save_splits
from automl_ft.data.table import Splits
from automl_ft.errors import DataError
from automl_ft.specs.facts import CheckpointFacts, DataFacts
from automl_ft.specs.layout import encoded_folder, rows_folder

__all__ = ["find_encoded", "keep_encoded", "keep_rows", "load_encoded"]

_SPLITS = ("train", "validation")
"""Splits that a search reads; the test split is kept but never encoded."""


def keep_rows(rows: Splits, data: DataFacts, folder: Path) -> None:
    """Write a study's own copy of its rows, where it is not there yet.

    Args:
        rows: All splits.
        data: Their facts.
        folder: The study's folder.
    """
    try:
        kept = load_saved_splits(rows_folder(folder)).facts()
    except DataError:
        kept = None
    if kept is None or kept.split_fingerprints != data.split_fingerprints:
        save_splits(rows, rows_folder(folder))


def keep_encoded(
    splits: Mapping[str, EncodedSplit], checkpoint: CheckpointFacts, data: DataFacts, folder: Path
) -> None:
    """Write encoded rows, where they are not there yet.

    Args:
        splits: The rows, by name of their split.
        checkpoint: What they are encoded for.
        data: Their facts.
        folder: The study's folder.
    """
    for name, split in splits.items():
        place, key = _place(folder, checkpoint, data, name)
        if EncodedSplit.load(place, key) is None:
            split.save(place, key)


def find_encoded(
    checkpoint: CheckpointFacts, data: DataFacts, folder: Path
) -> dict[str, EncodedSplit] | None:
    """Map the encoded rows that a search reads.

    Args:
        checkpoint: What they are encoded for.
        data: Their facts.
        folder: The study's folder.

    Returns:
        `train` and `validation`; None where one of them is missing, damaged, or of other facts.
    """
    splits = {}
    for name in _SPLITS:
        split = EncodedSplit.load(*_place(folder, checkpoint, data, name))
        if split is None:
            return None
        splits[name] = split
    return splits


def load_encoded(
    checkpoint: CheckpointFacts, data: DataFacts, folder: Path
) -> dict[str, EncodedSplit]:
    """Map the encoded rows that a study has kept.

    Args:
        checkpoint: What they are encoded for.
        data: Their facts.
        folder: The study's folder.

    Returns:
        `train` and `validation`.

    Raises:
        DataError: One of them is missing, damaged, or of other facts.
    """
    splits = find_encoded(checkpoint, data, folder)
    if splits is None:
        place, _ = _place(folder, checkpoint, data, _SPLITS[0])
        raise DataError(
            f"Encoded rows in `{place.parent}` are missing or damaged. Run the same"
            " `automl-ft search` again: it makes them anew."
        )
    return splits


def _place(
    folder: Path, checkpoint: CheckpointFacts, data: DataFacts, split: str
) -> tuple[Path, str]:
    """Return the folder of encoded rows, and the key of what they depend on."""
    slug = re.sub(r"[^\w.-]+", "-", checkpoint.checkpoint).strip("-.")[-60:]
    place = encoded_folder(folder) / f"{slug}-{checkpoint.weights_hash[:8]}" / split
    key = "-".join(
        (
            data.split_fingerprints[split],
            checkpoint.weights_hash,
            str(checkpoint.max_length),
            *([checkpoint.files_hash] if checkpoint.files_hash else []),
        )
    )
    return place, key
