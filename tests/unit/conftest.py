"""What tests of several layers need: a place to search in without torch."""

import shutil

import pytest

from automl_ft.storage.studies import open_database
from tests.fakes.lab import Lab


@pytest.fixture(scope="session")
def empty_database(tmp_path_factory):
    """A database file without studies: creating its tables takes longer than most tests."""
    file = tmp_path_factory.mktemp("template") / "studies.db"
    open_database(f"sqlite:///{file}", create=True).close()
    return file


@pytest.fixture
def bare_lab(tmp_path):
    """Scripted workers, and a place where nothing is yet."""
    place = Lab(tmp_path)
    yield place
    place.close()


@pytest.fixture
def lab(bare_lab, empty_database):
    """Scripted workers, and a database without studies."""
    bare_lab.database_file.parent.mkdir()
    shutil.copy(empty_database, bare_lab.database_file)
    return bare_lab
