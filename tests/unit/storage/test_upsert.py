"""Rows are inserted or updated by one statement of each database."""

import pytest
from sqlalchemy import Column, Integer, MetaData, String, Table, UniqueConstraint, create_engine
from sqlalchemy.dialects import mysql, postgresql, sqlite

from automl_ft.storage.upsert import _statement, upsert

TABLE = Table(
    "things",
    MetaData(),
    Column("id", Integer, primary_key=True),
    Column("owner", Integer),
    Column("name", String(9)),
    Column("value", String(9)),
    UniqueConstraint("owner", "name"),
)
CONFLICT = "ON CONFLICT (owner, name) DO UPDATE SET value = excluded.value"
KEYS = ("owner", "name")


@pytest.fixture
def connection():
    engine = create_engine("sqlite://")
    with engine.connect() as connection:
        TABLE.create(connection)
        yield connection
    engine.dispose()


def rows(connection):
    return [tuple(row) for row in connection.execute(TABLE.select().order_by(TABLE.c.id))]


def test_new_rows_are_inserted_and_known_ones_updated(connection):
    upsert(connection, TABLE, KEYS, [{"owner": 1, "name": "a", "value": "old"}])
    upsert(
        connection,
        TABLE,
        KEYS,
        [{"owner": 1, "name": "a", "value": "new"}, {"owner": 2, "name": "a", "value": "x"}],
    )
    assert rows(connection) == [(1, 1, "a", "new"), (2, 2, "a", "x")]


def test_no_rows_are_fine(connection):
    upsert(connection, TABLE, KEYS, [])
    assert rows(connection) == []


@pytest.mark.parametrize(
    ("name", "dialect", "clause"),
    [
        ("sqlite", sqlite, CONFLICT),
        ("postgresql", postgresql, CONFLICT),
        ("mysql", mysql, "ON DUPLICATE KEY UPDATE value = VALUES(value)"),
    ],
)
def test_each_database_gets_its_own_statement(name, dialect, clause):
    statement = str(_statement(name, TABLE, KEYS, ("value",)).compile(dialect=dialect.dialect()))
    assert " ".join(statement.replace("`", "").split()).endswith(clause)
