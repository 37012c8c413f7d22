"""The databases that contract tests run on, each in turn.

PostgreSQL is a throwaway server on a socket of its own. A MySQL or MariaDB server is used where
AUTOML_FT_TEST_MYSQL holds the URL of an empty database.
"""

import os
import pwd
import shutil
import subprocess
import tempfile
from datetime import UTC, datetime
from pathlib import Path

import pytest
from optuna.storages import RDBStorage
from sqlalchemy import text

from automl_ft.config.study import DataConfig, ModelConfig, StudyConfig
from automl_ft.specs.facts import DataFacts, StudyFacts
from automl_ft.storage.database import open_storage
from automl_ft.storage.records import StudyRecord
from automl_ft.storage.studies import open_database

BACKENDS = ["sqlite", pytest.param("postgresql", marks=pytest.mark.postgresql)]
if "AUTOML_FT_TEST_MYSQL" in os.environ:
    BACKENDS.append("mysql")


def postgresql_binaries() -> Path | None:
    """Find initdb and pg_ctl on PATH or where Debian puts them, newest first."""
    on_path = shutil.which("initdb")
    if on_path and shutil.which("pg_ctl"):
        return Path(on_path).resolve().parent
    found = Path("/usr/lib/postgresql").glob("*/bin/initdb")
    return max((path.parent for path in found), default=None)


def unprivileged() -> dict:
    """PostgreSQL refuses to run as root: name a user that it accepts."""
    if os.geteuid() != 0:
        return {}
    for name in ("postgres", "nobody"):
        try:
            entry = pwd.getpwnam(name)
        except KeyError:
            continue
        return {"user": entry.pw_uid, "group": entry.pw_gid, "extra_groups": []}
    pytest.skip("PostgreSQL does not run as root, and there is no other user")


@pytest.fixture(scope="session")
def postgresql_url():
    """URL of a throwaway PostgreSQL server."""
    binaries = postgresql_binaries()
    if binaries is None:
        pytest.skip("no PostgreSQL server binaries (initdb, pg_ctl)")
    account = unprivileged()
    folder = Path(tempfile.mkdtemp(prefix="automl-ft-pg-"))  # short: socket paths are limited
    if account:
        os.chown(folder, account["user"], account["group"])
    data = folder / "data"

    def run(program, *arguments):
        command = [binaries / program, "-D", data, *arguments]
        subprocess.run(
            command, check=True, stdout=subprocess.DEVNULL, timeout=60, cwd=folder, **account
        )

    try:
        run("initdb", "-U", "admin", "-A", "trust", "--no-sync", "-E", "UTF8")
        options = f"-c listen_addresses='' -c fsync=off -k {folder}"
        run("pg_ctl", "-w", "-l", folder / "log", "-o", options, "start")
        yield f"postgresql+psycopg://admin:hunter2@/postgres?host={folder}"
        run("pg_ctl", "-m", "immediate", "stop")
    finally:
        shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture(params=BACKENDS)
def url(request, tmp_path):
    """URL of each database in turn, with no studies in it."""
    if request.param == "sqlite":
        return f"sqlite:///{tmp_path}/studies.db"
    if request.param == "mysql":
        url = os.environ["AUTOML_FT_TEST_MYSQL"]
    else:
        url = request.getfixturevalue("postgresql_url")
    database = open_storage(url, create=True)
    for table in ("automl_ft_runs", "automl_ft_checkpoints"):
        database.write(lambda c, table=table: c.execute(text(f"DELETE FROM {table}")))
    for study in database.rdb.get_all_studies():
        database.rdb.delete_study(study._study_id)
    database.close()
    return url


@pytest.fixture
def record():
    """A study as small as can be."""
    data = DataFacts(
        labels=("bad", "good"),
        num_examples={"train": 3},
        class_counts={},
        fingerprint="f00",
        split_fingerprints={},
    )
    config = StudyConfig(
        name="demo",
        model=ModelConfig(checkpoint="minilm-l6"),
        data=DataConfig(path="docstrings"),
        storage="postgresql://me:hunter2@host/db",
    )
    return StudyRecord(
        name="demo",
        config=config,
        facts=StudyFacts(data=data, checkpoints=(), device="cpu", versions={}),
        space={"epochs": {"low": 1, "high": 4}},
        objective="f1_macro",
        created_at=datetime(2026, 1, 2, tzinfo=UTC),
    )


@pytest.fixture
def studies(url):
    """The open database."""
    database = open_database(url, create=True)
    yield database
    database.close()


@pytest.fixture
def store(studies, record):
    """A study in it."""
    return studies.create(record)


@pytest.fixture
def other(url):
    """The same database as a plain Optuna process sees it, with a cache of its own."""
    storage = RDBStorage(url)
    yield storage
    storage.remove_session()
    storage.engine.dispose()
