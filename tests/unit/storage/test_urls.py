"""A URL means one database, and its password is never shown."""

import builtins
import importlib.util
from pathlib import Path

import pytest

from automl_ft.errors import StorageError
from automl_ft.storage.urls import DEFAULT_URL, parse_url, resolve_url, source_of


@pytest.fixture(autouse=True)
def _no_variable(monkeypatch):
    monkeypatch.delenv("AUTOML_FT_STORAGE", raising=False)


@pytest.fixture
def without(monkeypatch):
    """Make modules look as if they were not installed."""

    def hide(*modules):
        find, load = importlib.util.find_spec, builtins.__import__

        def find_spec(name, package=None):
            return None if name in modules else find(name, package)

        def load_module(name, *args, **kwargs):
            if name.split(".")[0] in modules:
                raise ModuleNotFoundError(name)
            return load(name, *args, **kwargs)

        monkeypatch.setattr(importlib.util, "find_spec", find_spec)
        monkeypatch.setattr(builtins, "__import__", load_module)

    return hide


def test_default_is_a_file_below_the_working_directory(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert resolve_url(None) == DEFAULT_URL
    assert parse_url(DEFAULT_URL).file == tmp_path / "studies" / "studies.db"
    assert source_of(None) == " (the default)"


def test_environment_variable_comes_before_the_default(monkeypatch):
    monkeypatch.setenv("AUTOML_FT_STORAGE", "sqlite:///mine.db")
    assert resolve_url(None) == "sqlite:///mine.db"
    assert source_of(None) == " (from AUTOML_FT_STORAGE)"


def test_empty_environment_variable_counts_as_none(monkeypatch):
    monkeypatch.setenv("AUTOML_FT_STORAGE", "")
    assert resolve_url(None) == DEFAULT_URL


def test_explicit_url_comes_first(monkeypatch):
    monkeypatch.setenv("AUTOML_FT_STORAGE", "sqlite:///mine.db")
    assert resolve_url("sqlite:///other.db") == "sqlite:///other.db"
    assert source_of("sqlite:///other.db") == ""


def test_file_does_not_move_with_the_working_directory(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    address = parse_url("sqlite:///a.db")
    monkeypatch.chdir("/")
    assert address.file == tmp_path / "a.db"
    assert address.shown == "sqlite:///a.db"


def test_home_folder_is_expanded(monkeypatch):
    monkeypatch.setenv("HOME", "/home/me")
    assert parse_url("sqlite:///~/a.db").file == Path("/home/me/a.db")


@pytest.mark.parametrize("url", ["sqlite://", "sqlite:///:memory:", "sqlite:///file:a.db?uri=true"])
def test_sqlite_without_a_plain_file_is_refused(url):
    with pytest.raises(StorageError, match=r"names no file.*sqlite:///studies/studies.db"):
        parse_url(url)


@pytest.mark.parametrize("scheme", ["postgresql", "postgres", "postgresql+psycopg"])
def test_postgresql_takes_psycopg_3(scheme):
    address = parse_url(f"{scheme}://me@host/db")
    assert address.url.drivername == "postgresql+psycopg"
    assert (address.backend, address.file) == ("postgresql", None)


def test_postgresql_takes_psycopg2_where_only_that_is_installed(monkeypatch):
    monkeypatch.setattr("automl_ft.storage.urls._can_load", lambda url: True)
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: name == "psycopg2" or None)
    assert parse_url("postgresql://h/db").url.drivername == "postgresql+psycopg2"


@pytest.mark.parametrize("scheme", ["mysql", "mariadb", "mysql+pymysql"])
def test_mysql_takes_pymysql(scheme):
    address = parse_url(f"{scheme}://me:pw@host:3306/db?charset=utf8mb4")
    assert address.url.drivername == "mysql+pymysql"
    assert address.backend == "mysql"
    assert address.url.query == {"charset": "utf8mb4"}


@pytest.mark.parametrize(
    ("url", "module", "extra"),
    [
        ("postgresql://me:hunter2@h/db", "psycopg", "postgresql"),
        ("mysql://me:hunter2@h/db", "pymysql", "mysql"),
    ],
)
def test_missing_driver_names_the_extra_to_install(without, url, module, extra):
    without(module)
    with pytest.raises(StorageError, match=rf"pip install automl-ft\[{extra}\]") as caught:
        parse_url(url)
    assert f"`{module}`" in str(caught.value)
    assert "hunter2" not in str(caught.value)


@pytest.mark.parametrize("driver", ["nonsense", "asyncpg"])
def test_driver_that_does_not_fit_is_refused(driver):
    with pytest.raises(StorageError, match=driver):
        parse_url(f"postgresql+{driver}://h/db")


def test_other_sqlite_driver_is_refused():
    with pytest.raises(StorageError, match=r"sqlite\+aiosqlite.*cannot be used"):
        parse_url("sqlite+aiosqlite:///a.db")


def test_other_kind_of_database_is_refused_with_what_is_accepted():
    with pytest.raises(StorageError, match=r"kind `oracle`.*sqlite:///PATH"):
        parse_url("oracle://me:hunter2@h/db")


def test_plain_path_is_refused_with_the_url_to_write():
    with pytest.raises(StorageError, match=r"`my/studies.db`.*sqlite:///my/studies.db"):
        parse_url("my/studies.db")


def test_source_is_part_of_every_message():
    with pytest.raises(StorageError, match=r"`nonsense` \(from AUTOML_FT_STORAGE\)"):
        parse_url("nonsense", " (from AUTOML_FT_STORAGE)")


@pytest.mark.parametrize(
    "url",
    [
        "postgresql://me:hunter2@host/db",
        "postgresql://host/db?user=me&password=hunter2",
        "mysql://host/db?passwd=hunter2&charset=utf8",
    ],
)
def test_password_is_shown_nowhere(url):
    address = parse_url(url)
    for text in (repr(address), str(address), address.shown):
        assert "hunter2" not in text
        assert "host/db" in text


@pytest.mark.parametrize(
    "url",
    [
        "postgresql://me:hunter2@host:port/db",
        "postgresql://me:hunter2/@:x@host:port/db",
        "oracle://me:hunter2@host/db",
        "nonsense//me:hunter2@host/db",
        "sqlite+nonsense://me:hunter2@host/db",
    ],
)
def test_refused_url_shows_no_password_and_chains_nothing(url):
    with pytest.raises(StorageError, match="host") as caught:
        parse_url(url)
    assert "hunter2" not in str(caught.value)
    assert (caught.value.__cause__, caught.value.__context__) == (None, None)


def test_url_without_password_is_shown_as_written():
    assert parse_url("postgresql://me@host/db").shown == "postgresql://me@host/db"
    assert parse_url("sqlite:////data@home:1/a@b.db").shown == "sqlite:////data@home:1/a@b.db"


def test_password_is_taken_out_of_what_a_driver_says():
    address = parse_url("postgresql://me:p%40ss@host/db?sslpassword=other")
    said = "cannot open postgresql+psycopg://me:p%40ss@host/db with p@ss and other"
    redacted = address.redact(said)
    assert "p@ss" not in redacted
    assert "p%40ss" not in redacted
    assert "other" not in redacted
    assert "host/db" in redacted


def test_nothing_is_taken_out_where_there_is_no_password():
    assert parse_url("sqlite:///a.db").redact("disk is full") == "disk is full"
