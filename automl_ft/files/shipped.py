"""Where the search spaces and study files that ship with automl-ft lie. A leaf."""

from __future__ import annotations

from pathlib import Path

__all__ = ["shipped_file", "shipped_names"]

_PACKAGE = Path(__file__).resolve().parent.parent


def _folder(kind: str) -> Path:
    """Return the folder inside the wheel, or at the top of a checkout."""
    inside = _PACKAGE / "_bundled" / kind
    return inside if inside.is_dir() else _PACKAGE.parent / kind


def shipped_file(kind: str, name: str) -> Path | None:
    """Return the path of a shipped YAML file.

    Args:
        kind: `search_spaces` or `studies`.
        name: Its name without the ending.

    Returns:
        The path, or None if nothing of that name ships.
    """
    return _folder(kind) / f"{name}.yaml" if name in shipped_names(kind) else None


def shipped_names(kind: str) -> tuple[str, ...]:
    """Return the names of the shipped YAML files of a kind, sorted.

    Args:
        kind: `search_spaces` or `studies`.

    Returns:
        Names without the ending.
    """
    return tuple(sorted(path.stem for path in _folder(kind).glob("*.yaml")))
