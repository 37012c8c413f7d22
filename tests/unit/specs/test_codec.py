"""Every value that crosses a process border survives it."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Any

import pytest

from automl_ft.config.study import BudgetConfig, DataConfig, ModelConfig, StudyConfig
from automl_ft.specs.codec import from_plain, to_plain
from automl_ft.specs.decision import Evaluation, Progress
from automl_ft.specs.facts import CheckpointFacts, DataFacts, DataNote, StudyFacts
from automl_ft.specs.failure import FailureKind, TrialFailure
from automl_ft.specs.hyperparameters import complete
from automl_ft.specs.trial import Outcome, TrialCost, TrialResult, TrialSpec

EVALUATION = Evaluation(
    step=20, epoch=0.5, metrics={"validation_f1_macro": 0.1 + 0.2, "train_loss": 1.0}, seconds=3.5
)
COST = TrialCost(seconds=1.25, examples=41, peak_memory_mib=512.0)
FAILURE = TrialFailure(kind=FailureKind.DIVERGED, message="loss is nan", traceback="a\nb")
NOTE = DataNote(kind="empty_text", message="2 rows are empty: rows 3, 4 of x.csv.", count=2)
DATA = DataFacts(
    labels=("bad", "good"),
    num_examples={"train": 41, "validation": 18, "test": 0},
    class_counts={"train": {"bad": 20, "good": 21}},
    fingerprint="ab" * 32,
    split_fingerprints={"train": "cd" * 32},
    notes=(NOTE,),
)
CHECKPOINT = CheckpointFacts(
    checkpoint="minilm-l6",
    revision="",
    weights_hash="ef" * 32,
    architecture="bert",
    num_layers=6,
    num_parameters=22_000_000,
    max_length=64,
    num_truncated=1,
    num_tokens=999,
)
CONFIG = StudyConfig(
    name="demo",
    model=ModelConfig(checkpoint="minilm-l6", revision="main"),
    data=DataConfig(path=("a.csv", "b.csv"), text=("premise", "hypothesis"), max_length=64),
    space={"learning_rate": {"type": "float", "low": 1e-6, "high": 1e-3}, "epochs": 3},
    objective="f1_binary",
    positive_label="good",
    budget=BudgetConfig(trials=3, timeout_seconds=1800.0),
)
VALUES: dict[str, Any] = {
    "evaluation": EVALUATION,
    "progress": Progress(examples_seen=8, total_examples=82, train_loss=1.1, seconds=0.5),
    "cost": COST,
    "failure": FAILURE,
    "spec": TrialSpec(number=3, hyperparameters=complete({}), seed=2**40, folder="trials/3"),
    "result": TrialResult(
        number=3,
        outcome=Outcome.COMPLETE,
        value=0.75,
        best_step=20,
        metrics={"validation_f1_macro": 0.75},
        evaluations=(EVALUATION, EVALUATION),
        cost=COST,
    ),
    "failed result": TrialResult(
        number=3,
        outcome=Outcome.FAILED,
        value=None,
        best_step=None,
        metrics={},
        evaluations=(),
        cost=COST,
        failure=FAILURE,
    ),
    "note": NOTE,
    "data facts": DATA,
    "checkpoint facts": CHECKPOINT,
    "study facts": StudyFacts(
        data=DATA, checkpoints=(CHECKPOINT,), device="cpu (x86_64)", versions={"torch": "2.13.0"}
    ),
    "config": CONFIG,
    "config of defaults": StudyConfig(
        model=ModelConfig(checkpoint="a"), data=DataConfig(path="b.csv", validation="dev.csv")
    ),
}


@pytest.mark.parametrize("name", VALUES)
def test_every_value_survives_json(name: str) -> None:
    value = VALUES[name]
    plain = json.loads(json.dumps(to_plain(value)))
    found = from_plain(type(value), plain)
    assert found == value
    assert to_plain(found) == plain


def test_sequences_come_back_as_tuples() -> None:
    found = from_plain(StudyConfig, json.loads(json.dumps(to_plain(CONFIG))))
    assert (found.data.path, found.data.text) == (("a.csv", "b.csv"), ("premise", "hypothesis"))


def test_whole_numbers_come_back_as_floats_where_a_float_is_meant() -> None:
    plain = {**to_plain(VALUES["result"]), "value": 1}
    assert type(from_plain(TrialResult, plain).value) is float
    assert type(from_plain(TrialCost, {**to_plain(COST), "seconds": 2}).seconds) is float


def test_a_choice_of_types_keeps_whole_numbers_where_they_are_meant() -> None:
    found = from_plain(DataConfig, {"path": "a", "max_length": 64})
    assert type(found.max_length) is int


def test_unknown_keys_are_ignored() -> None:
    assert from_plain(TrialCost, {**to_plain(COST), "energy": 3}) == COST


def test_missing_keys_take_their_default() -> None:
    plain = {"kind": "error", "message": "x"}
    assert from_plain(TrialFailure, plain) == TrialFailure(kind=FailureKind.ERROR, message="x")


def test_a_missing_field_without_default_is_an_error() -> None:
    with pytest.raises(TypeError, match="seconds"):
        from_plain(TrialCost, {"examples": 1, "peak_memory_mib": 2.0})


def test_something_else_than_a_mapping_is_an_error() -> None:
    with pytest.raises(TypeError, match="TrialCost needs a mapping, not 'x'"):
        from_plain(TrialCost, "x")


def test_an_unknown_member_of_an_enum_is_an_error() -> None:
    with pytest.raises(ValueError, match="exhausted"):
        from_plain(TrialFailure, {"kind": "exhausted", "message": "x"})


@pytest.mark.parametrize("value", [{1, 2}, Path("x"), object(), b"bytes"])
def test_other_types_are_refused(value: object) -> None:
    with pytest.raises(TypeError, match=type(value).__name__):
        to_plain({"a": [value]})


def test_a_class_is_no_value() -> None:
    with pytest.raises(TypeError, match="type"):
        to_plain(TrialCost)


class Colour(StrEnum):
    RED = "red"


@dataclass(frozen=True)
class Inner:
    size: float


@dataclass(frozen=True)
class Outer:
    items: Sequence[Inner]
    by_name: Mapping[str, Inner]
    either: Inner | str | None
    colour: Colour | None = None
    anything: Any = None


def test_nested_dataclasses_survive() -> None:
    value = Outer(
        items=[Inner(1.0)],
        by_name={"a": Inner(2.0)},
        either=Inner(3.0),
        anything={"free": [1, None, True]},
    )
    assert from_plain(Outer, json.loads(json.dumps(to_plain(value)))) == value


def test_the_plain_side_of_a_choice_survives() -> None:
    value = Outer(items=[], by_name={}, either="text")
    assert from_plain(Outer, to_plain(value)) == value


def test_keys_of_mappings_become_text() -> None:
    assert to_plain({1: "a", Colour.RED: "b"}) == {"1": "a", "red": "b"}
