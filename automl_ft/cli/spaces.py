"""`automl-ft spaces`: the search spaces that ship, or one in full."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from automl_ft.cli.complete import complete_space
from automl_ft.cli.options import format_option
from automl_ft.cli.render import Column, Table, write_table
from automl_ft.cli.values import param

if TYPE_CHECKING:
    from automl_ft.space.spec import FloatParam, IntParam, Parameter, Prior, SearchSpace

__all__ = ["command"]

_HELP = """List the search spaces, or show one in full.

NAME is a space that ships, or a file of your own, which is checked on the way."""

_EPILOG = """\b
Examples:
  automl-ft spaces
  automl-ft spaces text_classification
  automl-ft spaces my_space.yaml --format json"""


@click.command(name="spaces", help=_HELP, epilog=_EPILOG)
@click.argument("name", required=False, shell_complete=complete_space)
@format_option
def command(name: str | None, format_: str) -> None:
    """Run the command."""
    from automl_ft.space.load import list_spaces, load_space

    if name is None:
        write_table(_list([(known, load_space(known)) for known in list_spaces()]), format_)
        return
    space = load_space(name, place="argument NAME")
    if format_ == "table":
        click.echo(f"{space.name}: {space.description.strip() or 'no description'}\n")
    write_table(_full(space), format_)


def _list(spaces: list[tuple[str, SearchSpace]]) -> Table:
    columns = (
        Column(key="space", title="space", style="bold"),
        Column(key="searched", title="searched", align="right"),
        Column(key="fixed", title="fixed", align="right"),
        Column(key="description", title="description", is_note=True),
    )
    rows = [
        {
            "space": name,
            "searched": len(space.sampled),
            "fixed": len(space.fixed),
            "description": " ".join(space.description.split()),
        }
        for name, space in spaces
    ]
    return Table(columns=columns, rows=rows)


def _full(space: SearchSpace) -> Table:
    columns = (
        Column(key="parameter", title="parameter", style="bold"),
        Column(key="range", title="range"),
        Column(key="default", title="default", align="right", show=param),
        Column(key="when", title="applies", is_note=True),
        Column(key="prior", title="prior", is_note=True),
        Column(key="source", title="source", is_note=True),
    )
    return Table(columns=columns, rows=[_row(parameter) for parameter in space.parameters])


def _row(parameter: Parameter) -> dict[str, Any]:
    from automl_ft.space.spec import CategoricalParam, Fixed, FloatParam

    if isinstance(parameter, Fixed):
        return _cells(parameter.name, "fixed", parameter.value)
    if isinstance(parameter, CategoricalParam):
        range_ = ", ".join(param(choice) for choice in parameter.choices)
    else:
        range_ = _range(parameter)
    prior = parameter.prior if isinstance(parameter, FloatParam) else None
    conditions = " and ".join(str(condition) for condition in parameter.when)
    return _cells(
        parameter.name,
        range_,
        parameter.default,
        when=f"only with {conditions}" if conditions else "",
        prior="" if prior is None else _centers(prior),
        source=parameter.source,
    )


def _cells(name: str, range_: str, default: Any, **notes: str) -> dict[str, Any]:
    empty = {"when": "", "prior": "", "source": ""}
    return {"parameter": name, "range": range_, "default": default, **empty, **notes}


def _range(parameter: FloatParam | IntParam) -> str:
    text = f"{param(parameter.low)} to {param(parameter.high)}"
    if parameter.log:
        text += ", log"
    step = parameter.step if parameter.step not in (None, 1) else None
    return text if step is None else f"{text}, step {param(step)}"


def _centers(prior: Prior) -> str:
    centers = ", ".join(
        f"{param(center)} with {prior.by} = {choice}" for choice, center in prior.centers.items()
    )
    return f"within a factor of {param(prior.spread)} of {centers}"
