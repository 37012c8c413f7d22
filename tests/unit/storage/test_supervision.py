"""What the locks are called, and who is named as their holder."""

import os
from types import SimpleNamespace

import pytest

from automl_ft.errors import StudyLockedError
from automl_ft.storage.supervision import supervise


class FakeConnection:
    """A connection to a MySQL server on which others hold some locks."""

    def __init__(self, held):
        self.held = held
        self.schema = "mine"
        self.is_closed = False
        self.is_invalid = False

    def scalar(self, statement, values=None):
        text = str(statement)
        if "DATABASE()" in text:
            return self.schema
        name = values["name"]
        assert len(name) <= 64  # MySQL's limit
        if "GET_LOCK" in text:
            return self.held.setdefault(name, id(self)) == id(self)
        assert "IS_USED_LOCK" in text
        return self.held[name]

    def invalidate(self):
        self.is_invalid = True

    def close(self):
        self.is_closed = True


class FakeServer:
    """As much of a `Database` on a MySQL server as a lock needs."""

    def __init__(self):
        self.held = {}
        self.connections = []
        self.address = SimpleNamespace(file=None, backend="mysql")
        self.engine = SimpleNamespace(execution_options=self._options)
        self.schema = "mine"

    def _options(self, isolation_level):
        assert isolation_level == "AUTOCOMMIT"
        return SimpleNamespace(connect=self._connect)

    def _connect(self):
        connection = FakeConnection(self.held)
        connection.schema = self.schema
        self.connections.append(connection)
        return connection

    def guarded(self, action):
        return action()


def take(database, study, folder):
    with supervise(database, study, folder):
        return True


def test_mysql_holder_is_named_by_its_connection(tmp_path):
    server = FakeServer()
    with supervise(server, "demo", tmp_path / "a"):
        with pytest.raises(StudyLockedError, match=r"by connection \d+ of the server"):
            take(server, "demo", tmp_path / "b")
        assert take(server, "other", tmp_path / "c")


def test_mysql_holder_that_just_left_is_another_process(tmp_path):
    server = FakeServer()
    server.held = {}
    with supervise(server, "demo", tmp_path / "a"):
        server.held.update(dict.fromkeys(server.held, 0))
        with pytest.raises(StudyLockedError, match="by another process"):
            take(server, "demo", tmp_path / "b")


def test_mysql_lock_is_of_one_schema(tmp_path):
    server = FakeServer()
    with supervise(server, "demo", tmp_path / "a"):
        server.schema = "another"
        assert take(server, "demo", tmp_path / "b")


def test_connection_that_held_the_lock_is_closed_for_good(tmp_path):
    server = FakeServer()
    with supervise(server, "demo", tmp_path / "a"):
        (connection,) = server.connections
        assert not connection.is_closed
    assert connection.is_invalid
    assert connection.is_closed


def test_locks_lie_beside_folder_and_database(store, tmp_path):
    with store.lock(tmp_path / "out" / "demo"):
        assert (tmp_path / "out" / ".demo.lock").is_file()
        assert (tmp_path / "studies" / ".studies.db.demo.lock").is_file()
        with pytest.raises(StudyLockedError, match=f"process {os.getpid()}"):
            take(store._database, "demo", tmp_path / "other")
    assert not (tmp_path / "out" / "demo").exists()


def test_folder_is_the_same_by_any_of_its_paths(store, studies, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    folder = tmp_path / "demo"
    with store.lock(folder), pytest.raises(StudyLockedError, match="demo"):
        take(FakeServer(), "other", folder.relative_to(tmp_path))
