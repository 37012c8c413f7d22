"""The data layer from end to end on small files of every kind."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import datasets
import pytest

from automl_ft.config.study import DataConfig
from automl_ft.data import bundled
from automl_ft.data.prepare import load_splits
from automl_ft.errors import DataError

Config = Callable[..., DataConfig]
ROWS = [(f"text number {number}", ("pos", "neg")[number % 2]) for number in range(50)]


def write(kind: str, tmp_path: Path, write_csv: Callable[..., Path]) -> Path:
    path = tmp_path / f"data.{kind}"
    table = datasets.Dataset.from_dict(
        {"text": [text for text, _ in ROWS], "label": [label for _, label in ROWS]}
    )
    if kind in ("csv", "tsv"):
        return write_csv(path.name, ROWS)
    if kind == "parquet":
        table.to_parquet(str(path))
    elif kind == "folder":
        table.save_to_disk(str(path))
    elif kind == "arrow":
        table.save_to_disk(str(tmp_path / "saved"))
        return next((tmp_path / "saved").glob("*.arrow"))
    else:
        table.to_json(str(path), lines=kind == "jsonl")
    return path


@pytest.fixture
def fingerprint(write_csv: Callable[..., Path], config: Config) -> str:
    return load_splits(config(path=write_csv("first.csv", ROWS)), 0).facts().fingerprint


@pytest.mark.parametrize("kind", ["csv", "tsv", "json", "jsonl", "parquet", "arrow", "folder"])
def test_the_same_rows_give_the_same_splits_whatever_the_format(
    kind: str, tmp_path: Path, write_csv: Callable[..., Path], config: Config, fingerprint: str
) -> None:
    path = write(kind, tmp_path, write_csv)
    assert load_splits(config(path=path), 0).facts().fingerprint == fingerprint


def test_splits_have_the_sizes_that_were_asked_for(
    write_csv: Callable[..., Path], config: Config
) -> None:
    facts = load_splits(config(path=write_csv("a.csv", ROWS), validation=0.1, test=0.3), 0).facts()
    assert facts.num_examples == {"train": 30, "validation": 5, "test": 15}


def test_the_bundled_data_set_is_called_by_its_name(
    config: Config, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = [
        {"text": f"{split} {number}", "label": "ab"[number % 2], "split": split}
        for split in ("train", "validation", "test")
        for number in range(4)
    ]
    monkeypatch.setattr(bundled, "_cached_rows", lambda path: rows)
    facts = load_splits(config(path="docstrings", validation=0.4), 0).facts()
    assert facts.num_examples == {"train": 4, "validation": 4, "test": 4}


def test_notes_of_all_steps_are_kept_in_order(
    write_csv: Callable[..., Path], config: Config
) -> None:
    path = write_csv("a.csv", [*ROWS, ("", "pos"), ("no label", ""), ("odd text", "odd")])
    notes = load_splits(config(path=path), 0).facts().notes
    assert [note.kind for note in notes] == [
        "empty_text",
        "missing_label",
        "single_example",
        "not_in_validation",
        "not_in_test",
    ]
    assert "row 51 of" in notes[0].message


def test_a_fraction_has_no_effect_where_the_split_is_given(
    write_csv: Callable[..., Path], config: Config
) -> None:
    write_csv("d/train.csv", ROWS)
    path = write_csv("d/validation.csv", [("v one", "pos"), ("v two", "neg")])
    facts = load_splits(config(path=path.parent, validation=0.5, test=0.2), 0).facts()
    assert facts.num_examples == {"train": 40, "validation": 2, "test": 10}


def test_hidden_test_labels_make_room_for_a_drawn_test_split(
    tmp_path: Path, config: Config
) -> None:
    features = datasets.Features(
        {"text": datasets.Value("string"), "label": datasets.ClassLabel(names=["n", "p"])}
    )
    train = datasets.Dataset.from_dict(
        {"text": [t for t, _ in ROWS], "label": [n % 2 for n in range(50)]}, features=features
    )
    test = datasets.Dataset.from_dict({"text": ["x", "y"], "label": [-1, -1]}, features=features)
    datasets.DatasetDict(train=train, test=test).save_to_disk(str(tmp_path / "glue"))
    facts = load_splits(config(path=tmp_path / "glue"), 0).facts()
    assert facts.num_examples == {"train": 30, "validation": 10, "test": 10}
    assert facts.labels == ("n", "p")
    assert facts.notes[0].kind == "hidden_test_labels"


def test_groups_are_read_and_kept_together(write_csv: Callable[..., Path], config: Config) -> None:
    rows = [(text, label, f"user{number % 10}") for number, (text, label) in enumerate(ROWS)]
    path = write_csv("a.csv", rows, header="text,label,user")
    splits = load_splits(config(path=path, group="user"), 0)
    train, held_out = set(splits.train.groups or ()), set(splits.validation.groups or ())
    assert train
    assert held_out
    assert not train & held_out


def test_bad_data_is_a_usage_error_with_exit_code_2(config: Config) -> None:
    with pytest.raises(DataError) as error:
        load_splits(config(path="./gone.csv"), 0)
    assert error.value.exit_code == 2


def test_the_data_layer_imports_neither_torch_nor_transformers() -> None:
    code = (
        "import sys, pkgutil, importlib, automl_ft.data as d\n"
        "names = [m.name for m in pkgutil.iter_modules(d.__path__)]\n"
        "[importlib.import_module(f'automl_ft.data.{name}') for name in names]\n"
        "print(len(names), {'torch', 'transformers', 'optuna'} & set(sys.modules))"
    )
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    count, heavy = found.stdout.split(" ", 1)
    assert int(count) > 10
    assert heavy.strip() == "set()"
