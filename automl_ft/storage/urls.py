"""Which database a URL means, which driver it needs, and how it is shown without its password."""

from __future__ import annotations

import importlib.util
import os
import re
from dataclasses import dataclass
from pathlib import Path

from sqlalchemy import URL, make_url
from sqlalchemy.exc import ArgumentError, NoSuchModuleError

from automl_ft.errors import StorageError

__all__ = [
    "DEFAULT_URL",
    "ENVIRONMENT_VARIABLE",
    "DatabaseUrl",
    "parse_url",
    "resolve_url",
    "source_of",
]

DEFAULT_URL = "sqlite:///studies/studies.db"
"""The database that is used where none is named: a file below the working directory."""
ENVIRONMENT_VARIABLE = "AUTOML_FT_STORAGE"
"""Environment variable that names the database where neither study file nor option does."""

_ACCEPTED = (
    "Accepted: sqlite:///PATH, postgresql://USER:PASSWORD@HOST/DATABASE or"
    " mysql://USER:PASSWORD@HOST/DATABASE."
)
_DRIVERS = {"postgresql": ("psycopg", "psycopg2"), "mysql": ("pymysql", "mysqldb")}
_MODULES = {"mysqldb": "MySQLdb"}
_ALIASES = {"postgres": "postgresql", "mariadb": "mysql"}
_SECRET_IN_QUERY = re.compile(r"(?i)([?&](?:password|passwd|pwd|sslpassword)=)[^&]*")


@dataclass(frozen=True, slots=True)
class DatabaseUrl:
    """A database that can be opened. Its `repr` and `str` hide the password."""

    url: URL
    """The complete URL with its driver; an SQLite path is absolute."""
    shown: str
    """The URL for messages, as the user wrote it but without its password."""
    source: str = ""
    """Where the URL came from, for messages, where that is not the user's own command."""

    def __repr__(self) -> str:
        return f"DatabaseUrl({self.shown!r})"

    def __str__(self) -> str:
        return f"`{self.shown}`{self.source}"

    @property
    def backend(self) -> str:
        """`sqlite`, `postgresql` or `mysql`."""
        return self.url.get_backend_name()

    @property
    def file(self) -> Path | None:
        """The database file of SQLite; None on a server."""
        return Path(self.url.database or "") if self.backend == "sqlite" else None

    def redact(self, text: str) -> str:
        """Take the password out of a text that a driver wrote.

        Args:
            text: For instance an exception's message.

        Returns:
            The text with `***` wherever the password stood.
        """
        rendered = self.url.render_as_string(hide_password=False)
        text = text.replace(rendered, self.shown)
        for secret in filter(None, _secrets(self.url)):
            text = text.replace(secret, "***")
        return text


def resolve_url(explicit: str | None) -> str:
    """Return the URL of the study database.

    Args:
        explicit: What the option or the study file says; None where they are silent.

    Returns:
        `explicit`, else the value of AUTOML_FT_STORAGE, else `DEFAULT_URL`.
    """
    return explicit or os.environ.get(ENVIRONMENT_VARIABLE) or DEFAULT_URL


def source_of(explicit: str | None) -> str:
    """Say where `resolve_url` took the URL from, in brackets for a message.

    Args:
        explicit: As for `resolve_url`.

    Returns:
        Empty where the URL is the user's own.
    """
    if explicit:
        return ""
    if os.environ.get(ENVIRONMENT_VARIABLE):
        return f" (from {ENVIRONMENT_VARIABLE})"
    return " (the default)"


def parse_url(text: str, source: str = "") -> DatabaseUrl:
    """Turn a URL into a database that can be opened; opens nothing.

    Args:
        text: The URL. `postgresql://` and `mysql://` take an installed driver.
        source: What `source_of` says, for messages.

    Returns:
        The database.

    Raises:
        StorageError: The URL cannot be read, names another kind of database, or needs a driver
            that is not installed.
    """
    shown = _mask(text)
    named = f"`{shown}`{source}"
    url = _parsed(text)
    if url is None:
        raise StorageError(f"{named} is no database URL. {_ACCEPTED}{_file_hint(text)}")
    backend, _, driver = url.drivername.partition("+")
    backend = _ALIASES.get(backend, backend)
    if backend == "sqlite":
        return DatabaseUrl(_sqlite(url, named), shown, source)
    if backend not in _DRIVERS:
        raise StorageError(f"{named} names a database of kind `{backend}`. {_ACCEPTED}")
    driver = driver or _installed_driver(backend)
    url = url.set(drivername=f"{backend}+{driver}")
    if not _can_load(url):
        raise StorageError(
            f"{named} needs the driver `{driver}`, which is not installed or does not fit."
            f" Install it with: pip install automl-ft[{backend}]"
        )
    return DatabaseUrl(url, shown, source)


def _parsed(text: str) -> URL | None:
    try:
        return make_url(text)
    except (ArgumentError, ValueError):
        # No chained exception: SQLAlchemy's may quote the URL with its password.
        return None


def _sqlite(url: URL, named: str) -> URL:
    """Make the path absolute, so that a later change of folder does not change the database."""
    if url.drivername not in ("sqlite", "sqlite+pysqlite"):
        raise StorageError(f"{named} names a driver that cannot be used. {_ACCEPTED}")
    name = url.database or ""
    if name in ("", ":memory:") or name.startswith("file:"):
        raise StorageError(
            f"{named} names no file, and a study in memory would be lost."
            f" Give a path, for example {DEFAULT_URL}."
        )
    return url.set(database=str(Path(name).expanduser().absolute()))


def _installed_driver(backend: str) -> str:
    drivers = _DRIVERS[backend]
    found = (d for d in drivers if importlib.util.find_spec(_MODULES.get(d, d)) is not None)
    return next(found, drivers[0])


def _can_load(url: URL) -> bool:
    try:
        dialect = url.get_dialect()
        dialect.import_dbapi()
    except (ImportError, NoSuchModuleError):
        return False
    return not dialect.is_async


def _secrets(url: URL) -> list[str]:
    """Every form in which the URL's password may turn up, longest first."""
    password = "" if url.password is None else str(url.password)
    rendered = url.set(username="u", host="h", database=None, query={})
    quoted = rendered.render_as_string(hide_password=False).partition("u:")[2].rpartition("@")[0]
    in_query = [
        value
        for key, value in url.query.items()
        if isinstance(value, str) and _SECRET_IN_QUERY.match(f"?{key}=")
    ]
    return sorted({password, quoted, *in_query}, key=len, reverse=True)


def _mask(text: str) -> str:
    """Hide the password of a URL, whether or not it can be parsed."""
    text = _SECRET_IN_QUERY.sub(r"\1***", text)
    scheme, separator, rest = text.partition("://")
    if rest.startswith("/"):  # a path, which may have an @ in it
        return text
    if not separator:
        return f"***@{text.rpartition('@')[2]}" if "@" in text else text
    account, at, address = rest.rpartition("@")
    user, colon, _ = account.partition(":")
    return f"{scheme}://{user}{':***' if colon else ''}{at}{address}"


def _file_hint(text: str) -> str:
    return "" if ":" in text else f" For a file, write sqlite:///{_mask(text)}."
