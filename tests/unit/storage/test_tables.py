"""Our own tables belong to their study on every database."""

import pytest
from sqlalchemy import select
from sqlalchemy.dialects import mysql, postgresql, sqlite
from sqlalchemy.schema import CreateTable

from automl_ft.storage.tables import METADATA, OPTUNA_TABLES, UtcNow


@pytest.mark.parametrize(
    ("dialect", "clock"),
    [
        (sqlite, "CURRENT_TIMESTAMP"),
        (postgresql, "TIMEZONE('utc', CURRENT_TIMESTAMP)"),
        (mysql, "UTC_TIMESTAMP()"),
    ],
)
def test_clock_is_the_database_s_in_utc(dialect, clock):
    assert clock in str(select(UtcNow()).compile(dialect=dialect.dialect()))


def test_names_are_ours_and_rows_go_with_the_study():
    assert METADATA.tables
    for name, table in METADATA.tables.items():
        assert name.startswith("automl_ft_")
        ddl = str(CreateTable(table).compile(dialect=postgresql.dialect()))
        assert "REFERENCES studies (study_id) ON DELETE CASCADE" in ddl


def test_optuna_has_the_tables_that_are_written_here():
    needed = {
        "studies": {"study_id", "study_name"},
        "study_directions": {"study_id", "direction", "objective"},
        "study_user_attributes": {"study_id", "key", "value_json"},
        "study_system_attributes": {"study_id", "key", "value_json"},
        "trials": {"trial_id", "study_id", "state", "datetime_start", "datetime_complete"},
        "trial_params": {"trial_id", "param_name", "distribution_json"},
        "trial_values": {"trial_id", "objective", "value", "value_type"},
        "trial_intermediate_values": {"trial_id", "step", "intermediate_value"},
        "trial_user_attributes": {"trial_id", "key", "value_json"},
        "trial_system_attributes": {"trial_id", "key", "value_json"},
    }
    for name, columns in needed.items():
        assert columns <= set(OPTUNA_TABLES[name].c.keys())
