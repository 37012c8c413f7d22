from __future__ import annotations

import os
import stat
from pathlib import Path

import pytest

from automl_ft.errors import ExportError
from automl_ft.export.target import PARTS, check_target, staged


@pytest.fixture
def study_folder(tmp_path):
    folder = tmp_path / "study"
    folder.mkdir()
    return folder


@pytest.fixture
def earlier(tmp_path):
    folder = tmp_path / "best"
    (folder / "model").mkdir(parents=True)
    (folder / "model" / "old.bin").write_text("old")
    (folder / "config.yaml").write_text("old")
    (folder / "notes.txt").write_text("mine")
    return folder


def test_a_folder_that_is_not_there_is_accepted(tmp_path, study_folder):
    target = check_target(tmp_path / "a" / "b", force=False, keep_out=study_folder)
    assert target == tmp_path / "a" / "b"


def test_an_empty_folder_is_accepted(tmp_path, study_folder):
    (tmp_path / "empty").mkdir()
    assert check_target(tmp_path / "empty", force=False, keep_out=study_folder)


def test_a_folder_with_something_in_it_needs_force(earlier, study_folder):
    with pytest.raises(ExportError, match=r"best` exists and is not empty.*--force"):
        check_target(earlier, force=False, keep_out=study_folder)
    assert check_target(earlier, force=True, keep_out=study_folder) == earlier


def test_a_file_is_refused_even_with_force(tmp_path, study_folder):
    (tmp_path / "file").write_text("x")
    with pytest.raises(ExportError, match="file` is a file"):
        check_target(tmp_path / "file", force=True, keep_out=study_folder)


@pytest.mark.parametrize("where", [".", ".."])
def test_the_working_directory_is_refused_even_with_force(
    tmp_path, study_folder, monkeypatch, where
):
    (tmp_path / "work").mkdir()
    monkeypatch.chdir(tmp_path / "work")
    with pytest.raises(ExportError, match="the working directory or a folder above it"):
        check_target(Path(where), force=True, keep_out=study_folder)


def test_the_studys_folder_is_refused(study_folder):
    with pytest.raises(ExportError, match="the study's folder"):
        check_target(study_folder, force=True, keep_out=study_folder)


def test_what_was_staged_takes_the_place_and_nothing_is_left_over(tmp_path):
    with staged(tmp_path / "new" / "best") as folder:
        (folder / "config.yaml").write_text("new")
        assert not (tmp_path / "new" / "best").exists()
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["best"]
    assert (tmp_path / "new" / "best" / "config.yaml").read_text() == "new"


def test_an_earlier_export_is_replaced_and_foreign_files_are_kept(earlier):
    with staged(earlier) as folder:
        (folder / "config.yaml").write_text("new")
        (folder / "model").mkdir()
    assert (earlier / "config.yaml").read_text() == "new"
    assert (earlier / "notes.txt").read_text() == "mine"
    assert not (earlier / "model" / "old.bin").exists()
    assert [path.name for path in earlier.parent.iterdir()] == ["best"]


def test_a_failure_leaves_the_earlier_export_as_it_was(earlier):
    def interrupted():
        with staged(earlier) as folder:
            (folder / "config.yaml").write_text("new")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert (earlier / "config.yaml").read_text() == "old"
    assert (earlier / "model" / "old.bin").exists()
    assert [path.name for path in earlier.parent.iterdir()] == ["best"]


def test_an_earlier_export_comes_back_when_the_swap_fails(earlier, monkeypatch):
    real = os.rename

    def rename(source, target):
        if ".new-" in str(source):
            raise OSError("no space")
        real(source, target)

    monkeypatch.setattr(os, "rename", rename)
    with pytest.raises(ExportError, match="best` cannot be replaced: no space"), staged(earlier):
        pass
    assert (earlier / "config.yaml").read_text() == "old"


def test_a_parent_that_cannot_be_written_is_an_export_error(tmp_path):
    (tmp_path / "file").write_text("x")
    with (
        pytest.raises(ExportError, match="cannot be written"),
        staged(tmp_path / "file" / "best"),
    ):
        pass


def test_files_get_the_usual_rights(tmp_path):
    old = os.umask(0o022)
    try:
        with staged(tmp_path / "best") as folder:
            (folder / "weights").touch(mode=0o600)
    finally:
        os.umask(old)
    assert stat.S_IMODE((tmp_path / "best").stat().st_mode) == 0o755
    assert stat.S_IMODE((tmp_path / "best" / "weights").stat().st_mode) == 0o644


def test_the_parts_are_those_that_the_documents_promise():
    assert PARTS == ("config.yaml", "model", "train.py", "README.md")
