"""How the study database is opened, and how its failures become messages without a password.

SQLite is opened so that a commit costs no disk flush (WAL, synchronous NORMAL) and a second writer
waits; a power cut may then lose the last commits, never the database.
Source: https://www.sqlite.org/wal.html, "Performance Considerations".
"""

from __future__ import annotations

import logging
import sqlite3
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import quote

import optuna
from filelock import FileLock
from optuna.exceptions import StorageInternalError
from optuna.storages import RDBStorage
from sqlalchemy import Connection, Engine, create_engine, inspect
from sqlalchemy.exc import DBAPIError, SQLAlchemyError

from automl_ft.errors import NoStudiesError, StorageError
from automl_ft.storage.tables import METADATA
from automl_ft.storage.urls import DatabaseUrl, parse_url, resolve_url, source_of

__all__ = ["BUSY_TIMEOUT_SECONDS", "Database", "open_storage"]

T = TypeVar("T")

BUSY_TIMEOUT_SECONDS = 30.0
"""How long a writer waits for another one on SQLite, and a client for a server's answer."""

_log = logging.getLogger(__name__)
_OPTUNA_MARKS = {"studies", "alembic_version"}


class Database:
    """An open study database: the only way in which this package talks to it.

    Every failure below becomes a `StorageError` that names the database, without its password and
    with no other exception chained to it.
    """

    def __init__(self, address: DatabaseUrl, rdb: RDBStorage) -> None:
        """Store the parts; `open_storage` builds them.

        Args:
            address: Which database it is.
            rdb: Optuna's view of it.
        """
        self.address = address
        self.rdb = rdb

    def __repr__(self) -> str:
        return f"Database({self.address.shown!r})"

    @property
    def engine(self) -> Engine:
        """The one pool of connections, Optuna's too."""
        return self.rdb.engine

    def read(self, action: Callable[[Connection], T]) -> T:
        """Run queries on a connection.

        Args:
            action: Gets the connection.

        Returns:
            What the action returns.

        Raises:
            StorageError: The database fails.
        """

        def run() -> T:
            with self.engine.connect() as connection:
                return action(connection)

        return self.guarded(run)

    def write(self, action: Callable[[Connection], T]) -> T:
        """Run statements in one transaction: all of them, or none.

        Args:
            action: Gets the connection. Its first statement should write, so that SQLite takes
                the write lock before anything is read.

        Returns:
            What the action returns.

        Raises:
            StorageError: The database fails.
        """

        def run() -> T:
            with self.engine.begin() as connection:
                return action(connection)

        return self.guarded(run)

    def guarded(self, action: Callable[[], T]) -> T:
        """Run anything that talks to the database, such as Optuna's own methods.

        Args:
            action: What to run.

        Returns:
            What the action returns.

        Raises:
            StorageError: The database fails.
        """
        return _guarded(self.address, action)

    def close(self) -> None:
        """Give all connections back."""
        self.rdb.remove_session()
        self.engine.dispose()


def open_storage(url: str | None, *, create: bool) -> Database:
    """Open the study database.

    Args:
        url: SQLAlchemy URL; None takes what `resolve_url` says.
        create: Whether a missing database, its folder and its tables are created. Without it
            nothing is written.

    Returns:
        The open database.

    Raises:
        NoStudiesError: It is missing and shall not be created.
        StorageError: It cannot be reached or read, its schema is another Optuna's, or its driver
            is not installed.
    """
    address = parse_url(resolve_url(url), source_of(url))
    file = address.file
    if file is None:
        return _guarded(address, lambda: _open_server(address, create))
    if not create:
        _check_file(address, file)
        return _guarded(address, lambda: _connect(address, create))
    return _guarded(address, lambda: _create_file(address, file))


def _create_file(address: DatabaseUrl, file: Path) -> Database:
    file.parent.mkdir(parents=True, exist_ok=True)
    # Two processes that create the tables at once would trip over each other.
    with FileLock(file.with_name(f".{file.name}.lock"), timeout=BUSY_TIMEOUT_SECONDS):
        with closing(sqlite3.connect(file, timeout=BUSY_TIMEOUT_SECONDS)) as connection:
            (mode,) = connection.execute("PRAGMA journal_mode=WAL").fetchone()
        if mode != "wal":
            _log.warning("%s cannot use WAL; each write will be slower.", address)
        return _connect(address, create=True)


def _check_file(address: DatabaseUrl, file: Path) -> None:
    """Refuse a file that is missing or holds no studies, without touching it."""
    if not file.exists():
        raise _nothing_there(address, f"there is no file `{file}`")
    tables = _guarded(address, lambda: _table_names(file))
    if not tables >= _OPTUNA_MARKS:
        raise _nothing_there(address, f"the file `{file}` holds no studies")


def _table_names(file: Path) -> set[str]:
    uri = f"file:{quote(str(file))}?mode=ro"
    with closing(sqlite3.connect(uri, uri=True, timeout=BUSY_TIMEOUT_SECONDS)) as connection:
        rows = connection.execute("SELECT name FROM sqlite_master WHERE type = 'table'")
        return {name for (name,) in rows.fetchall()}


def _open_server(address: DatabaseUrl, create: bool) -> Database:
    if not create:
        engine = create_engine(address.url, **_engine_options(address))
        try:
            tables = set(inspect(engine).get_table_names())
        finally:
            engine.dispose()
        if not tables >= _OPTUNA_MARKS:
            raise _nothing_there(address, "the database holds no studies")
    return _connect(address, create)


def _nothing_there(address: DatabaseUrl, reason: str) -> NoStudiesError:
    return NoStudiesError(
        f"There are no studies in {address}: {reason}. Name the database with --storage or"
        " AUTOML_FT_STORAGE, or create a study with `automl-ft search`."
    )


def _connect(address: DatabaseUrl, create: bool) -> Database:
    # Optuna fills braces in the URL as a template; those of a password are doubled.
    text = address.url.render_as_string(hide_password=False)
    rdb = RDBStorage(
        text.replace("{", "{{").replace("}", "}}"),
        engine_kwargs=_engine_options(address),
        skip_table_creation=not create,
        skip_compatibility_check=True,
    )
    _check_optuna_schema(address, rdb)
    if create:
        METADATA.create_all(rdb.engine)
    return Database(address, rdb)


def _engine_options(address: DatabaseUrl) -> dict[str, Any]:
    if address.backend == "sqlite":
        # A connection class rather than an event: RDBStorage connects in its constructor.
        return {"connect_args": {"timeout": BUSY_TIMEOUT_SECONDS, "factory": _SqliteConnection}}
    given = address.url.query
    timeout = {} if "connect_timeout" in given else {"connect_timeout": int(BUSY_TIMEOUT_SECONDS)}
    return {"pool_pre_ping": True, "connect_args": timeout}


class _SqliteConnection(sqlite3.Connection):
    """A connection that need not flush each commit and keeps foreign keys."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.execute("PRAGMA synchronous=NORMAL")
        self.execute("PRAGMA foreign_keys=ON")


def _check_optuna_schema(address: DatabaseUrl, rdb: RDBStorage) -> None:
    found, known = rdb.get_current_version(), rdb.get_head_version()
    if found == known:
        return
    older = found in rdb.get_all_versions()
    remedy = (
        f"Upgrade the database with: optuna storage upgrade --storage {address.shown}"
        if older
        else "Upgrade Optuna with: pip install --upgrade optuna"
    )
    raise StorageError(
        f"{address} has the schema of {'an older' if older else 'a newer'} Optuna ({found});"
        f" the installed Optuna {optuna.__version__} needs {known}. {remedy}"
    )


def _guarded(address: DatabaseUrl, action: Callable[[], T]) -> T:
    try:
        return action()
    except (SQLAlchemyError, StorageInternalError, sqlite3.Error, OSError) as error:
        reason = address.redact(_reason(error))
    # Raised outside the handler: a chained exception would print the driver's own words.
    raise StorageError(f"The study database {address} failed: {reason}. {_remedy(address)}")


def _reason(error: BaseException) -> str:
    """Find what the driver said, in one line."""
    if isinstance(error, StorageInternalError) and error.__cause__ is not None:
        error = error.__cause__
    if isinstance(error, DBAPIError) and error.orig is not None:
        error = error.orig
    text = " ".join(str(error).split()) or type(error).__name__
    return text.rstrip(".")


def _remedy(address: DatabaseUrl) -> str:
    if address.file is None:
        return "Check that the server runs, and the user, host and database in the URL."
    return f"Check that `{address.file}` is an SQLite database that can be read and written."
