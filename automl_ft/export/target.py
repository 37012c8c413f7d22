"""Where does an export go, without losing what is there?

Everything is written to a folder beside the target, which takes the target's place in the end:
a failure at any moment leaves the target as it was.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

from automl_ft.errors import ExportError

__all__ = ["PARTS", "check_target", "staged"]

PARTS = ("config.yaml", "model", "train.py", "README.md")
"""What an export consists of; nothing else in the target is touched."""


def check_target(to: Path, *, force: bool, keep_out: Path) -> Path:
    """Check that the target may be written.

    Args:
        to: Where the export shall go; need not exist.
        force: Whether an earlier export in it may be replaced.
        keep_out: The study's own folder, which must not be replaced.

    Returns:
        The absolute path of the target.

    Raises:
        ExportError: The target is a file, is not empty and not forced, or is the working
            directory, the study's folder or one above them.
    """
    target = to.expanduser().resolve()
    if target.exists() and not target.is_dir():
        raise ExportError(f"--to: `{to}` is a file; give a folder that is new or empty.")
    for inner, what in ((Path.cwd(), "the working directory"), (keep_out, "the study's folder")):
        if target == inner.resolve() or target in inner.resolve().parents:
            raise ExportError(
                f"--to: `{to}` is {what} or a folder above it; give a folder of its own, such as"
                f" `{to / 'best'}`."
            )
    if target.is_dir() and any(target.iterdir()) and not force:
        raise ExportError(
            f"--to: the folder `{to}` exists and is not empty. Give another one, or --force to"
            f" replace what an export writes there ({', '.join(PARTS)})."
        )
    return target


@contextlib.contextmanager
def staged(target: Path) -> Iterator[Path]:
    """Give a folder beside the target that takes its place if all goes well.

    Files in the target that are no part of an export are kept.

    Args:
        target: Absolute path from `check_target`.

    Yields:
        A new empty folder on the same file system.

    Raises:
        ExportError: The folder cannot be made, or cannot take the target's place.
    """
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        staging = Path(tempfile.mkdtemp(prefix=f".{target.name}.new-", dir=target.parent))
    except OSError as error:
        raise ExportError(f"--to: `{target.parent}` cannot be written: {error}.") from error
    try:
        yield staging
        _open_up(staging)
        _take_place(staging, target)
    finally:
        shutil.rmtree(staging, ignore_errors=True)


def _take_place(staging: Path, target: Path) -> None:
    """Put the staged folder where the target is; put the old one back if that fails."""
    old = staging.with_name(staging.name.replace(".new-", ".old-"))
    had_target = target.exists()
    try:
        if had_target:
            os.rename(target, old)
        try:
            os.rename(staging, target)
        except OSError:
            if had_target:
                os.rename(old, target)
            raise
    except OSError as error:
        raise ExportError(f"--to: `{target}` cannot be replaced: {error}.") from error
    if had_target:
        for entry in old.iterdir():
            if entry.name not in PARTS:
                os.rename(entry, target / entry.name)
        shutil.rmtree(old, ignore_errors=True)


def _open_up(folder: Path) -> None:
    """Give the usual rights: temporary folders and safetensors' files are their owner's only."""
    mask = _umask()
    for path in (folder, *folder.rglob("*")):
        path.chmod((0o777 if path.is_dir() else 0o666) & ~mask)


def _umask() -> int:
    """Return the process's umask, which can only be read by setting it."""
    mask = os.umask(0)
    os.umask(mask)
    return mask
