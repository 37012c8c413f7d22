"""Plain values become config dataclasses; every misfit is told, with all others."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import pytest

from automl_ft.config.build import build
from automl_ft.config.checks import FieldError, at_least
from automl_ft.config.study import TrainingConfig
from automl_ft.errors import Problem


@dataclass(frozen=True, kw_only=True)
class Inner:
    size: int = 1
    rate: float = 0.5

    def __post_init__(self) -> None:
        at_least("size", self.size, 1)
        at_least("rate", self.rate, 0)


@dataclass(frozen=True, kw_only=True)
class Outer:
    name: str
    inner: Inner
    other: Inner = field(default_factory=Inner)
    either: int | str = "auto"
    maybe: float | None = None
    many: tuple[str, ...] = ()
    free: str | Mapping[str, Any] = "free"
    flag: bool = False

    def __post_init__(self) -> None:
        if self.name == "bad":
            raise FieldError("name", "`bad` is bad.")
        if self.flag and self.maybe is None:
            raise FieldError("maybe", "nothing is given.")


def built(plain: Any) -> tuple[Any, dict[str, str]]:
    problems: list[Problem] = []
    value = build(Outer, plain, "f.yaml", problems)
    return value, {problem.place: problem.message for problem in problems}


def test_a_fitting_mapping_is_built() -> None:
    value, problems = built({"name": "a", "inner": {"size": 3}, "many": ["x", "y"], "flag": False})
    assert problems == {}
    assert value == Outer(name="a", inner=Inner(size=3), many=("x", "y"))


def test_a_value_that_aliases_blow_up_is_cut_in_the_message() -> None:
    bomb: list[Any] = ["lol"]
    for _ in range(30):
        bomb = [bomb] * 9
    _, problems = built({"name": bomb, "inner": {}})
    assert problems["f.yaml: name"].startswith("`[[[[[[")
    assert len(problems["f.yaml: name"]) < 140


def test_whole_numbers_fit_where_a_number_is_meant() -> None:
    value, _ = built({"name": "a", "inner": {"rate": 2}, "maybe": 3})
    assert (type(value.inner.rate), type(value.maybe)) == (float, float)


def test_one_text_fits_where_several_are_meant() -> None:
    assert built({"name": "a", "inner": {}, "many": "x"})[0].many == ("x",)


@pytest.mark.parametrize("value", [3, "auto"])
def test_either_type_of_a_choice_fits(value: int | str) -> None:
    assert built({"name": "a", "inner": {}, "either": value})[0].either == value


@pytest.mark.parametrize("value", ["name", {"a": {"b": 1}}])
def test_a_free_mapping_fits_as_it_is(value: Any) -> None:
    assert built({"name": "a", "inner": {}, "free": value})[0].free == value


def test_null_fits_where_it_is_meant() -> None:
    assert built({"name": "a", "inner": {}, "maybe": None})[0].maybe is None


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("name", 3, "`3` is not accepted; accepted is text."),
        ("name", None, "`null` is not accepted; accepted is text."),
        ("inner", 5, "`5` is not accepted; accepted is a mapping of size, rate."),
        ("inner", None, "`null` is not accepted; accepted is a mapping of size, rate."),
        ("inner", ["size"], "`['size']` is not accepted; accepted is a mapping of size, rate."),
        ("either", 1.5, "`1.5` is not accepted; accepted is a whole number or text."),
        ("either", True, "`true` is not accepted; accepted is a whole number or text."),
        ("maybe", "x", "`x` is not accepted; accepted is a number."),
        ("maybe", False, "`false` is not accepted; accepted is a number."),
        ("many", 3, "`3` is not accepted; accepted is a list of names."),
        ("many", ["a", 3], "`['a', 3]` is not accepted; accepted is a list of names."),
        ("free", 3, "`3` is not accepted; accepted is text or a mapping."),
        ("flag", "yes", "`yes` is not accepted; accepted is true or false."),
        ("flag", 1, "`1` is not accepted; accepted is true or false."),
    ],
)
def test_a_misfit_is_told_with_what_is_accepted(key: str, value: Any, message: str) -> None:
    found, problems = built({"name": "a", "inner": {}, key: value})
    assert found is None
    assert problems == {f"f.yaml: {key}": message}


@pytest.mark.parametrize("value", [3, True, {"a": 1}])
def test_where_there_are_choices_a_value_that_is_no_text_is_told_them(value: Any) -> None:
    problems: list[Problem] = []
    build(TrainingConfig, {"batching": value}, "f.yaml: training", problems)
    (problem,) = problems
    assert problem.place == "f.yaml: training.batching"
    assert problem.message.endswith("is not accepted; accepted: auto, packed, bucketed.")


def test_nested_places_are_dotted() -> None:
    _, problems = built({"name": "a", "inner": {"size": 0}})
    assert problems == {"f.yaml: inner.size": "`0` is not accepted; accepted is 1 or more."}


def test_unknown_keys_are_told_with_a_suggestion() -> None:
    _, problems = built({"names": "a", "name": "a", "inner": {"sizes": 1}, "zzz": 1})
    assert problems["f.yaml: names"] == "unknown key. Did you mean `name`?"
    assert problems["f.yaml: inner.sizes"] == "unknown key. Did you mean `size`?"
    assert problems["f.yaml: zzz"].startswith("unknown key. Accepted: either, flag, free, inner")


def test_a_missing_key_is_told() -> None:
    assert built({"inner": {}})[1] == {"f.yaml: name": "missing; a value is needed."}


def test_every_missing_key_is_told() -> None:
    assert list(built({})[1]) == ["f.yaml: inner", "f.yaml: name"]


def test_all_refused_fields_of_one_config_are_told() -> None:
    _, problems = built({"name": "a", "inner": {"size": 0, "rate": -1}})
    assert list(problems) == ["f.yaml: inner.size", "f.yaml: inner.rate"]


def test_a_config_is_checked_although_a_nested_one_has_problems() -> None:
    _, problems = built({"name": "bad", "inner": {"size": 0}, "other": {"rate": -1}})
    assert list(problems) == ["f.yaml: inner.size", "f.yaml: other.rate", "f.yaml: name"]


def test_a_config_is_checked_although_a_nested_one_is_missing() -> None:
    assert list(built({"name": "bad"})[1]) == ["f.yaml: inner", "f.yaml: name"]


def test_a_check_that_needs_a_broken_field_is_silent() -> None:
    _, problems = built({"name": "a", "inner": {}, "flag": True, "maybe": "x"})
    assert list(problems) == ["f.yaml: maybe"]


def test_the_absence_of_a_field_may_be_refused() -> None:
    _, problems = built({"name": "a", "inner": {}, "flag": True})
    assert problems == {"f.yaml: maybe": "nothing is given."}
