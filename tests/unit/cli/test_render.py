import csv
import io
import json

import pytest
from rich.console import Console

from automl_ft.cli.render import Column, Table, console, print_table, write_dim, write_table
from automl_ft.cli.values import score

COLUMNS = (
    Column(key="trial", title="trial", align="right"),
    Column(key="value", title="f1", align="right", show=score, style="bold"),
    Column(key="memory", title="memory", is_wide_only=True),
    Column(key="params", title="parameters", is_params=True),
)
ROWS = [
    {"trial": 0, "value": 0.5, "memory": "x" * 30, "params": {"epochs": 3, "rate": 0.1}},
    {"trial": 1, "value": None, "memory": "y" * 30, "params": {"epochs": 3, "layers": 2}},
]
TABLE = Table(columns=COLUMNS, rows=ROWS)


def draw(table, width, **options):
    target = Console(file=io.StringIO(), width=width, highlight=False, markup=False, **options)
    print_table(table, target)
    return target.file.getvalue()


def test_a_wide_terminal_has_a_column_for_each_parameter():
    lines = draw(TABLE, 120).splitlines()
    assert lines[0].split() == ["trial", "f1", "memory", "epochs", "rate", "layers"]
    assert lines[2].split() == ["0", "0.5000", "x" * 30, "3", "0.1", "-"]


def test_a_narrow_terminal_has_parameters_below_and_drops_what_is_wide_only():
    text = draw(TABLE, 30)
    assert "rate=0.1" in text.splitlines()[3]
    assert "memory" not in text
    assert max(map(len, text.splitlines())) <= 30


def test_parameters_that_all_rows_share_are_told_once():
    assert draw(TABLE, 30).count("epochs=3") == 1
    assert "in all of them: epochs=3" in draw(TABLE, 30)


def test_a_single_row_keeps_all_its_parameters_beside_it():
    text = draw(Table(columns=COLUMNS, rows=ROWS[:1]), 30)
    assert "in all" not in text
    assert "epochs=3 rate=0.1" in text


def test_a_note_goes_below_its_row_where_there_is_no_room():
    columns = (Column(key="name", title="name"), Column(key="why", title="why", is_note=True))
    rows = [{"name": "a", "why": "long words " * 5}, {"name": "b", "why": ""}]
    lines = draw(Table(columns=columns, rows=rows), 40).splitlines()
    assert lines[0] == "name"
    assert lines[3].startswith("    long words")
    assert lines[-1] == "b"


def test_lines_have_no_blanks_at_their_ends():
    assert all(line == line.rstrip() for line in draw(TABLE, 120).splitlines())


def test_a_line_break_inside_a_value_does_not_tear_the_row():
    table = Table(columns=(Column(key="a", title="a"),), rows=[{"a": "x\ny"}])
    assert draw(table, 40).splitlines()[2] == "x y"


def test_an_ascii_terminal_gets_no_box_characters():
    raw = io.BytesIO()
    target = Console(file=io.TextIOWrapper(raw, encoding="ascii"), width=80)
    print_table(TABLE, target)
    target.file.flush()
    assert b"trial" in raw.getvalue()


def test_no_color_leaves_no_colour_codes(monkeypatch):
    monkeypatch.setenv("NO_COLOR", "1")
    columns = (Column(key="a", title="a", style="red"),)
    text = draw(Table(columns=columns, rows=[{"a": "x"}]), 40, force_terminal=True)
    assert "\x1b[31m" not in text


def test_where_no_terminal_is_rows_are_never_broken(capsys):
    row = {"trial": 1, "value": 0.5, "memory": "m", "params": {f"name{i}": i for i in range(60)}}
    write_table(Table(columns=COLUMNS, rows=[row]), "table")
    assert len(capsys.readouterr().out.splitlines()) == 3


def test_json_holds_raw_values(capsys):
    write_table(TABLE, "json")
    assert json.loads(capsys.readouterr().out) == ROWS


def test_json_has_null_for_numbers_that_are_not_finite(capsys):
    rows = [{"trial": 1, "value": float("nan"), "params": {"rate": float("inf")}}]
    write_table(Table(columns=COLUMNS, rows=rows), "json")
    read = json.loads(capsys.readouterr().out)[0]
    assert (read["value"], read["params"]["rate"]) == (None, None)


def test_csv_has_a_column_for_each_parameter(capsys):
    write_table(TABLE, "csv")
    read = list(csv.DictReader(io.StringIO(capsys.readouterr().out)))
    assert read[1]["params.layers"] == "2"
    assert read[0]["params.layers"] == ""
    assert list(read[0]) == [
        "trial",
        "value",
        "memory",
        "params.epochs",
        "params.rate",
        "params.layers",
    ]


@pytest.mark.parametrize("format_", ["table", "json", "csv"])
def test_a_table_without_rows_can_be_printed(format_, capsys):
    write_table(Table(columns=COLUMNS, rows=[]), format_)
    assert capsys.readouterr().out


def test_a_dim_line_is_indented_where_it_is_broken():
    target = Console(file=io.StringIO(), width=30)
    write_dim("default: " + "key=value " * 6, target)
    lines = target.file.getvalue().splitlines()
    assert lines[0].startswith("default:")
    assert all(line.startswith("    key") for line in lines[1:])


def test_a_console_on_a_pipe_writes_no_control_characters():
    stream = io.StringIO()
    console(stream).print("plain", style="bold red")
    assert stream.getvalue() == "plain\n"
