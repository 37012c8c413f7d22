import io

import pytest
from rich.console import Console

from automl_ft.cli.settings import print_settings
from automl_ft.config.load import load_config


@pytest.fixture
def printed(tmp_path, monkeypatch):
    """Load a study file with options and return what is printed, at some width."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("AUTOML_FT_STORAGE", raising=False)
    (tmp_path / "mine.yaml").write_text(
        "model: m\ndata: {path: [a.csv, b.csv]}\nspace: {dropout: 0.1, epochs: 3}\n"
    )

    def call(width=80, source="mine.yaml", **options):
        target = Console(file=io.StringIO(), width=width, highlight=False, markup=False)
        print_settings(load_config(source, options), target)
        return target.file.getvalue()

    return call


def row(text, key):
    return next(line for line in text.splitlines() if line.startswith(f"{key} ")).split()


def test_lists_and_spaces_of_ones_own_are_written_short(printed):
    text = printed()
    assert row(text, "data.path") == ["data.path", "a.csv,b.csv", "mine.yaml"]
    assert row(text, "space")[1:] == ["2", "hyperparameters:", "dropout,", "epochs", "mine.yaml"]


def test_a_value_that_was_set_to_nothing_is_shown(printed):
    assert row(printed(**{"data.test": None}), "data.test") == ["data.test", "none", "option"]


def test_the_timeout_is_written_as_people_write_it(printed):
    text = printed(**{"budget.timeout": "90m"})
    assert row(text, "budget.timeout") == ["budget.timeout", "1h", "30m", "option"]


def test_the_database_of_the_environment_is_told_without_its_password(printed, monkeypatch):
    monkeypatch.setenv("AUTOML_FT_STORAGE", "postgresql://me:secret@host/db")
    text = printed()
    assert "storage=postgresql://me:***@host/db" in text
    assert "secret" not in text


def test_what_is_not_set_is_named_without_a_value(printed):
    unset = printed(width=1000).splitlines()[-2]
    assert unset.startswith("not set: ")
    assert "budget.timeout " in unset


def test_files_elsewhere_are_named_by_their_name_only(printed, tmp_path, monkeypatch):
    (tmp_path / "sub").mkdir()
    monkeypatch.chdir(tmp_path / "sub")
    text = printed(source=str(tmp_path / "mine.yaml"))
    assert row(text, "data.path")[-1] == "mine.yaml"


def test_files_below_the_working_directory_are_named_by_their_path(printed, tmp_path):
    (tmp_path / "sub").mkdir()
    (tmp_path / "mine.yaml").rename(tmp_path / "sub" / "mine.yaml")
    text = printed(source=str(tmp_path / "sub" / "mine.yaml"))
    assert row(text, "data.path")[-1] == "sub/mine.yaml"


@pytest.mark.parametrize("width", [60, 80, 120])
def test_settings_fit_the_terminal(printed, width):
    assert max(map(len, printed(width).splitlines())) <= width
