"""`automl-ft predict`: labels and scores for new rows, from an exported model."""

from __future__ import annotations

import csv
import io
import subprocess
from pathlib import Path
from typing import Any

import click

from automl_ft.cli.render import Column, Table, write_table
from automl_ft.cli.values import score
from automl_ft.errors import UsageError
from automl_ft.files.child import child_command, child_environment

__all__ = ["command"]

_MODULE = "automl_ft.export.predict"
"""Runs in a process of its own: the command line never pays for torch."""

_SCORE_COLUMNS = ("score", "probability/")
"""How the columns that hold numbers of ours begin; the others are the user's own text."""

_HELP = """Predict labels and scores for new rows.

MODEL_DIR is what `automl-ft export` wrote, or its folder model/. FILE is CSV, TSV, JSON, JSONL,
Parquet, Arrow or txt. Its rows come out with two more columns: the predicted label and its score.
With --to the ending of that file says the format."""

_EPILOG = """\b
Examples:
  automl-ft predict best/ new.csv
  automl-ft predict best/ new.csv --to predicted.parquet
  automl-ft predict best/model reviews.jsonl --text review --format json"""


@click.command(name="predict", help=_HELP, epilog=_EPILOG)
@click.argument("model_dir", type=click.Path(path_type=Path))
@click.argument("file", type=click.Path(path_type=Path))
@click.option("--to", type=click.Path(path_type=Path), help="Write a file instead of stdout.")
@click.option("--force", is_flag=True, help="Replace the file of --to if there is one.")
@click.option(
    "--text",
    multiple=True,
    help="Column of the text; twice for a pair.  [default: as in training]",
)
@click.option("--encoding", help="Text encoding of FILE.  [default: utf-8]")
@click.option("--probabilities", is_flag=True, help="Also the probability of every class.")
@click.option(
    "--trust-remote-code",
    is_flag=True,
    help="Run code that lies with the model; read it first.",
)
@click.option("--device", help="auto, cpu, mps, cuda or cuda:N.  [default: auto]")
@click.option("--batch-size", type=click.IntRange(min=1), metavar="N", help="Rows at once.")
@click.option(
    "--format",
    "format_",
    type=click.Choice(["table", "json", "csv"]),
    help="How to print on stdout.  [default: csv]",
)
def command(
    model_dir: Path, file: Path, to: Path | None, format_: str | None, **options: Any
) -> int:
    """Run the command and return its exit code."""
    if to is not None and format_ is not None:
        raise UsageError(
            f"--to {to} and --format {format_} were both given; the ending of the file says the"
            " format. Leave one of them out."
        )
    words = [str(model_dir), str(file), *_words(to=None if to is None else str(to), **options)]
    plain = [*child_command(_MODULE), *words]
    if format_ in (None, "csv"):
        return subprocess.run(plain, check=False, env=child_environment()).returncode
    done = subprocess.run(
        plain, check=False, env=child_environment(), stdout=subprocess.PIPE, encoding="utf-8"
    )
    if done.returncode == 0 and format_ is not None:
        write_table(_table(done.stdout), format_)
    return done.returncode


def _words(text: tuple[str, ...], **options: Any) -> list[str]:
    """Write the options that were given as the module takes them."""
    words: list[str] = []
    for column in (column for each in text for column in each.split(",")):
        words += ["--text", column]
    for name, value in options.items():
        if value is not None and value is not False:
            words += [f"--{name.replace('_', '-')}", *([] if value is True else [str(value)])]
    return words


def _table(text: str) -> Table:
    reader = csv.DictReader(io.StringIO(text))
    names = list(reader.fieldnames or ())
    rows = [{name: _value(name, value) for name, value in row.items()} for row in reader]
    columns = [
        Column(key=name, title=name, align="right", show=score)
        if name.startswith(_SCORE_COLUMNS)
        else Column(key=name, title=name, is_text=True)
        for name in names
    ]
    return Table(columns=columns, rows=rows)


def _value(name: str, text: str) -> str | float | None:
    """Read a number of ours; empty where the row had no text."""
    if not name.startswith(_SCORE_COLUMNS):
        return text
    return float(text) if text else None
