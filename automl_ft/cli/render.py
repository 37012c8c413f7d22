"""How is a table printed: for people, as JSON or as CSV? One renderer for every command.

Rows hold raw values; how they look to people is the columns' business, so that scripts get numbers
and not the text that was made of them.
"""

from __future__ import annotations

import csv
import io
import json
import math
import sys
import textwrap
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, TextIO

from automl_ft.cli.values import param, params_line

if TYPE_CHECKING:
    from rich.console import Console, RenderableType
    from rich.table import Table as RichTable

__all__ = [
    "Column",
    "Table",
    "console",
    "labelled",
    "print_lines",
    "print_table",
    "write_dim",
    "write_json",
    "write_table",
]

_LABEL_WIDTH = 9
_PIPED_WIDTH = 10_000
"""Where nobody looks at a screen a row stays on one line, for grep and awk."""


def _shown(value: Any) -> str:
    return "-" if value is None or value == "" else str(value)


@dataclass(frozen=True, kw_only=True, slots=True)
class Column:
    """One column of a table."""

    key: str
    """Key of its values in the rows, in JSON and in CSV."""
    title: str
    """Heading for people."""
    align: Literal["left", "right"] = "left"
    """Where values stand."""
    show: Callable[[Any], str] = _shown
    """Writes a value for people."""
    is_params: bool = False
    """Whether values are hyperparameters by name: a column for each where there is room, else
    `name=value` on a line below the row. In CSV always columns `KEY.NAME`."""
    is_wide_only: bool = False
    """Whether it is left out where there is no room; JSON and CSV always have it."""
    is_text: bool = False
    """Whether values may be broken over several lines."""
    is_note: bool = False
    """Whether values go below the row where there is no room beside it."""
    style: str = ""
    """Style of the values; never the only carrier of meaning."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Table:
    """Columns and rows."""

    columns: Sequence[Column]
    """The columns in order."""
    rows: Sequence[Mapping[str, Any]]
    """Raw values by the columns' keys; further keys appear in JSON only."""


def console(file: TextIO | None = None) -> Console:
    """Make a console for people.

    Args:
        file: Where it writes; None for stdout.

    Returns:
        A console that honours NO_COLOR, and that never breaks a line where no terminal is.
    """
    from rich.console import Console

    stream = file or sys.stdout
    width = None if stream.isatty() else _PIPED_WIDTH
    return Console(file=stream, width=width, highlight=False, markup=False, emoji=False)


def write_table(table: Table, format_: str) -> None:
    """Print a table on stdout.

    Args:
        table: The table.
        format_: `table`, `json` or `csv`.
    """
    if format_ == "json":
        write_json([dict(row) for row in table.rows])
    elif format_ == "csv":
        sys.stdout.write(_csv(table))
    else:
        print_table(table, console())


def print_table(table: Table, target: Console) -> None:
    """Print for people: all columns if they fit, else the narrow ones and what is folded.

    Args:
        table: The table.
        target: Where it is printed.
    """
    folded = [column for column in table.columns if column.is_params]
    plain = [column for column in table.columns if not column.is_params]
    extra = [each for column in folded for each in _param_columns(table.rows, column.key)]
    grid = _grid([*plain, *extra], table.rows)
    if _fits(grid, target):
        _put(_lines(grid, target), target)
        return
    below = [column for column in table.columns if column.is_params or column.is_note]
    beside = [column for column in plain if not column.is_note]
    if not _fits(_grid(beside, table.rows), target):
        beside = [column for column in beside if not column.is_wide_only]
    lines = _lines(_grid(beside, table.rows), target)
    _put(_with_notes(lines, table.rows, below, target) if below else lines, target)


def write_dim(text: str, target: Console) -> None:
    """Print what is of second rank: dim, and indented where it has to be broken.

    Args:
        text: One line.
        target: Where it is printed.
    """
    _put(_dim(text, "", target, "    "), target)


def labelled(rows: Iterable[tuple[str, RenderableType]] = ()) -> RichTable:
    """Make a grid of words on the left and what they are about.

    Args:
        rows: Words and what stands beside them; further ones can be added.

    Returns:
        A grid that can be printed on a console.
    """
    from rich.table import Table as RichTable
    from rich.text import Text

    grid = RichTable.grid(padding=(0, 2, 0, 0), expand=True)
    grid.add_column(no_wrap=True, min_width=_LABEL_WIDTH)
    grid.add_column(ratio=1)
    for word, beside in rows:
        grid.add_row(Text(word, style="bold"), beside)
    return grid


def print_lines(drawn: RenderableType, target: Console) -> None:
    """Print something without the blanks that rich leaves at line ends.

    Args:
        drawn: What rich can print.
        target: Where it is printed.
    """
    with target.capture() as captured:
        target.print(drawn)
    _put([line.rstrip() for line in captured.get().splitlines()], target)


def write_json(value: Any) -> None:
    """Print a value as JSON on stdout; numbers that are not finite become null.

    Args:
        value: JSON's own types, nested.
    """
    sys.stdout.write(json.dumps(_finite(value), indent=2, ensure_ascii=False) + "\n")


def _finite(value: Any) -> Any:
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if isinstance(value, Mapping):
        return {str(key): _finite(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_finite(item) for item in value]
    return value


def _names(rows: Iterable[Mapping[str, Any]], key: str) -> list[str]:
    """Return the hyperparameters that occur, in order of their first occurrence."""
    return list(dict.fromkeys(name for row in rows for name in row[key]))


def _csv(table: Table) -> str:
    header: list[str] = []
    for column in table.columns:
        names = _names(table.rows, column.key) if column.is_params else None
        header += [column.key] if names is None else [f"{column.key}.{name}" for name in names]
    out = io.StringIO()
    writer = csv.DictWriter(out, header, lineterminator="\n")
    writer.writeheader()
    for row in table.rows:
        writer.writerow(_flat(table.columns, row))
    return out.getvalue()


def _flat(columns: Sequence[Column], row: Mapping[str, Any]) -> dict[str, Any]:
    cells: dict[str, Any] = {}
    for column in columns:
        value = row.get(column.key)
        if column.is_params:
            cells.update({f"{column.key}.{name}": item for name, item in (value or {}).items()})
        else:
            cells[column.key] = value
    return cells


def _fits(grid: RichTable, target: Console) -> bool:
    from rich.measure import Measurement

    unbounded = target.options.update(max_width=_PIPED_WIDTH)
    return Measurement.get(target, unbounded, grid).maximum <= target.width


def _put(lines: Sequence[str], target: Console) -> None:
    target.file.write("\n".join(lines) + "\n")


def _param_columns(rows: Sequence[Mapping[str, Any]], key: str) -> list[Column]:
    """Give every hyperparameter a column of its own."""

    def column(name: str) -> Column:
        return Column(
            key=key, title=name, align="right", show=lambda params: param(params.get(name))
        )

    return [column(name) for name in _names(rows, key)]


def _with_notes(
    lines: list[str], rows: Sequence[Mapping[str, Any]], below: Sequence[Column], target: Console
) -> list[str]:
    """Put what is folded below each row, and hyperparameters that all rows share at the end."""
    shared = {column.key: _shared([row[column.key] for row in rows]) for column in below}
    header = len(lines) - len(rows)
    folded = lines[:header]
    for line, row in zip(lines[header:], rows, strict=True):
        folded.append(line)
        for column in below:
            folded += _dim(_note(column, row, shared[column.key]), "    ", target)
    for params in filter(None, shared.values()):
        folded += ["", *_dim(f"in all of them: {params_line(params)}", "    ", target)]
    return folded


def _note(column: Column, row: Mapping[str, Any], shared: Mapping[str, Any]) -> str:
    value = row.get(column.key)
    if not column.is_params:
        return column.show(value) if value else ""
    own = {name: item for name, item in (value or {}).items() if name not in shared}
    return params_line(own)


def _dim(text: str, first: str, target: Console, indent: str = "    ") -> list[str]:
    wrapped = textwrap.wrap(
        text,
        max(20, target.width - 1),
        initial_indent=first,
        subsequent_indent=indent,
        break_on_hyphens=False,
    )
    return [_styled(line, "dim", target) for line in wrapped]


def _styled(line: str, style: str, target: Console) -> str:
    from rich.text import Text

    with target.capture() as captured:
        target.print(Text(line, style=style), end="", soft_wrap=True)
    return captured.get()


def _shared(params: Sequence[Any]) -> dict[str, Any]:
    """Return what several configurations have in common; nothing for other values."""
    if len(params) < 2 or not all(isinstance(each, Mapping) for each in params):
        return {}
    first, *others = params
    return {
        name: value
        for name, value in first.items()
        if all(name in other and other[name] == value for other in others)
    }


def _grid(columns: Sequence[Column], rows: Sequence[Mapping[str, Any]]) -> RichTable:
    from rich.box import SIMPLE_HEAD
    from rich.table import Table as RichTable

    grid = RichTable(
        box=SIMPLE_HEAD, show_edge=False, pad_edge=False, header_style="bold", padding=(0, 1, 0, 0)
    )
    for column in columns:
        grid.add_column(
            column.title, justify=column.align, style=column.style, no_wrap=not column.is_text
        )
    for row in rows:
        # A line break inside a value would tear the row apart.
        grid.add_row(
            *(" ".join(column.show(row.get(column.key)).split("\n")) for column in columns)
        )
    return grid


def _lines(grid: RichTable, target: Console) -> list[str]:
    """Draw a grid without the blank lines around it and the blanks at line ends."""
    with target.capture() as captured:
        target.print(grid)
    return [line for line in map(str.rstrip, captured.get().splitlines()) if line]
