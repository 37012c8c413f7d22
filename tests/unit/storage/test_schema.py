"""Keys are ours, versions are checked, numbers survive JSON."""

import json
import math

import pytest

from automl_ft.errors import StorageError
from automl_ft.storage import schema


def test_study_without_our_key_is_foreign():
    assert schema.is_foreign({"owner": "me"})
    assert not schema.is_foreign({"automl_ft:schema_version": 1})


def test_foreign_study_is_refused():
    with pytest.raises(StorageError, match="`mine` was not made by automl-ft but by plain Optuna"):
        schema.check_schema_version("mine", {})


def test_present_version_is_read():
    schema.check_schema_version("mine", {"automl_ft:schema_version": schema.SCHEMA_VERSION})


@pytest.mark.parametrize("version", [schema.SCHEMA_VERSION + 1, "two"])
def test_newer_version_is_refused_with_the_remedy(version):
    attrs = {"automl_ft:schema_version": version, "automl_ft:version": "9.9"}
    with pytest.raises(StorageError, match=r"automl-ft 9\.9.*Upgrade.*pip install") as caught:
        schema.check_schema_version("mine", attrs)
    assert f"schema version {version}" in str(caught.value)


def test_keys_are_distinct():
    keys = [
        value for name, value in vars(schema).items() if name.isupper() and isinstance(value, str)
    ]
    assert len(keys) > 15
    assert len(set(keys)) == len(keys)


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf, 0.1, 3, -0.0])
def test_number_survives_json_that_a_browser_reads(value):
    text = json.dumps(schema.json_safe({"a": [value]}), allow_nan=False)
    back = schema.number_of(json.loads(text)["a"][0])
    assert back == value or (math.isnan(back) and math.isnan(value))


@pytest.mark.parametrize("value", [True, "12", None, [1.0]])
def test_what_is_no_number_is_none(value):
    assert schema.number_of(value) is None


def test_other_json_stays_as_it_is():
    value = {"a": [1, "nan", None, True, {"b": []}]}
    assert schema.json_safe(value) == value


def test_keys_become_text():
    assert schema.json_safe({1: (2,)}) == {"1": [2]}
