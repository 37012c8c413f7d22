"""The front door of the data layer: from a `DataConfig` to checked splits."""

from __future__ import annotations

import dataclasses

from automl_ft.config.study import DataConfig
from automl_ft.data.cleaning import clean
from automl_ft.data.columns import map_columns
from automl_ft.data.sources import read_source
from automl_ft.data.splits import make_splits
from automl_ft.data.table import Splits

__all__ = ["load_splits"]


def load_splits(config: DataConfig, seed: int) -> Splits:
    """Read, map, check and split a study's data.

    Args:
        config: Where the rows are, and how they are read and split.
        seed: The study's seed; it matters only for splits that have to be drawn.

    Returns:
        The splits with everything that was met on the way as notes.

    Raises:
        DataError: The data cannot be found, read or used.
    """
    rows, labels, notes = clean(map_columns(read_source(config), config))
    splits = make_splits(rows, labels, config, seed)
    return dataclasses.replace(splits, notes=(*notes, *splits.notes))
