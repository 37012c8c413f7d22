"""Which options do several commands share, and which study do they mean?"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import click

from automl_ft.cli.complete import complete_study
from automl_ft.errors import ConfigError, Problem

__all__ = [
    "format_option",
    "parse_pair",
    "parse_value",
    "storage_option",
    "study_argument",
    "study_of",
]

_F = TypeVar("_F", bound=Callable[..., Any])


def storage_option(function: _F) -> _F:
    """Add `--storage URL` to a command.

    Args:
        function: The command's function.

    Returns:
        The same function with the option.
    """
    option = click.option(
        "--storage",
        metavar="URL",
        help="Study database as an SQLAlchemy URL: SQLite, PostgreSQL or MySQL."
        "  [default: AUTOML_FT_STORAGE, else sqlite:///studies/studies.db]",
    )
    return option(function)


def format_option(function: _F) -> _F:
    """Add `--format table|json|csv` to a command.

    Args:
        function: The command's function.

    Returns:
        The same function with the option.
    """
    option = click.option(
        "--format",
        "format_",
        type=click.Choice(["table", "json", "csv"]),
        default="table",
        show_default=True,
        help="How to print on stdout.",
    )
    return option(function)


def study_argument(function: _F) -> _F:
    """Add the argument STUDY to a command.

    Args:
        function: The command's function.

    Returns:
        The same function with the argument.
    """
    return click.argument("study", metavar="STUDY", shell_complete=complete_study)(function)


def study_of(study: str, storage: str | None) -> tuple[str, str | None]:
    """Say which study is meant: a name, or a study file that names study and database.

    Args:
        study: What the user wrote for STUDY.
        storage: What the user wrote for `--storage`; wins over the file.

    Returns:
        The study's name, and the URL of its database or None for the default.

    Raises:
        ConfigError: The study file has problems.
    """
    path = Path(study)
    if path.suffix.lower() not in (".yaml", ".yml") or not path.is_file():
        return study, storage
    from automl_ft.config.load import load_config

    config = load_config(study).config
    return config.name or study, storage or config.storage


def parse_value(text: str, place: str) -> Any:
    """Read the value of a `key=value` as a study file would.

    Args:
        text: A YAML scalar or list, such as `3e-5`, `null` or `[a, b]`.
        place: The option and key, for the message.

    Returns:
        The value.

    Raises:
        ConfigError: The text is no YAML.
    """
    from automl_ft.config.yaml_file import parse_yaml

    value, problems = parse_yaml(text, place)
    if problems:
        raise ConfigError(problems)
    return value


def parse_pair(pair: str, place: str) -> tuple[str, Any]:
    """Read one `key=value`.

    Args:
        pair: What the user wrote.
        place: The option or argument, for the message.

    Returns:
        The key and the value.

    Raises:
        ConfigError: There is no `=`, no key, or the value is no YAML.
    """
    key, equals, text = pair.partition("=")
    key = key.strip()
    if not equals or not key:
        message = f"`{pair}` is not accepted; accepted is key=value, such as learning_rate=3e-5."
        raise ConfigError([Problem(place=place, message=message)])
    return key, parse_value(text, f"{place} {key}")
