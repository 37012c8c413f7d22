import math

import pytest

from automl_ft.config.yaml_file import parse_yaml, read_yaml


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("1e-5", 1e-5),
        ("5.0e-5", 5e-5),
        (".5", 0.5),
        ("-3", -3),
        ("010", 10),
        ("~", None),
        ("true", True),
        ("'1'", "1"),
    ],
)
def test_plain_scalars_are_read_as_yaml_1_2_has_them(text, value):
    found, problems = parse_yaml(text, "option")
    assert (found, type(found), problems) == (value, type(value), [])


@pytest.mark.parametrize("text", ["yes", "no", "on", "off", "1:30", "2020-01-01", "none", "0x1F"])
def test_what_yaml_1_1_reinterprets_stays_text(text):
    assert parse_yaml(text, "option") == (text, [])


def test_infinity_and_nan_are_numbers():
    assert parse_yaml("-.inf", "option")[0] == -math.inf
    assert math.isnan(parse_yaml(".nan", "option")[0])


def test_every_duplicate_key_is_reported_with_its_lines(tmp_path):
    path = tmp_path / "study.yaml"
    path.write_text("seed: 1\nbudget:\n  trials: 1\n  trials: 2\nseed: 2\n")
    content, problems = read_yaml(path)
    assert content == {"seed": 2, "budget": {"trials": 2}}
    assert [str(problem) for problem in problems] == [
        f"{path}: budget.trials: The key is given twice, in line 3 and line 4. Keep one.",
        f"{path}: seed: The key is given twice, in line 1 and line 5. Keep one.",
    ]


def test_duplicate_keys_inside_lists_are_reported():
    _, problems = parse_yaml("a: [{b: 1, b: 2}]", "f")
    assert problems[0].place == "f: a[0].b"


def test_a_merged_key_may_be_overridden():
    content, problems = parse_yaml("a: &a {x: 1, y: 1}\nb: {<<: *a, y: 2}", "f")
    assert (content["b"], problems) == ({"x": 1, "y": 2}, [])


def test_a_key_that_is_no_text_is_reported():
    _, problems = parse_yaml("a: {true: 1}", "f")
    assert str(problems[0]) == "f: a: The key `true` in line 1 is not text. Put quotes around it."


@pytest.mark.parametrize(
    ("text", "where", "what"),
    [
        ("a: [1\nb: 2", "line 2, column 2", "expected ',' or ']'"),
        ("a: b: c", "line 1, column 5", "mapping values are not allowed"),
        ("\ta: 1", "line 1, column 1", "cannot start any token"),
        ("a: 1\n---\nb: 2", "line 2, column 1", "single document"),
        ("a: !!python/object:os.system x", "line 1, column 4", "python/object"),
        ("? [1]\n: 2", "line 1, column 3", "unhashable key"),
        ("a: b\n  \x01", "line 2, column 3", "#x0001 is not allowed"),
    ],
)
def test_syntax_errors_carry_line_and_column(text, where, what):
    content, problems = parse_yaml(text, "f.yaml")
    assert content is None
    assert problems[-1].place == f"f.yaml: {where}"
    assert what in problems[-1].message


@pytest.mark.parametrize(
    ("text", "advice"),
    [
        ("a: [1\nb: 2", "Check indentation, quotes, colons and brackets."),
        ("a: !secret x", "Remove the tag; plain values need none."),
        ("? [1]\n: 2", "A key must be plain text, neither a list nor a mapping."),
        ("a: {<<: 3}", "Write plain keys and values, without tags."),
        ("a: !!bool 3", "Write it more simply."),
        ("a: !!timestamp soon", "Write it more simply."),
    ],
)
def test_the_advice_fits_what_is_wrong(text, advice):
    content, problems = parse_yaml(text, "f.yaml")
    assert content is None
    assert problems[-1].message.endswith(advice)


def test_aliases_of_aliases_take_no_time():
    lines = ["a0: &a0 {x: 1, x: 2}"]
    lines += [f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 9)}]" for n in range(1, 30)]
    content, problems = parse_yaml("\n".join(lines), "f")
    assert content["a29"][0] is content["a28"]
    assert [problem.place for problem in problems] == ["f: a0.x"]


def test_an_alias_that_contains_itself_is_refused():
    content, problems = parse_yaml("a: &x {b: *x}", "f")
    assert content is None
    assert "contains itself" in problems[0].message


def test_absurd_nesting_is_refused():
    content, problems = parse_yaml("[" * 5000, "f")
    assert content is None
    assert "cannot be read" in problems[0].message


def test_missing_file_is_one_problem(tmp_path):
    content, problems = read_yaml(tmp_path / "no.yaml")
    assert content == {}
    assert "no such file" in str(problems[0])


def test_folder_instead_of_a_file_is_one_problem(tmp_path):
    assert "directory" in str(read_yaml(tmp_path)[1][0])


def test_other_encodings_are_refused_with_the_line(tmp_path):
    path = tmp_path / "latin.yaml"
    path.write_bytes("a: 1\nb: \u00e9t\u00e9\n".encode("latin-1"))
    assert "Line 2 is not UTF-8" in str(read_yaml(path)[1][0])


def test_byte_order_mark_is_ignored(tmp_path):
    path = tmp_path / "bom.yaml"
    path.write_bytes(b"\xef\xbb\xbfa: 1\n")
    assert read_yaml(path) == ({"a": 1}, [])


@pytest.mark.parametrize(("text", "what"), [("", "is empty"), ("- 1", "a list"), ("x", "a str")])
def test_top_level_must_be_a_mapping(tmp_path, text, what):
    path = tmp_path / "f.yaml"
    path.write_text(text)
    content, problems = read_yaml(path)
    assert content == {}
    assert what in problems[0].message
