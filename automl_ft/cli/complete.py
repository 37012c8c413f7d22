"""What can the shell offer for a study, a study file or a search space? A light file.

It runs at every press of the tab key, so it reads SQLite with the standard library and never
imports Optuna; other databases offer nothing.
"""

from __future__ import annotations

import contextlib
import os
import sqlite3
from pathlib import Path
from urllib.parse import unquote

import click
from click.shell_completion import CompletionItem

from automl_ft.files.shipped import shipped_names

__all__ = ["complete_space", "complete_study", "complete_study_file"]

_DEFAULT_STORAGE = "sqlite:///studies/studies.db"


def complete_study(ctx: click.Context, param: click.Parameter, incomplete: str) -> list[str]:
    """Offer the names of the studies in the database.

    Args:
        ctx: Holds `--storage` where it was given before.
        param: The argument that is completed.
        incomplete: What was typed so far.

    Returns:
        Names that start with it; empty if the database cannot be read at once.
    """
    url = ctx.params.get("storage") or os.environ.get("AUTOML_FT_STORAGE") or _DEFAULT_STORAGE
    return [name for name in _study_names(url) if name.startswith(incomplete)]


def complete_study_file(
    ctx: click.Context, param: click.Parameter, incomplete: str
) -> list[CompletionItem]:
    """Offer shipped studies, and leave files to the shell.

    Args:
        ctx: The invocation.
        param: The argument that is completed.
        incomplete: What was typed so far.

    Returns:
        Shipped names that start with it, then the shell's files.
    """
    return _shipped("studies", incomplete)


def complete_space(
    ctx: click.Context, param: click.Parameter, incomplete: str
) -> list[CompletionItem]:
    """Offer shipped search spaces, and leave files to the shell.

    Args:
        ctx: The invocation.
        param: The option or argument that is completed.
        incomplete: What was typed so far.

    Returns:
        Shipped names that start with it, then the shell's files.
    """
    return _shipped("search_spaces", incomplete)


def _shipped(kind: str, incomplete: str) -> list[CompletionItem]:
    names = [name for name in shipped_names(kind) if name.startswith(incomplete)]
    # One or the other: bash forgets the names when it is told to complete files.
    files = [CompletionItem(incomplete, type="file")]
    return [CompletionItem(name) for name in names] or files


def _study_names(url: str) -> list[str]:
    scheme, _, path = url.partition(":///")
    if not scheme.startswith("sqlite") or not Path(unquote(path)).is_file():
        return []
    names: list[str] = []
    address = Path(unquote(path)).resolve().as_uri() + "?mode=ro"
    with (
        contextlib.suppress(sqlite3.Error),
        contextlib.closing(sqlite3.connect(address, uri=True, timeout=0.2)) as database,
    ):
        rows = database.execute("SELECT study_name FROM studies ORDER BY study_name")
        names.extend(str(row[0]) for row in rows)
    return names
