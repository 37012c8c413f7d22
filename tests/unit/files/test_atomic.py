"""Files appear whole or not at all."""

import json
import os
import stat
from pathlib import Path

import pytest

from automl_ft.files.atomic import (
    atomic_path,
    remove_leftovers,
    write_bytes,
    write_json,
    write_text,
)


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_written_file_replaces_the_old_one_and_leaves_nothing_else(tmp_path):
    target = tmp_path / "a.txt"
    target.write_text("old")
    write_text(target, "new\r\n\u00e9")
    assert target.read_bytes() == "new\r\n\u00e9".encode()
    assert names(tmp_path) == ["a.txt"]


def test_bytes_are_written_as_they_are(tmp_path):
    write_bytes(str(tmp_path / "a.bin"), b"\x00\xff")
    assert (tmp_path / "a.bin").read_bytes() == b"\x00\xff"


def test_json_is_readable_and_ends_with_a_line_end(tmp_path):
    write_json(tmp_path / "a.json", {"label": "\u00e9", "ids": [1, 2]})
    text = (tmp_path / "a.json").read_text(encoding="utf-8")
    assert json.loads(text) == {"label": "\u00e9", "ids": [1, 2]}
    assert text.endswith("}\n")
    assert "\u00e9" in text


def test_failed_block_keeps_the_old_file_and_removes_its_own(tmp_path):
    target = tmp_path / "a.txt"
    target.write_text("old")

    def half_written():
        with atomic_path(target) as temporary:
            temporary.write_text("half")
            raise RuntimeError("disk on fire")

    with pytest.raises(RuntimeError, match="disk on fire"):
        half_written()
    assert target.read_text() == "old"
    assert names(tmp_path) == ["a.txt"]


def test_nothing_is_at_the_path_before_the_block_ends(tmp_path):
    with atomic_path(tmp_path / "a") as temporary:
        temporary.write_text("x")
        assert temporary.parent == tmp_path
        assert not (tmp_path / "a").exists()
    assert (tmp_path / "a").read_text() == "x"


def test_folder_appears_whole(tmp_path):
    with atomic_path(tmp_path / "model") as temporary:
        (temporary / "deep").mkdir(parents=True)
        (temporary / "deep" / "weights").write_text("w")
    assert (tmp_path / "model" / "deep" / "weights").read_text() == "w"
    assert names(tmp_path) == ["model"]


def test_failed_folder_is_removed_with_its_contents(tmp_path):
    def half_written():
        with atomic_path(tmp_path / "model") as temporary:
            temporary.mkdir()
            (temporary / "weights").write_text("w")
            raise RuntimeError("stop")

    with pytest.raises(RuntimeError, match="stop"):
        half_written()
    assert names(tmp_path) == []


def test_folder_does_not_replace_one_with_something_in_it(tmp_path):
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "mine").write_text("keep")

    def replace():
        with atomic_path(tmp_path / "model") as temporary:
            temporary.mkdir()

    with pytest.raises(OSError, match="model"):
        replace()
    assert names(tmp_path / "model") == ["mine"]
    assert names(tmp_path) == ["model"]


def test_block_that_writes_nothing_is_an_error(tmp_path):
    def forget():
        with atomic_path(tmp_path / "a"):
            pass

    with pytest.raises(FileNotFoundError):
        forget()


def test_missing_folder_is_an_error(tmp_path):
    with pytest.raises(FileNotFoundError):
        write_text(tmp_path / "missing" / "a.txt", "x")


def test_file_has_the_rights_that_an_ordinary_one_would_have(tmp_path):
    (tmp_path / "ordinary").write_text("x")
    write_text(tmp_path / "atomic", "x")
    modes = [stat.S_IMODE((tmp_path / name).stat().st_mode) for name in ("ordinary", "atomic")]
    assert modes[0] == modes[1]


def test_file_and_its_folder_are_flushed_before_the_block_is_left(tmp_path, monkeypatch):
    flushed = []

    def fsync(descriptor):
        flushed.append(stat.S_ISDIR(os.fstat(descriptor).st_mode))

    monkeypatch.setattr(os, "fsync", fsync)
    write_text(tmp_path / "a", "x")
    assert flushed == [False, True]


def test_leftovers_of_killed_writers_are_removed_and_nothing_else(tmp_path):
    deep = tmp_path / "trials" / "0"
    deep.mkdir(parents=True)
    (deep / ".model.123.0a1b2c3d.tmp").mkdir()
    (deep / ".model.123.0a1b2c3d.tmp" / "weights").write_text("w")
    (tmp_path / ".a.txt.9.ffffffff.tmp").write_text("half")
    (tmp_path / "mine.tmp").write_text("keep")
    (tmp_path / ".mine.tmp").write_text("keep")
    assert remove_leftovers(tmp_path) == 2
    assert names(tmp_path) == [".mine.tmp", "mine.tmp", "trials"]
    assert names(deep) == []


def test_what_atomic_path_lends_is_known_as_a_leftover(tmp_path):
    manager = atomic_path(tmp_path / "a")
    manager.__enter__().write_text("killed here")
    assert remove_leftovers(tmp_path) == 1
    with pytest.raises(FileNotFoundError):
        manager.__exit__(None, None, None)


def test_no_leftovers_below_a_missing_folder(tmp_path):
    assert remove_leftovers(tmp_path / "missing") == 0
