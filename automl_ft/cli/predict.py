"""`automl-ft predict`: labels and scores for new rows, from an exported model."""

from __future__ import annotations

import csv
import io
import subprocess
import sys
from pathlib import Path
from typing import Any

import click

from automl_ft.cli.render import Column, Table, write_table
from automl_ft.errors import UsageError

__all__ = ["command"]

_MODULE = "automl_ft.export.predict"
"""Runs in a process of its own: the command line never pays for torch."""

_HELP = """Predict labels and scores for new rows.

MODEL_DIR is what `automl-ft export` wrote, or its folder model/. FILE is CSV, TSV, JSON, JSONL or
Parquet. Rows come out with the predicted label and a score for each class; with --to the ending
of the file says the format."""

_EPILOG = """\b
Examples:
  automl-ft predict best/ new.csv
  automl-ft predict best/ new.csv --to predicted.parquet
  automl-ft predict best/model reviews.jsonl --text review --format json"""


@click.command(name="predict", help=_HELP, epilog=_EPILOG)
@click.argument("model_dir", type=click.Path(path_type=Path))
@click.argument("file", type=click.Path(path_type=Path))
@click.option("--to", type=click.Path(path_type=Path), help="Write a file instead of stdout.")
@click.option("--text", multiple=True, help="Column of the text.  [default: as in training]")
@click.option("--device", help="auto, cpu, mps, cuda or cuda:N.")
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
    words = [str(model_dir), str(file), *_options(to, **options)]
    plain = [sys.executable, "-m", _MODULE, *words]
    if format_ in (None, "csv"):
        return subprocess.run(plain, check=False).returncode
    done = subprocess.run(plain, check=False, stdout=subprocess.PIPE, text=True, encoding="utf-8")
    if done.returncode == 0 and format_ is not None:
        write_table(_table(done.stdout), format_)
    return done.returncode


def _options(
    to: Path | None, text: tuple[str, ...], device: str | None, batch_size: int | None
) -> list[str]:
    words = [] if to is None else ["--to", str(to)]
    for column in (column for each in text for column in each.split(",")):
        words += ["--text", column]
    words += [] if device is None else ["--device", device]
    return words + ([] if batch_size is None else ["--batch-size", str(batch_size)])


def _table(text: str) -> Table:
    reader = csv.DictReader(io.StringIO(text))
    names = list(reader.fieldnames or ())
    rows = [{name: _value(value) for name, value in row.items()} for row in reader]
    columns = [Column(key=name, title=name, is_text=True) for name in names]
    return Table(columns=columns, rows=rows)


def _value(text: str) -> str | float:
    try:
        return float(text)
    except ValueError:
        return text
