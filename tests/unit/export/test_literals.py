from __future__ import annotations

import ast

import pytest

from automl_ft.export.literals import assignment


def test_a_short_value_stays_on_one_line():
    assert assignment("LABELS = ", ["a", "b"]) == 'LABELS = ["a", "b"]'


def test_a_long_list_gets_one_item_a_line():
    lines = assignment("X = ", ["a" * 30, "b" * 30, "c" * 30]).splitlines()
    assert lines[0] == "X = ["
    assert lines[1] == f'    "{"a" * 30}",'
    assert lines[-1] == "]"


def test_a_long_item_is_broken_too():
    text = assignment("X = ", {"k": ["a" * 50, "b" * 50]})
    assert text.splitlines()[1] == '    "k": ['
    assert text.splitlines()[-2:] == ["    ],", "}"]


@pytest.mark.parametrize(
    "value",
    [
        'quote " and \\ backslash',
        "tab\tnewline\n",
        "\u00e9\u4e16",
        ("one",),
        (),
        {"a": 1.5, "b": None, "c": True},
        [("x" * 60, "y" * 60), ()],
        1e-05,
    ],
)
def test_source_evaluates_to_the_value(value):
    source = assignment("x = ", value)
    assert ast.literal_eval(source.removeprefix("x = ")) == value


def test_indentation_of_the_name_is_kept_for_items():
    lines = assignment("    x = ", ["a" * 50, "b" * 50]).splitlines()
    assert lines[1].startswith('        "a')
    assert lines[-1] == "    ]"
