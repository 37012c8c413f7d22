"""The database is opened as it should be, or one clear message says why not."""

import os
import sqlite3
import threading

import optuna
import pytest
from optuna.exceptions import StorageInternalError
from optuna.storages import RDBStorage
from sqlalchemy import text
from sqlalchemy.exc import OperationalError

from automl_ft.errors import StorageError
from automl_ft.storage.database import open_storage


@pytest.fixture
def database(url):
    database = open_storage(url, create=True)
    yield database
    database.close()


def file_of(url):
    return url.removeprefix("sqlite:///")


def write_file(url, data):
    os.makedirs(os.path.dirname(file_of(url)))
    with open(file_of(url), "wb") as file:
        file.write(data)


def plain_sqlite(url, *statements):
    os.makedirs(os.path.dirname(file_of(url)), exist_ok=True)
    connection = sqlite3.connect(file_of(url))
    for statement in statements:
        connection.execute(statement)
    connection.commit()
    connection.close()


def stamp(url, version):
    plain_sqlite(url, f"UPDATE alembic_version SET version_num = '{version}'")


def pragma(connection, name):
    return connection.scalar(text(f"PRAGMA {name}"))


def test_every_connection_flushes_no_commit_and_waits_for_others(database):
    seen = []

    def look(connection):
        names = ("journal_mode", "synchronous", "busy_timeout", "foreign_keys")
        seen.append([pragma(connection, name) for name in names])

    database.read(look)  # a connection that Optuna's constructor left in the pool
    with database.engine.connect(), database.engine.connect() as fresh:
        look(fresh)
    assert seen == [["wal", 1, 30000, 1]] * 2


def test_new_database_has_optuna_s_tables_and_ours(database):
    names = database.read(
        lambda c: set(c.scalars(text("SELECT name FROM sqlite_master WHERE type = 'table'")))
    )
    assert {"studies", "trials", "automl_ft_runs", "automl_ft_checkpoints"} <= names


def test_opening_twice_keeps_what_is_there(url, database):
    study = optuna.create_study(storage=database.rdb, study_name="mine")
    study.add_trial(optuna.create_trial(value=1.0))
    again = open_storage(url, create=True)
    assert optuna.load_study(storage=again.rdb, study_name="mine").best_value == 1.0
    again.close()


def test_several_processes_may_create_it_at_once(url):
    problems = []

    def create():
        try:
            open_storage(url, create=True).close()
        except Exception as error:
            problems.append(error)

    threads = [threading.Thread(target=create) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert problems == []


def test_missing_file_is_not_created(url, tmp_path):
    with pytest.raises(StorageError, match=r"no studies in `sqlite:.*there is no file"):
        open_storage(url, create=False)
    assert list(tmp_path.iterdir()) == []


def test_message_says_that_the_url_came_from_the_environment(url, monkeypatch):
    monkeypatch.setenv("AUTOML_FT_STORAGE", url)
    with pytest.raises(StorageError, match=r"\(from AUTOML_FT_STORAGE\).*--storage"):
        open_storage(None, create=False)


def test_database_of_something_else_is_left_as_it_is(url):
    plain_sqlite(url, "CREATE TABLE songs (id INTEGER)")
    with open(file_of(url), "rb") as file:
        before = file.read()
    with pytest.raises(StorageError, match="holds no studies"):
        open_storage(url, create=False)
    with open(file_of(url), "rb") as file:
        assert file.read() == before


@pytest.mark.parametrize("create", [True, False])
def test_file_that_is_no_database_is_refused(url, create):
    write_file(url, b"once upon a time\n" * 100)
    with pytest.raises(StorageError, match=r"file is not a database.*is an SQLite database"):
        open_storage(url, create=create)


def test_folder_in_place_of_the_file_is_refused(url):
    os.makedirs(file_of(url))
    with pytest.raises(StorageError, match="unable to open database file"):
        open_storage(url, create=True)


def test_folder_that_cannot_be_created_is_refused(tmp_path):
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(StorageError, match=f"{tmp_path}/file"):
        open_storage(f"sqlite:///{tmp_path}/file/studies.db", create=True)


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_read_only_folder_is_refused(tmp_path):
    tmp_path.chmod(0o500)
    try:
        with pytest.raises(StorageError, match="ermission denied"):
            open_storage(f"sqlite:///{tmp_path}/studies.db", create=True)
    finally:
        tmp_path.chmod(0o700)


@pytest.mark.parametrize(
    ("version", "message"),
    [
        ("v99.0.0.a", r"a newer Optuna \(v99.0.0.a\).*pip install --upgrade optuna"),
        ("v3.0.0.d", r"an older Optuna \(v3.0.0.d\).*optuna storage upgrade --storage sqlite"),
    ],
)
def test_schema_of_another_optuna_is_refused_with_the_remedy(url, version, message):
    open_storage(url, create=True).close()
    stamp(url, version)
    with pytest.raises(StorageError, match=message):
        open_storage(url, create=False)


def test_plain_optuna_s_database_can_be_opened(url):
    os.makedirs(os.path.dirname(file_of(url)))
    storage = RDBStorage(url)
    optuna.create_study(storage=storage, study_name="mine")
    storage.engine.dispose()
    database = open_storage(url, create=False)
    assert [study.study_name for study in database.rdb.get_all_studies()] == ["mine"]
    database.close()


def test_unreachable_server_is_named_without_its_password():
    with pytest.raises(StorageError, match="Check that the server runs") as caught:
        open_storage("postgresql://me:hunter2@127.0.0.1:9/db?connect_timeout=2", create=True)
    assert "me:***@127.0.0.1:9/db" in str(caught.value)
    assert "hunter2" not in str(caught.value)
    assert caught.value.__context__ is None


def test_driver_s_own_words_lose_the_password_and_the_chain(database):
    address = type(database.address)(
        database.address.url.set(drivername="postgresql", password="hunter2", host="h"), "shown"
    )
    leaky = type(database)(address, database.rdb)

    def fail():
        raise OperationalError("SELECT 1", {}, Exception("no entry\nfor hunter2."))

    with pytest.raises(StorageError, match=r"failed: no entry for \*\*\*\. Check") as caught:
        leaky.guarded(fail)
    assert (caught.value.__cause__, caught.value.__context__) == (None, None)


def test_optuna_s_storage_error_tells_what_the_driver_said(database):
    def fail():
        try:
            raise OperationalError("SELECT 1", {}, Exception("disk is full"))
        except OperationalError as error:
            raise StorageInternalError("An exception is raised during the commit.") from error

    with pytest.raises(StorageError, match="failed: disk is full"):
        database.guarded(fail)


def test_failure_without_words_tells_its_kind(database):
    def fail():
        raise TimeoutError

    with pytest.raises(StorageError, match="failed: TimeoutError"):
        database.guarded(fail)


def test_failed_write_leaves_nothing(database):
    def write(connection):
        connection.execute(text("INSERT INTO studies (study_name) VALUES ('half')"))
        raise KeyError("stop")

    with pytest.raises(KeyError, match="stop"):
        database.write(write)
    assert database.rdb.get_all_studies() == []


def test_file_system_without_wal_is_told_but_used(url, monkeypatch, caplog):
    class NoWal(sqlite3.Connection):
        def execute(self, statement, *args):
            return super().execute(statement.replace("=WAL", "=DELETE"), *args)

    connect = sqlite3.connect
    monkeypatch.setattr(
        sqlite3, "connect", lambda *args, **kwargs: connect(*args, **{"factory": NoWal, **kwargs})
    )
    open_storage(url, create=True).close()
    assert "cannot use WAL" in caplog.text


def test_repr_holds_no_password(database):
    assert repr(database) == f"Database('{database.address.shown}')"
