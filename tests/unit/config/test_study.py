"""Each field of a study's config says what it refuses, what it accepts and what to do."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import pytest

from automl_ft.config.checks import FieldError
from automl_ft.config.study import (
    OBJECTIVES,
    PRUNERS,
    SAMPLERS,
    BudgetConfig,
    DataConfig,
    ModelConfig,
    StudyConfig,
    TrainingConfig,
)

PARTS: dict[type, dict[str, Any]] = {
    ModelConfig: {"checkpoint": "minilm-l6"},
    DataConfig: {"path": "docstrings"},
    BudgetConfig: {},
    TrainingConfig: {},
    StudyConfig: {
        "model": ModelConfig(checkpoint="minilm-l6"), "data": DataConfig(path="docstrings"),
    },
}  # fmt: skip
BLANK = "`` is not accepted; accepted is text that is not blank."
FRACTION = "a fraction above 0 and below 1, a file, or a split's name."
NAME = "1 to 120 letters, digits, spaces or any of ._+@- with a letter or digit first"
REFUSED: list[tuple[type, dict[str, Any], str]] = [
    (ModelConfig, {"checkpoint": ""}, BLANK),
    (ModelConfig, {"checkpoint": " "}, "text that is not blank"),
    (ModelConfig, {"revision": ""}, BLANK),
    (DataConfig, {"path": None}, "nothing is given; accepted is a hub id, a file, a folder or a"),
    (DataConfig, {"path": None}, "Set `data.path`."),
    (DataConfig, {"path": ""}, BLANK),
    (DataConfig, {"path": ()}, "`[]` is not accepted; accepted is one name or more."),
    (DataConfig, {"path": ("a.csv", "")}, BLANK),
    (DataConfig, {"config": ""}, BLANK),
    (DataConfig, {"revision": ""}, BLANK),
    (DataConfig, {"encoding": ""}, BLANK),
    (DataConfig, {"group": ""}, BLANK),
    (DataConfig, {"train": ""}, BLANK),
    (DataConfig, {"format": "cvs"}, "csv, tsv, json, jsonl, parquet, arrow. Did you mean `csv`?"),
    (DataConfig, {"format": "xlsx"}, "`xlsx` is not accepted; accepted: csv, tsv"),
    (DataConfig, {"class_weights": "balance"}, "accepted: balanced. Did you mean `balanced`?"),
    (DataConfig, {"text": ()}, "accepted is one column, or two for sentence pairs."),
    (DataConfig, {"text": ("a", "b", "c")}, "`('a', 'b', 'c')` is not accepted"),
    (DataConfig, {"text": ("a", "")}, BLANK),
    (DataConfig, {"label": ""}, BLANK),
    (DataConfig, {"validation": 0.0}, f"`0.0` is not accepted; accepted is {FRACTION}"),
    (DataConfig, {"validation": 1.0}, f"`1.0` is not accepted; accepted is {FRACTION}"),
    (DataConfig, {"validation": math.nan}, f"accepted is {FRACTION}"),
    (DataConfig, {"validation": ""}, BLANK),
    (DataConfig, {"test": 1.5}, "`1.5` is not accepted; accepted is a fraction from 0 and below 1"),
    (DataConfig, {"test": -0.1}, "`-0.1` is not accepted"),
    (DataConfig, {"test": ""}, BLANK),
    (
        DataConfig,
        {"max_length": 3},
        "`3` is not accepted; accepted: auto, or a whole number from 4 up.",
    ),
    (DataConfig, {"max_length": "atuo"}, "auto, or a whole number from 4 up. Did you mean `auto`?"),
    (BudgetConfig, {"trials": -1}, "`-1` is not accepted; accepted is 0 or more."),
    (BudgetConfig, {"timeout_seconds": 0.0}, "`0.0` is not accepted; accepted is a time above 0"),
    (BudgetConfig, {"timeout_seconds": math.inf}, "such as 30m."),
    (BudgetConfig, {"timeout_seconds": math.nan}, "such as 30m."),
    (BudgetConfig, {"patience": 0}, "`0` is not accepted; accepted is 1 or more."),
    (BudgetConfig, {"min_improvement": -0.1}, "`-0.1` is not accepted; accepted is 0 or more."),
    (TrainingConfig, {"precision": "fp16"}, "accepted: auto, fp32, tf32, bf16."),
    (
        TrainingConfig,
        {"micro_batch_size": 0},
        "`0` is not accepted; accepted: auto, or a whole number from 1 up.",
    ),
    (
        TrainingConfig,
        {"micro_batch_size": "aut"},
        "accepted: auto, or a whole number from 1 up. Did you mean `auto`",
    ),
    (TrainingConfig, {"memory_gib": 0}, "`0` is not accepted; accepted is a number of GiB above 0"),
    (TrainingConfig, {"eval_batch_size": 0}, "from 1 up."),
    (TrainingConfig, {"eval_batch_size": "all"}, "accepted: auto, or a whole number from 1 up."),
    (TrainingConfig, {"keep_checkpoints": 0}, "1 or more."),
    (
        TrainingConfig,
        {"validations_per_epoch": 0},
        "`0` is not accepted; accepted: auto, or a whole number from 1 to 50.",
    ),
    (
        TrainingConfig,
        {"validations_per_epoch": 51},
        "`51` is not accepted; accepted: auto, or a whole number from 1 to 50.",
    ),
    (TrainingConfig, {"validations_per_epoch": "atuo"}, "auto, or a whole number from 1 to 50."),
    (TrainingConfig, {"early_stopping_patience": 0}, "1 or more."),
    (TrainingConfig, {"activation_cache_gib": -0.5}, "accepted is a number of GiB from 0 up."),
    (TrainingConfig, {"activation_cache_gib": math.inf}, "`inf` is not accepted"),
    (TrainingConfig, {"activation_cache_gib": math.nan}, "`nan` is not accepted"),
    (TrainingConfig, {"threads": 0}, "1 to 1024."),
    (TrainingConfig, {"threads": 1025}, "`1025` is not accepted; accepted is 1 to 1024."),
    (TrainingConfig, {"seed": -1}, "`-1` is not accepted; accepted is 0 to 4294967295."),
    (TrainingConfig, {"seed": 2**32}, "accepted is 0 to 4294967295."),
    (StudyConfig, {"name": "a/b"}, f"`a/b` is not accepted; accepted is {NAME}"),
    (StudyConfig, {"name": "a\\b"}, NAME),
    (StudyConfig, {"name": ""}, NAME),
    (StudyConfig, {"name": ".."}, NAME),
    (StudyConfig, {"name": "-a"}, NAME),
    (StudyConfig, {"name": "a "}, NAME),
    (StudyConfig, {"name": "a\nb"}, NAME),
    (StudyConfig, {"name": "a" * 121}, NAME),
    (StudyConfig, {"name": "a" * 121}, f"`{'a' * 80}...` is not accepted"),
    (StudyConfig, {"sampler": "a" * 121}, f"`{'a' * 80}...` is not accepted"),
    (StudyConfig, {"task": "summarisation"}, "accepted: text-classification."),
    (StudyConfig, {"objective": "f1"}, "`f1` is not accepted; accepted: f1_macro, f1_micro"),
    (StudyConfig, {"objective": "f1-macro"}, "Did you mean `f1_macro`?"),
    (StudyConfig, {"sampler": "tpr"}, "Did you mean `tpe`?"),
    (StudyConfig, {"pruner": "meadian"}, "Did you mean `median`?"),
    (StudyConfig, {"seed": -1}, "`-1` is not accepted; accepted is 0 to 4294967295."),
    (StudyConfig, {"seed": 2**32}, "accepted is 0 to 4294967295."),
    (
        StudyConfig,
        {"workers": 0},
        "`0` is not accepted; accepted: auto, or a whole number from 1 to 256.",
    ),
    (StudyConfig, {"workers": 257}, "1 to 256."),
    (StudyConfig, {"workers": "many"}, "accepted: auto, or a whole number from 1 to 256."),
    (StudyConfig, {"workers": "Auto"}, "Did you mean `auto`?"),
    (StudyConfig, {"workers": "2"}, "from 1 to 256. Leave the quotes away."),
    (StudyConfig, {"workers": 2.5}, "`2.5` is not accepted; accepted: auto, or a whole number"),
    (StudyConfig, {"workers": True}, "`true` is not accepted; accepted: auto, or a whole number"),
    (StudyConfig, {"device": "gpu"}, "accepted is auto, cpu, mps, cuda or cuda:N."),
    (StudyConfig, {"device": "cuda:"}, "`cuda:` is not accepted"),
    (StudyConfig, {"space": ""}, BLANK),
    (StudyConfig, {"storage": ""}, BLANK),
    (StudyConfig, {"output": ""}, BLANK),
    (StudyConfig, {"positive_label": ""}, BLANK),
    (
        StudyConfig,
        {"objective": "f1_binary"},
        "nothing is given; accepted is the class that `f1_binary` is about. Set it to a label.",
    ),
]
ACCEPTED: list[tuple[type, dict[str, Any]]] = [
    (ModelConfig, {"revision": "main", "trust_remote_code": True}),
    (DataConfig, {"path": None, "train": "train.csv"}),
    (DataConfig, {"path": ("a.csv", "b.csv"), "format": "csv"}),
    (DataConfig, {"text": ("a", "b"), "label": "c", "group": "d"}),
    (DataConfig, {"validation": "dev.csv", "test": None}),
    (DataConfig, {"validation": 0.999, "test": 0.0}),
    (DataConfig, {"max_length": 4}),
    (BudgetConfig, {"trials": 0, "timeout_seconds": 0.5, "patience": 1}),
    (TrainingConfig, {"validations_per_epoch": 50, "threads": 1, "seed": 0}),
    (TrainingConfig, {"validations_per_epoch": "auto"}),
    (TrainingConfig, {"activation_cache_gib": 0.0}),
    (TrainingConfig, {"early_stopping_patience": 1, "precision": "bf16"}),
    (StudyConfig, {"name": "my study-1.2_a+b@c"}),
    (StudyConfig, {"name": "\u00fcbung"}),
    (StudyConfig, {"device": "cuda:3"}),
    (TrainingConfig, {"threads": 1024, "seed": 2**32 - 1}),
    (StudyConfig, {"seed": 2**32 - 1, "workers": 256}),
    (StudyConfig, {"workers": "auto"}),
    (StudyConfig, {"objective": "f1_binary", "positive_label": "yes"}),
    (StudyConfig, {"space": {"epochs": 3}}),
]


def make(kind: type, changes: dict[str, Any]) -> Any:
    return kind(**{**PARTS[kind], **changes})


@pytest.mark.parametrize(("kind", "changes", "message"), REFUSED)
def test_a_refused_value_is_told_with_what_is_accepted(
    kind: type, changes: dict[str, Any], message: str
) -> None:
    with pytest.raises(FieldError) as caught:
        make(kind, changes)
    assert message in caught.value.message
    assert caught.value.message.endswith((".", "?"))
    names = {field.name for field in dataclasses.fields(kind)}
    assert caught.value.name in names, "the loader looks behind a refused field by its name"


@pytest.mark.parametrize(("kind", "changes"), ACCEPTED)
def test_values_at_the_edge_are_accepted(kind: type, changes: dict[str, Any]) -> None:
    built = make(kind, changes)
    assert {name: getattr(built, name) for name in changes} == changes


@pytest.mark.parametrize(
    ("field", "names"), [("objective", OBJECTIVES[:3]), ("sampler", SAMPLERS), ("pruner", PRUNERS)]
)
def test_every_listed_name_is_accepted(field: str, names: tuple[str, ...]) -> None:
    for name in names:
        assert getattr(make(StudyConfig, {field: name}), field) == name


@pytest.mark.parametrize("kind", PARTS)
def test_configs_are_frozen(kind: type) -> None:
    built = make(kind, {})
    name = dataclasses.fields(kind)[0].name
    with pytest.raises(dataclasses.FrozenInstanceError):
        setattr(built, name, None)


def test_an_error_reads_as_field_and_message() -> None:
    with pytest.raises(
        FieldError, match=r"^workers: `0` is not accepted; accepted: auto, or a whole number"
    ):
        make(StudyConfig, {"workers": 0})
