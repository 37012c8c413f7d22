"""`automl-ft enqueue`: a configuration of one's own, next in line."""

from __future__ import annotations

from typing import Any

import click

from automl_ft.cli.options import parse_pair, storage_option, study_argument, study_of
from automl_ft.cli.values import params_line
from automl_ft.errors import ConfigError, Problem

__all__ = ["command"]

_HELP = """Put a configuration of your own next in line.

Give hyperparameters as key=value; those that are left out take their default. Give one number
instead to run that trial again, with a fresh seed. The next `automl-ft search` runs it first."""

_EPILOG = """\b
Examples:
  automl-ft enqueue demo learning_rate=3e-5 freezing=none
  automl-ft enqueue demo 3"""


@click.command(name="enqueue", help=_HELP, epilog=_EPILOG)
@study_argument
@click.argument("values", metavar="KEY=VALUE... | N", nargs=-1, required=True)
@storage_option
def command(study: str, values: tuple[str, ...], storage: str | None) -> None:
    """Run the command."""
    params = None if len(values) == 1 and values[0].isdecimal() else _params(values)
    import automl_ft.api as api

    name, url = study_of(study, storage)
    found = api.load_study(name, storage=url)
    if params is None:
        number = found.rerun(int(values[0]))
        click.echo(f"trial {number} of study {name} is next in line: trial {values[0]} again")
    else:
        number = found.enqueue(params)
        click.echo(f"trial {number} of study {name} is next in line: {params_line(params)}")


def _params(values: tuple[str, ...]) -> dict[str, Any]:
    problems: list[Problem] = []
    params: dict[str, Any] = {}
    for pair in values:
        try:
            name, value = parse_pair(pair, "argument")
        except ConfigError as error:
            problems.extend(error.problems)
            continue
        if name in params:
            problems.append(Problem(place=f"argument {name}", message="given twice; keep one."))
        params[name] = value
    if problems:
        raise ConfigError(problems)
    return params
