"""`automl-ft delete`: a study with all its files."""

from __future__ import annotations

import sys
from pathlib import Path

import click

from automl_ft.cli.options import storage_option, study_argument, study_of
from automl_ft.cli.values import plural, size
from automl_ft.errors import UsageError

__all__ = ["command", "folder_size"]

_HELP = """Delete a study with all its files.

The trials go from the database, and the checkpoints and caches from the disk. Exported models
stay. Asks first, unless --yes is given."""

_EPILOG = """\b
Examples:
  automl-ft delete demo
  automl-ft delete demo --yes"""


@click.command(name="delete", help=_HELP, epilog=_EPILOG)
@study_argument
@click.option("--yes", is_flag=True, help="Do not ask.")
@storage_option
def command(study: str, yes: bool, storage: str | None) -> int:
    """Run the command and return its exit code."""
    import automl_ft.api as api

    name, url = study_of(study, storage)
    found = api.load_study(name, storage=url)
    what = (
        f"{plural(len(found.trials), 'trial')}, {size(folder_size(found.folder))} in {found.folder}"
    )
    if not yes:
        if not sys.stdin.isatty():
            raise UsageError(
                f"Study `{name}` ({what}) was not deleted: nobody can be asked here. Give --yes."
            )
        if not click.confirm(f"Delete study {name} ({what})?", err=True):
            click.echo("Nothing was deleted.", err=True)
            return 1
    found.delete()
    click.echo(f"deleted study {name}: {what}")
    return 0


def folder_size(folder: Path) -> int:
    """Add up the sizes of the files in a folder.

    Args:
        folder: The folder; need not exist.

    Returns:
        Bytes.
    """
    return sum(path.lstat().st_size for path in folder.rglob("*") if path.is_file())
