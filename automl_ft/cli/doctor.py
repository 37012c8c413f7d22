"""`automl-ft doctor`: is everything fit for a search, and what can be mended?"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import click

from automl_ft.cli.complete import complete_study
from automl_ft.cli.options import format_option, storage_option, study_of
from automl_ft.cli.render import Column, Table, write_table

if TYPE_CHECKING:
    from automl_ft.cli.checkup import Check

__all__ = ["command"]

_HELP = """Check packages, devices, database, studies and disk.

With STUDY only that study is looked at, else all of the database. --fix puts trials of a killed
search back in line, deletes checkpoints that nothing needs, and switches SQLite to WAL; a study
that is being searched is left alone. Exit code 1 means that a problem remains."""

_EPILOG = """\b
Examples:
  automl-ft doctor
  automl-ft doctor demo --fix"""


@click.command(name="doctor", help=_HELP, epilog=_EPILOG)
@click.argument("study", required=False, shell_complete=complete_study)
@click.option("--fix", is_flag=True, help="Mend what can be mended.")
@storage_option
@format_option
def command(study: str | None, fix: bool, storage: str | None, format_: str) -> int:
    """Run the command and return its exit code."""
    checks = list(_checks(study, storage, fix=fix))
    columns = (
        Column(key="state", title="state", style="bold"),
        Column(key="check", title="check"),
        Column(key="finding", title="finding", is_text=True),
    )
    rows = [{"state": c.state, "check": c.name, "finding": c.finding} for c in checks]
    write_table(Table(columns=columns, rows=rows), format_)
    return 1 if any(check.state == "problem" for check in checks) else 0


def _checks(study: str | None, storage: str | None, *, fix: bool) -> Iterator[Check]:
    from automl_ft.cli.checkup import check_devices, check_packages

    name, url = (None, storage) if study is None else study_of(study, storage)
    yield from check_packages()
    yield from check_devices()
    yield from _database_checks(name, url, fix=fix)


def _database_checks(name: str | None, storage: str | None, *, fix: bool) -> Iterator[Check]:
    from automl_ft.cli.checkup import Check, check_database, check_disk, check_study
    from automl_ft.errors import StorageError
    from automl_ft.search.folder import study_folder
    from automl_ft.storage.database import open_storage
    from automl_ft.storage.studies import StudyDatabase
    from automl_ft.storage.urls import parse_url, resolve_url

    file = parse_url(resolve_url(storage)).file
    if name is None and file is not None and not file.exists():
        finding = f"none yet; the first search creates {file}"
        yield Check(name="database", state="ok", finding=finding)
        yield check_disk(Path("studies").absolute())
        return
    try:
        database = open_storage(storage, create=False)
    except StorageError as error:
        yield Check(name="database", state="problem", finding=str(error))
        return
    yield from check_database(database, fix=fix)
    studies = StudyDatabase(database)
    ours = [summary.name for summary in studies.studies() if summary.config is not None]
    folders = {Path("studies").absolute()} if name is None else set()
    for each in ours if name is None else [name]:
        store = studies.load(each)
        folder = study_folder(store.record.config, store.record)
        folders.add(folder.path.parent)
        yield from check_study(store, folder, fix=fix)
    for path in sorted(folders):
        yield check_disk(path)
