"""Who supervises a study: one process on one machine, whatever the database.

Two things must not be shared: the study and the folder of its checkpoints. The folder is locked by
a file beside it, the study by a file beside an SQLite database or by the server's own lock, which
goes with the connection and so with the process that holds it.
"""

from __future__ import annotations

import hashlib
import os
import socket
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from sqlalchemy import Connection, text

from automl_ft.errors import StudyLockedError
from automl_ft.files.lock import study_lock
from automl_ft.storage.database import Database

__all__ = ["supervise"]

_HOLDER_ON_POSTGRESQL = """
    SELECT a.application_name FROM pg_locks l JOIN pg_stat_activity a ON a.pid = l.pid
    WHERE l.locktype = 'advisory' AND l.granted
      AND l.classid::bigint = :high AND l.objid::bigint = :low AND l.objsubid = 1
"""


@contextmanager
def supervise(database: Database, study: str, folder: Path) -> Iterator[None]:
    """Hold a study and its folder while the block runs; never waits.

    Args:
        database: Where the study is.
        study: Its name.
        folder: Where its checkpoints are; need not exist.

    Yields:
        Nothing; study and folder are held.

    Raises:
        StudyLockedError: Another process holds either.
        StorageError: A lock file cannot be created, or the database fails.
    """
    folder = folder.absolute()
    with ExitStack() as held:
        held.enter_context(study_lock(folder.with_name(f".{folder.name}.lock"), study))
        file = database.address.file
        if file is None:
            held.enter_context(_server_lock(database, study))
        else:
            lock = file.with_name(f".{file.name}.{study}.lock")
            held.enter_context(study_lock(lock, study))
        yield


@contextmanager
def _server_lock(database: Database, study: str) -> Iterator[None]:
    # Without a transaction, or the server would keep old rows for as long as the search runs.
    engine = database.engine.execution_options(isolation_level="AUTOCOMMIT")
    connection = database.guarded(engine.connect)
    try:
        take = _postgresql if database.address.backend == "postgresql" else _mysql
        holder = database.guarded(lambda: take(connection, study))
        if holder is not None:
            raise StudyLockedError(
                f"Study `{study}` in {database.address} is being worked on by {holder}."
                " Wait until it ends, or stop it and try again."
            )
        yield
    finally:
        connection.invalidate()  # closes it: the lock goes with the session
        connection.close()


def _postgresql(connection: Connection, study: str) -> str | None:
    """Take the lock, or name its holder."""
    key = int.from_bytes(_key(study)[:8], "big", signed=True)
    if connection.scalar(text("SELECT pg_try_advisory_lock(:key)"), {"key": key}):
        # Names the holder for whoever is refused; PostgreSQL cuts it to 63 bytes.
        name = f"automl-ft process {os.getpid()} on {socket.gethostname()}"
        connection.execute(
            text("SELECT set_config('application_name', :name, false)"), {"name": name}
        )
        return None
    halves = {"high": (key >> 32) & 0xFFFFFFFF, "low": key & 0xFFFFFFFF}
    return connection.scalar(text(_HOLDER_ON_POSTGRESQL), halves) or "another process"


def _mysql(connection: Connection, study: str) -> str | None:
    """Take the lock, or name its holder."""
    # Locks belong to the server, not to a database: the key holds the database's name.
    schema = connection.scalar(text("SELECT DATABASE()"))
    name = f"automl-ft:{_key(f'{schema}/{study}').hex()[:40]}"
    if connection.scalar(text("SELECT GET_LOCK(:name, 0)"), {"name": name}):
        return None
    holder = connection.scalar(text("SELECT IS_USED_LOCK(:name)"), {"name": name})
    return f"connection {holder} of the server" if holder else "another process"


def _key(study: str) -> bytes:
    return hashlib.sha256(f"automl_ft:{study}".encode()).digest()
