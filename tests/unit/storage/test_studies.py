"""Studies that this version cannot read are listed, and left alone."""

import pytest

from automl_ft.errors import StorageError, StudyNotFoundError
from automl_ft.storage import schema


@pytest.fixture
def from_the_future(store, studies):
    """A study that a newer automl-ft has written."""
    store.study.set_user_attr(schema.STUDY_SCHEMA_VERSION, schema.SCHEMA_VERSION + 1)
    return studies


def test_newer_study_is_listed_without_its_config(from_the_future):
    (summary,) = from_the_future.studies()
    assert (summary.name, summary.is_foreign, summary.config) == ("demo", False, None)
    assert summary.objective == "f1_macro"


@pytest.mark.parametrize("action", ["load", "delete"])
def test_newer_study_is_neither_loaded_nor_deleted(from_the_future, action):
    with pytest.raises(StorageError, match="Upgrade with: pip install --upgrade automl-ft"):
        getattr(from_the_future, action)("demo")
    assert len(from_the_future.studies()) == 1


def test_unlike_name_gets_the_list(studies, store):
    with pytest.raises(StudyNotFoundError, match=r"no study `sst2` in `sqlite.*Accepted: demo\."):
        studies.delete("sst2")


def test_repr_is_the_location(studies, url):
    assert repr(studies) == f"StudyDatabase('{url}')"
