import sqlite3

import click
import pytest

from automl_ft.cli.complete import complete_study


@pytest.fixture
def database(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("AUTOML_FT_STORAGE", raising=False)
    (tmp_path / "studies").mkdir()
    path = tmp_path / "studies" / "studies.db"
    connection = sqlite3.connect(path)
    connection.execute("CREATE TABLE studies (study_name TEXT)")
    connection.executemany("INSERT INTO studies VALUES (?)", [("demo",), ("other",)])
    connection.commit()
    connection.close()
    return path


def offered(incomplete="", **params):
    context = click.Context(click.Command("show"))
    context.params.update(params)
    return complete_study(context, click.Argument(["study"]), incomplete)


def test_studies_of_the_default_database_are_offered(database):
    assert offered() == ["demo", "other"]
    assert offered("d") == ["demo"]


def test_the_database_of_the_option_or_the_environment_counts(database, monkeypatch, tmp_path):
    monkeypatch.chdir("/")
    assert offered(storage=f"sqlite:///{database}") == ["demo", "other"]
    monkeypatch.setenv("AUTOML_FT_STORAGE", f"sqlite:///{database}")
    assert offered() == ["demo", "other"]


@pytest.mark.parametrize("url", ["postgresql://host/db", "sqlite:///missing.db", "nonsense"])
def test_what_cannot_be_read_at_once_offers_nothing(database, url):
    assert offered(storage=url) == []


def test_a_file_that_is_no_database_offers_nothing(tmp_path):
    path = tmp_path / "x.db"
    path.write_text("no database at all, but long enough to be read as one")
    assert offered(storage=f"sqlite:///{path}") == []
