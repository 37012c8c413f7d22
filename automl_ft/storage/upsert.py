"""How rows are inserted or, where their key exists, updated: one statement on each database."""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from typing import Any

from sqlalchemy import Connection, Table
from sqlalchemy.dialects import mysql, postgresql, sqlite
from sqlalchemy.sql.dml import Insert

__all__ = ["upsert"]


def upsert(
    connection: Connection, table: Table, keys: Sequence[str], rows: Sequence[Mapping[str, Any]]
) -> None:
    """Insert rows, or update those whose key is there.

    Args:
        connection: Inside a transaction.
        table: The table; needs a unique constraint on `keys`.
        keys: Names of the key columns.
        rows: Values by column, the same columns in each; may be empty.
    """
    if not rows:
        return
    values = tuple(name for name in rows[0] if name not in keys)
    statement = _statement(connection.dialect.name, table, tuple(keys), values)
    connection.execute(statement, [dict(row) for row in rows])


@functools.cache  # building a statement takes longer than running it
def _statement(
    dialect: str, table: Table, keys: tuple[str, ...], values: tuple[str, ...]
) -> Insert:
    if dialect == "mysql":
        on_mysql = mysql.insert(table)
        return on_mysql.on_duplicate_key_update({v: on_mysql.inserted[v] for v in values})
    insert = postgresql.insert(table) if dialect == "postgresql" else sqlite.insert(table)
    return insert.on_conflict_do_update(
        index_elements=list(keys), set_={v: insert.excluded[v] for v in values}
    )
