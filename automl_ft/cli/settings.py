"""How are the resolved settings of a study shown, each with its origin?"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from automl_ft.cli.render import Column, Table, print_table, write_dim
from automl_ft.config.duration import format_duration

if TYPE_CHECKING:
    from rich.console import Console

    from automl_ft.config.load import LoadedConfig

__all__ = ["print_settings"]

_TIMEOUT = "budget.timeout_seconds"
_NAMES = {_TIMEOUT: "budget.timeout"}
"""Settings that study files call otherwise."""


def print_settings(loaded: LoadedConfig, target: Console) -> None:
    """Print what was chosen as a table, and below it what is left at its default.

    Args:
        loaded: The config and the origins of its settings.
        target: Where it is printed.
    """
    settings = dict(_settings(loaded))
    chosen = {key: origin for key, origin in loaded.origins.items() if origin != "default"}
    rows = [
        {"setting": _NAMES.get(key, key), "value": _written(value), "origin": _short(chosen[key])}
        for key, value in settings.items()
        if key in chosen
    ]
    columns = (
        Column(key="setting", title="setting"),
        Column(key="value", title="value", is_text=True, style="bold"),
        Column(key="origin", title="origin", style="dim"),
    )
    print_table(Table(columns=columns, rows=rows), target)
    rest = {key: value for key, value in settings.items() if key not in chosen}
    defaults = [
        f"{_NAMES.get(key, key)}={_written(value)}"
        for key, value in rest.items()
        if value is not None
    ]
    unset = [_NAMES.get(key, key) for key, value in rest.items() if value is None]
    target.print()
    write_dim(f"default: {' '.join(defaults)}", target)
    write_dim(f"not set: {' '.join(unset)}", target)
    target.print()


def _settings(loaded: LoadedConfig) -> Iterator[tuple[str, Any]]:
    """Yield every setting by dotted key; the database without its password."""
    from automl_ft.config.load import settings_of
    from automl_ft.storage.urls import parse_url, resolve_url

    for key, value in _leaves(settings_of(loaded.config)):
        if key == "storage":
            yield key, parse_url(resolve_url(value)).shown
        elif key == _TIMEOUT and value is not None:
            yield key, format_duration(value)
        else:
            yield key, value


def _leaves(settings: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in settings.items():
        if isinstance(value, Mapping) and key != "space":
            yield from _leaves(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def _written(value: Any) -> str:
    if isinstance(value, Mapping):
        return f"{len(value)} hyperparameters: {', '.join(value)}"
    if isinstance(value, (list, tuple)):
        return ",".join(map(str, value))
    return "none" if value is None else str(value)


def _short(origin: str) -> str:
    """Shorten the path of a file that lies elsewhere, such as a shipped study."""
    path = Path(origin)
    if not path.is_absolute():
        return origin
    here = Path.cwd()
    return str(path.relative_to(here)) if path.is_relative_to(here) else path.name
