"""A study to be stored, and a database file to store it in."""

from datetime import UTC, datetime

import pytest

from automl_ft.config.study import BudgetConfig, DataConfig, ModelConfig, StudyConfig
from automl_ft.specs.facts import CheckpointFacts, DataFacts, DataNote, StudyFacts
from automl_ft.storage.records import StudyRecord
from automl_ft.storage.studies import open_database

SECRET = "hunter2{}%/"


@pytest.fixture
def record():
    """A study with something in every field, and a password in its storage URL."""
    config = StudyConfig(
        name="demo",
        model=ModelConfig(checkpoint="minilm-l6", revision="abc"),
        data=DataConfig(path=("a.csv", "b.csv"), text=("one", "two"), validation="dev", test=None),
        space={"learning_rate": {"low": 1e-5}},
        budget=BudgetConfig(trials=3, timeout_seconds=60.5),
        storage=f"postgresql://me:{SECRET}@host/db",
    )
    data = DataFacts(
        labels=("bad", "good"),
        num_examples={"train": 3, "validation": 2, "test": 0},
        class_counts={"train": {"bad": 1, "good": 2}},
        fingerprint="f00",
        split_fingerprints={"train": "ba5"},
        notes=(DataNote(kind="empty_text", message="1 row is empty.", count=1),),
    )
    checkpoint = CheckpointFacts(
        checkpoint="minilm-l6",
        revision="",
        weights_hash="abc",
        architecture="bert",
        num_layers=6,
        num_parameters=10,
        max_length=64,
        num_truncated=0,
        num_tokens=99,
    )
    return StudyRecord(
        name="demo",
        config=config,
        facts=StudyFacts(
            data=data, checkpoints=(checkpoint,), device="cpu", versions={"torch": "2.4"}
        ),
        space={"learning_rate": {"low": 1e-5, "choices": [1, "a", None]}},
        objective="f1_macro",
        created_at=datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC),
        origins={"model": "option", "seed": "default"},
    )


@pytest.fixture
def url(tmp_path, monkeypatch):
    """Where the database will be; nothing is there yet."""
    monkeypatch.delenv("AUTOML_FT_STORAGE", raising=False)
    return f"sqlite:///{tmp_path}/studies/studies.db"


@pytest.fixture
def studies(url):
    """An open, empty database."""
    database = open_database(url, create=True)
    yield database
    database.close()


@pytest.fixture
def store(studies, record):
    """A study in it."""
    return studies.create(record)
