"""How a file or folder is written so that it is there whole, or not at all. A leaf.

A process may be killed at any moment: what is written goes to a temporary name in the same folder,
is flushed to the disk, and takes its own name in one step.
"""

from __future__ import annotations

import json
import os
import re
import secrets
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

__all__ = ["atomic_path", "remove_leftovers", "write_bytes", "write_json", "write_text"]

_LEFTOVER = re.compile(r"\..+\.\d+\.[0-9a-f]{8}\.tmp")


@contextmanager
def atomic_path(path: str | os.PathLike[str]) -> Iterator[Path]:
    """Lend a temporary path that becomes `path` when the block ends well.

    The block writes a file or a folder at the lent path. If it raises, what it wrote is removed
    and `path` stays as it was. A folder can only take the place of nothing or of an empty folder.

    Args:
        path: Where the result shall lie; its parent folder must be there.

    Yields:
        A path in the same folder at which nothing exists yet.

    Raises:
        FileNotFoundError: The block wrote nothing, or the parent folder is missing.
        OSError: The disk is full, or `path` is a folder with something in it.
    """
    target = Path(path)
    temporary = target.with_name(f".{target.name}.{os.getpid()}.{secrets.token_hex(4)}.tmp")
    try:
        yield temporary
        _flush_tree(temporary)
        os.replace(temporary, target)
    except BaseException:
        _remove(temporary)
        raise
    _flush(target.parent)


def write_bytes(path: str | os.PathLike[str], data: bytes) -> None:
    """Write bytes atomically.

    Args:
        path: The file; replaced where it exists.
        data: What it shall hold.

    Raises:
        OSError: The file cannot be written; the old one is unharmed.
    """
    with atomic_path(path) as temporary:
        temporary.write_bytes(data)


def write_text(path: str | os.PathLike[str], text: str) -> None:
    """Write text as UTF-8 atomically.

    Args:
        path: The file; replaced where it exists.
        text: What it shall hold, line ends as they are.

    Raises:
        OSError: The file cannot be written; the old one is unharmed.
    """
    write_bytes(path, text.encode("utf-8"))


def write_json(path: str | os.PathLike[str], value: Any) -> None:
    """Write a value as indented JSON atomically.

    Args:
        path: The file; replaced where it exists.
        value: What `json.dumps` takes.

    Raises:
        TypeError: The value is not JSON.
        OSError: The file cannot be written; the old one is unharmed.
    """
    write_text(path, json.dumps(value, indent=2, ensure_ascii=False) + "\n")


def remove_leftovers(folder: str | os.PathLike[str]) -> int:
    """Remove what killed writers left below a folder.

    Call it only where nobody else writes below the folder, for instance under the study's lock.

    Args:
        folder: The folder; may be missing.

    Returns:
        How many temporary files and folders were removed.
    """
    leftovers = [path for path in Path(folder).rglob(".*.tmp") if _LEFTOVER.fullmatch(path.name)]
    for path in leftovers:
        _remove(path)
    return len(leftovers)


def _flush_tree(path: Path) -> None:
    if path.is_dir():
        for inside in path.rglob("*"):
            _flush(inside)
    _flush(path)


def _flush(path: Path) -> None:
    """Bring a file, or a folder's list of names, to the disk."""
    if os.name == "nt" and path.is_dir():  # Windows cannot open a folder
        return
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)
