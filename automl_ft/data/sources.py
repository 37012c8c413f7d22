"""Which rows belong to which split: a `DataConfig` into raw tables by split.

Reads what is asked for and nothing else; columns are mapped in `data.columns`, missing splits
are drawn in `data.splits`.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from automl_ft.config.study import DataConfig
from automl_ft.data.bundled import BUNDLED, read_bundled
from automl_ft.data.readers import (
    FORMATS,
    RawTable,
    file_format,
    read_file,
    read_hub,
    read_saved_folder,
)
from automl_ft.errors import DataError, did_you_mean

__all__ = ["RawSplits", "read_source"]

RawSplits = Mapping[str, Sequence[RawTable]]
"""Raw tables by split: `train` always, `validation` and `test` only where they are given."""

_ALIASES: Mapping[str, tuple[str, ...]] = {
    "train": ("train", "training"),
    "validation": ("validation", "valid", "val", "dev"),
    "test": ("test", "testing"),
}
_ACCEPTED = (
    "a hub id, a file (" + ", ".join(FORMATS) + "), a folder with such files or of `save_to_disk`,"
    f" or a bundled data set ({', '.join(BUNDLED)})"
)


def read_source(config: DataConfig) -> RawSplits:
    """Read the rows that a study is about.

    A split that the source holds is kept; a fraction in the config then has no effect. With
    `test` None or 0 a test split of the source is left unread.

    Args:
        config: The data config.

    Returns:
        Raw tables by split; `train` holds what missing splits are drawn from.

    Raises:
        DataError: Something is missing, cannot be read, or is ambiguous.
    """
    found = {} if config.path is None else _read_path(config.path, config)
    splits = dict(found)
    wanted = {"train": config.train, "validation": config.validation, "test": config.test}
    for split, value in wanted.items():
        if isinstance(value, str):
            splits[split] = _named_split(split, value, found, config)
    if "train" not in splits:
        splits["train"] = _only_split(found, config)
    names = [split for split in _ALIASES if split in splits and (split != "test" or config.test)]
    return {split: splits[split] for split in names}


def _read_path(path: str | tuple[str, ...], config: DataConfig) -> dict[str, Sequence[RawTable]]:
    """Return the tables of `data.path` by split; splits of other names keep their names."""
    if not isinstance(path, str):
        files = [_existing(item, "data.path") for item in path]
        return _by_split(files, config) or {"train": _read_all(files, config)}
    if path in BUNDLED:
        return _canonical(read_bundled(path))
    place = Path(path).expanduser()
    if place.is_file():
        return {"train": _read_all([place], config)}
    if place.is_dir():
        saved = read_saved_folder(place)
        return _read_folder(place, config) if saved is None else _canonical(saved)
    if not _may_be_hub_id(path):
        raise _missing(path, "data.path")
    return _canonical(read_hub(path, config.config, config.revision))


def _named_split(
    split: str, value: str, found: Mapping[str, Sequence[RawTable]], config: DataConfig
) -> Sequence[RawTable]:
    """Return the split that the config names: a file, else a split of `data.path`."""
    place = Path(value).expanduser()
    if place.is_file():
        return _read_all([place], config)
    if value in found:
        return found[value]
    for canonical, aliases in _ALIASES.items():
        if value.lower() in aliases and canonical in found:
            return found[canonical]
    if place.is_dir():
        raise DataError(
            f"`data.{split}` is `{value}`, a folder. Accepted: a file, or a split of `data.path`."
        )
    if file_format(place) is not None or not found:
        raise _missing(value, f"data.{split}")
    raise DataError(
        f"`data.{split}` is `{value}`, but there is no such file and `{config.path}` has no split"
        f" of that name. {did_you_mean(value, found)}"
    )


def _only_split(found: Mapping[str, Sequence[RawTable]], config: DataConfig) -> Sequence[RawTable]:
    """Return the only split that is neither validation nor test, as the training rows."""
    taken = {config.validation, config.test, "validation", "test"}
    others = [name for name in found if name not in taken]
    if len(others) != 1:
        raise DataError(
            f"`{config.path}` has no training split; its splits are {', '.join(sorted(found))}."
            " Set `data.train` to the split, or the file, to train on."
        )
    return found[others[0]]


def _read_folder(folder: Path, config: DataConfig) -> dict[str, Sequence[RawTable]]:
    files = sorted(item for item in folder.iterdir() if _is_data_file(item))
    if not files and (folder / "data").is_dir():
        return _read_folder(folder / "data", config)
    if not files:
        raise DataError(
            f"`data.path` is `{folder}`, a folder without data files. Accepted: {_ACCEPTED}."
        )
    splits = _by_split(files, config)
    if splits:
        return splits
    if len(files) > 1:
        raise DataError(
            f"`data.path` is `{folder}`, with {len(files)} data files whose names do not say which"
            f" split they are ({', '.join(file.name for file in files[:5])}). Put train, validation"
            " or test into their names, or name the files in `data.train`, `data.validation` and"
            " `data.test`."
        )
    return {"train": _read_all(files, config)}


def _by_split(files: Sequence[Path], config: DataConfig) -> dict[str, Sequence[RawTable]]:
    """Read files whose names say their split; empty if no file is called a training split."""
    by_split: dict[str, list[Path]] = {}
    for file in files:
        split = _split_of(file)
        if split is not None:
            by_split.setdefault(split, []).append(file)
    if "train" not in by_split:
        return {}
    for split, parts in by_split.items():
        if len({_family(part) for part in parts}) > 1:
            raise DataError(
                f"Several files look like the {split} split: {', '.join(map(str, parts))}. Name the"
                f" right one in `data.{split}`."
            )
    if not config.test:
        by_split.pop("test", None)
    return {split: _read_all(parts, config) for split, parts in by_split.items()}


def _split_of(file: Path) -> str | None:
    words = re.split(r"[^a-z]+", file.stem.lower())
    for split, aliases in _ALIASES.items():
        if any(alias in words for alias in aliases):
            return split
    return None


def _family(file: Path) -> tuple[str, str]:
    """Return what the shards of one split have in common: name without digits, and ending."""
    return re.sub(r"\d+", "", file.stem), file.suffix.lower()


def _read_all(files: Iterable[Path], config: DataConfig) -> list[RawTable]:
    return [_read(file, config) for file in files]


def _read(file: Path, config: DataConfig) -> RawTable:
    format_name = file_format(file, config.format)
    if format_name is None:
        raise DataError(
            f"`{file}` has an ending that is not known. Accepted: {', '.join(FORMATS)}. Rename it,"
            " or set `data.format`."
        )
    return read_file(file, format_name=format_name, encoding=config.encoding, name=str(file))


def _canonical(tables: Mapping[str, RawTable]) -> dict[str, Sequence[RawTable]]:
    """Give splits our names; the first alias that is there wins, others keep theirs."""
    renamed: dict[str, Sequence[RawTable]] = {name: [table] for name, table in tables.items()}
    for split, aliases in _ALIASES.items():
        alias = next((name for name in aliases if name in renamed), None)
        if alias is not None:
            renamed[split] = renamed.pop(alias)
    return renamed


def _existing(path: str, key: str) -> Path:
    place = Path(path).expanduser()
    if not place.is_file():
        raise _missing(path, key)
    return place


def _missing(path: str, key: str) -> DataError:
    place = Path(path).expanduser()
    siblings: Iterable[str] = ()
    if place.parent.is_dir():
        siblings = [item.name for item in place.parent.iterdir() if _is_data_file(item)]
    hint = did_you_mean(place.name, siblings)
    hint = f" {hint}" if hint.startswith("Did") else ""
    accepted = _ACCEPTED if key == "data.path" else "an existing file, or a split of `data.path`"
    return DataError(f"`{key}` is `{path}`, which does not exist.{hint} Accepted: {accepted}.")


def _is_data_file(path: Path) -> bool:
    return path.is_file() and not path.name.startswith(".") and file_format(path) is not None


def _may_be_hub_id(path: str) -> bool:
    is_id = re.fullmatch(r"[\w-][\w.-]*(/[\w-][\w.-]*)?", path) is not None
    return is_id and file_format(Path(path)) is None
