"""`automl-ft export`: the best model with its config, script and card."""

from __future__ import annotations

from pathlib import Path

import click

from automl_ft.cli.options import storage_option, study_argument, study_of

__all__ = ["command"]

_HELP = """Export the best model with its config, script and card.

Writes config.yaml (runs as a one-point search), model/ (loads with plain transformers), train.py
(the same recipe without automl-ft) and README.md (a model card). Prints the folder on stdout."""

_EPILOG = """\b
Examples:
  automl-ft export demo --to best/
  automl-ft export demo --to second/ --trial 7
  automl-ft export demo --to best/ --force"""


@click.command(name="export", help=_HELP, epilog=_EPILOG)
@study_argument
@click.option("--to", required=True, type=click.Path(path_type=Path), help="A new or empty folder.")
@click.option(
    "--trial", type=click.IntRange(min=0), metavar="N", help="Not the best but this trial."
)
@click.option("--force", is_flag=True, help="Replace the files of an earlier export.")
@storage_option
def command(study: str, to: Path, trial: int | None, force: bool, storage: str | None) -> None:
    """Run the command."""
    import automl_ft.api as api

    name, url = study_of(study, storage)
    found = api.load_study(name, storage=url)
    which = "the best trial" if trial is None else f"trial {trial}"
    click.echo(f"Exporting {which} of study {name}; checking that its value is met ...", err=True)
    folder = found.export(to, trial=trial, force=force)
    click.echo(str(folder))
    click.echo(f"\nTry it: automl-ft predict {folder / 'model'} FILE", err=True)
