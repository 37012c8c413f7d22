"""Who may work on a study, or on one of its files, on this machine? The holder of a lock file.

The kernel gives the lock back when its holder dies, however it dies. The lock file itself stays
behind, since removing a file that others may have opened would break the exclusion.
"""

from __future__ import annotations

import json
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock, Timeout

from automl_ft.errors import StorageError, StudyLockedError
from automl_ft.files.atomic import write_json

__all__ = ["short_lock", "study_lock"]


@contextmanager
def study_lock(path: str | os.PathLike[str], study: str) -> Iterator[None]:
    """Hold a lock file while the block runs; never waits.

    Args:
        path: The lock file; it and its folder are created where they are missing.
        study: Name of the study, for the message.

    Yields:
        Nothing; the lock is held.

    Raises:
        StudyLockedError: Another process, or another lock in this one, holds it.
        StorageError: The lock file cannot be created.
    """
    file = Path(path)
    lock = FileLock(file)
    problem = _acquire(lock, file, study)
    if problem is not None:
        raise problem
    try:
        write_json(_holder_file(file), {"pid": os.getpid(), "host": socket.gethostname()})
        yield
    finally:
        _holder_file(file).unlink(missing_ok=True)
        lock.release()


@contextmanager
def short_lock(path: str | os.PathLike[str], seconds: float) -> Iterator[None]:
    """Hold a lock file while the block reads and writes another file; waits for its turn.

    Args:
        path: The lock file; it and its folder are created where they are missing.
        seconds: How long to wait at most.

    Yields:
        Nothing; the lock is held.

    Raises:
        OSError: The lock file cannot be created, or its holder kept it for too long.
    """
    file = Path(path)
    file.parent.mkdir(parents=True, exist_ok=True)
    # Not a singleton for the path: threads and objects of one process exclude each other too.
    with FileLock(file, timeout=seconds):
        yield


def _acquire(lock: FileLock, file: Path, study: str) -> StudyLockedError | StorageError | None:
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        lock.acquire(blocking=False)
    except Timeout:
        return StudyLockedError(
            f"Study `{study}` is being worked on by {_holder(file)}, which holds the lock"
            f" `{file}`. Wait until it ends, or stop it and try again."
        )
    except OSError as error:
        return StorageError(
            f"The lock file `{file}` of study `{study}` cannot be created:"
            f" {error.strerror or error}. Choose a folder that can be written to."
        )
    return None


def _holder_file(file: Path) -> Path:
    # Not in the lock file itself: filelock truncates that whenever somebody tries to take it.
    return file.with_name(f"{file.name}.holder")


def _holder(file: Path) -> str:
    """Name the process that holds the lock, as far as it is known."""
    try:
        known = json.loads(_holder_file(file).read_text(encoding="utf-8"))
        return f"process {known['pid']} on {known['host']}"
    except (OSError, ValueError, KeyError, TypeError):
        return "another process"
