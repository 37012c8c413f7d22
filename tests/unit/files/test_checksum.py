"""Contents have the checksum that `sha256sum` prints."""

import pytest

from automl_ft.files.checksum import sha256_bytes, sha256_file, sha256_files

ABC = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"  # FIPS 180-2, B.1


def test_bytes_have_the_published_checksum():
    assert sha256_bytes(b"abc") == ABC


def test_file_has_the_checksum_of_its_bytes(tmp_path):
    (tmp_path / "a").write_bytes(b"abc")
    assert sha256_file(tmp_path / "a") == ABC


def test_several_files_do_not_depend_on_their_order(tmp_path):
    for name in "ab":
        (tmp_path / name).write_text(name)
    paths = [tmp_path / "a", tmp_path / "b"]
    assert sha256_files(paths) == sha256_files(paths[::-1])


def test_several_files_do_not_depend_on_their_folder(tmp_path):
    (tmp_path / "deep").mkdir()
    for folder in (tmp_path, tmp_path / "deep"):
        (folder / "a").write_text("x")
    assert sha256_files([tmp_path / "a"]) == sha256_files([tmp_path / "deep" / "a"])


@pytest.mark.parametrize(("name", "text"), [("b", "x"), ("a", "y")])
def test_several_files_depend_on_names_and_contents(tmp_path, name, text):
    (tmp_path / "a").write_text("x")
    before = sha256_files([tmp_path / "a"])
    (tmp_path / name).write_text(text)
    assert sha256_files([tmp_path / name]) != before


def test_missing_file_is_an_error(tmp_path):
    with pytest.raises(FileNotFoundError):
        sha256_file(tmp_path / "a")
