"""Where a study's files lie, and whose they are."""

import dataclasses
import json
from datetime import UTC, datetime
from pathlib import Path

import pytest

from automl_ft.errors import StudyExistsError, UsageError
from automl_ft.search.folder import StudyFolder, check_creatable, study_folder
from automl_ft.specs.layout import activations_folder
from automl_ft.storage.records import StudyRecord
from tests.fakes.scripted_worker import make_facts

MARK = "2026-01-02T00:00:00+00:00"


@pytest.fixture
def folder(tmp_path):
    return StudyFolder(tmp_path / "studies" / "demo")


def record_of(config):
    return StudyRecord(
        name="demo",
        config=config,
        facts=make_facts(),
        space={},
        objective="f1_macro",
        created_at=datetime(2026, 1, 2, tzinfo=UTC),
    )


def test_paths_lie_below_the_folder(folder):
    assert folder.trial(3) == folder.path / "trials" / "3"
    assert folder.log(0) == folder.path / "logs" / "worker-0.log"


def test_asking_creates_nothing(folder, tmp_path):
    folder.check_free("demo", None)
    folder.trial(1)
    folder.drop_trial(1)
    assert not folder.delete(MARK)
    assert list(tmp_path.iterdir()) == []


def test_claimed_folder_bears_its_mark_and_is_free_for_its_study_only(folder):
    folder.claim("demo", MARK)
    assert json.loads((folder.path / "study.json").read_text())["created_at"] == MARK
    folder.check_free("demo", MARK)
    for mark in (None, "2020-01-01T00:00:00+00:00"):
        with pytest.raises(StudyExistsError, match="belongs to another study"):
            folder.check_free("demo", mark)


def test_claiming_twice_writes_once(folder):
    folder.claim("demo", MARK)
    before = (folder.path / "study.json").stat().st_mtime_ns
    folder.claim("demo", MARK)
    assert (folder.path / "study.json").stat().st_mtime_ns == before


def test_empty_folder_may_be_used(folder):
    folder.path.mkdir(parents=True)
    folder.check_free("demo", None)


def test_folder_with_other_files_is_refused_since_deleting_the_study_would_delete_them(folder):
    folder.path.mkdir(parents=True)
    (folder.path / "thesis.tex").touch()
    with pytest.raises(StudyExistsError, match=r"holds other files.*--output"):
        folder.check_free("demo", None)


def test_folder_of_an_existing_study_that_lost_its_mark_is_taken_again(folder):
    folder.claim("demo", MARK)
    (folder.path / "study.json").write_text("{torn")
    folder.check_free("demo", MARK)
    folder.claim("demo", MARK)
    assert folder.is_of(MARK)


@pytest.mark.parametrize("content", ["", "[]", '{"study": "demo"}', "null"])
def test_damaged_mark_is_none(folder, content):
    folder.path.mkdir(parents=True)
    (folder.path / "study.json").write_text(content)
    assert not folder.is_of(MARK)


def test_folder_with_its_mark_is_deleted_whole(folder):
    folder.claim("demo", MARK)
    folder.trial(1).mkdir(parents=True)
    assert folder.delete(MARK)
    assert not folder.path.exists()


def test_cached_activations_go_with_the_study(folder):
    folder.claim("demo", MARK)
    activations_folder(folder.path).mkdir(parents=True)
    (activations_folder(folder.path) / ".lock").touch()
    assert folder.delete(MARK)
    assert not folder.path.exists()


def test_folder_of_another_study_is_not_deleted(folder):
    folder.claim("other", "2020-01-01T00:00:00+00:00")
    assert not folder.delete(MARK)
    assert folder.path.is_dir()


def test_dropping_a_trial_leaves_the_others(folder):
    for number in (1, 11):
        folder.trial(number).mkdir(parents=True)
        (folder.trial(number) / "last.pt").touch()
    folder.drop_trial(1)
    assert [path.name for path in (folder.path / "trials").iterdir()] == ["11"]


def test_folder_that_can_be_created_is_fine(tmp_path):
    check_creatable(tmp_path / "a" / "b", "It", "--output")
    check_creatable(tmp_path, "It", "--output")


@pytest.mark.parametrize("below", ["", "a/b"])
def test_file_in_the_way_is_named(tmp_path, below):
    (tmp_path / "file").touch()
    with pytest.raises(UsageError, match=rf"It cannot be .*`{tmp_path}/file` is no folder.*--here"):
        check_creatable(tmp_path / "file" / below, "It", "--here")


def test_folder_that_may_not_be_written_is_named(tmp_path, monkeypatch):
    monkeypatch.setattr("automl_ft.search.folder.os.access", lambda path, mode: False)
    with pytest.raises(UsageError, match=rf"`{tmp_path}` may not be written"):
        check_creatable(tmp_path / "a" / "b", "It", "--output")


def test_folder_of_a_study_is_what_was_asked_for_then_what_is_stored_then_the_usual(bare_lab):
    asked = bare_lab.config(output="asked")
    silent = dataclasses.replace(asked, output=None)
    stored = record_of(dataclasses.replace(asked, output="/stored"))
    assert study_folder(asked, stored).path == Path.cwd() / "asked"
    assert study_folder(silent, stored).path == Path("/stored")
    assert study_folder(silent, record_of(silent)).path == Path.cwd() / "studies" / "demo"
    assert study_folder(silent).path == Path.cwd() / "studies" / "demo"
    assert study_folder(asked).path == Path.cwd() / "asked"


def test_home_is_expanded(bare_lab):
    assert study_folder(bare_lab.config(output="~/x")).path == Path.home() / "x"


def test_folder_of_a_project_that_was_moved_as_a_whole_is_found(bare_lab, tmp_path):
    stored = record_of(bare_lab.config(output=str(tmp_path / "old" / "studies" / "demo")))
    moved = StudyFolder(Path.cwd() / "studies" / "demo")
    assert study_folder(stored.config, stored).path != moved.path
    moved.claim("demo", MARK)
    assert study_folder(stored.config, stored).path == moved.path
    other = dataclasses.replace(stored, created_at=datetime(2020, 1, 1, tzinfo=UTC))
    assert study_folder(other.config, other).path != moved.path


def test_deleting_leaves_files_of_somebody_else(folder):
    folder.claim("demo", MARK)
    folder.trial(0).mkdir(parents=True)
    (folder.path / "notes.txt").write_text("mine")
    assert folder.delete(MARK)
    assert [path.name for path in folder.path.iterdir()] == ["notes.txt"]


@pytest.mark.parametrize("output", [".", "studies", "studies/studies.db", "studies/studies.db-wal"])
def test_folder_that_is_or_holds_what_must_outlive_the_study_is_refused(tmp_path, output):
    folder = StudyFolder(tmp_path / output)
    with pytest.raises(UsageError, match="which must outlive the study"):
        folder.check_apart("demo", tmp_path / "studies" / "studies.db")
    StudyFolder(tmp_path / "studies" / "demo").check_apart("demo", tmp_path / "studies/studies.db")


def test_home_and_what_holds_it_are_refused(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    with pytest.raises(UsageError, match="the home folder"):
        StudyFolder(tmp_path / "home").check_apart("demo", None)


def test_copied_project_uses_its_own_folder(bare_lab, tmp_path, monkeypatch):
    config = dataclasses.replace(bare_lab.config(), output=str(tmp_path / "old" / "studies/demo"))
    record = record_of(config)
    mark = record.created_at.isoformat()
    for project in ("old", "copy"):
        StudyFolder(tmp_path / project / "studies" / "demo").claim("demo", mark)
    monkeypatch.chdir(tmp_path / "copy")
    assert study_folder(config, record).path == tmp_path / "copy" / "studies" / "demo"
