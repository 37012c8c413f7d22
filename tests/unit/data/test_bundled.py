from __future__ import annotations

import json
import sys
from collections import Counter
from pathlib import Path

import pytest

from automl_ft.data import bundled
from automl_ft.data.bundled import cache_folder, read_bundled
from automl_ft.data.fingerprint import text_key
from automl_ft.errors import DataError

SENTENCE = "Return the number of {} that were found in the given folder."


@pytest.fixture
def library(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Two libraries of ours instead of the real ones; nothing may import them."""
    for name in ("alphalib", "betalib"):
        folder = tmp_path / "site" / name
        folder.mkdir(parents=True)
        (folder / "__init__.py").write_text("raise RuntimeError('imported')")
        for number in range(10):
            functions = "\n".join(
                f'def f{n}():\n    """{SENTENCE.format(f"{name[0]} things {number} {n}")}"""\n'
                for n in range(3)
            )
            (folder / f"module{number}.py").write_text(functions)
    monkeypatch.syspath_prepend(str(tmp_path / "site"))
    libraries = tuple(
        bundled._Library(package=name, distribution=name, names=(name,))
        for name in ("alphalib", "betalib")
    )
    monkeypatch.setattr(bundled, "_LIBRARIES", libraries)
    return tmp_path / "site"


def rows() -> list[tuple[str, str, str]]:
    return [
        (split, row["text"], row["label"])
        for split, table in read_bundled("docstrings").items()
        for row in table.dataset
    ]


def add(site: Path, docstring: str, name: str = "alphalib", file: str = "extra.py") -> None:
    path = site / name / file
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"class Extra:\n    '''{docstring}'''\n", encoding="utf-8")


def test_rows_are_divided_alike_in_each_library(library: Path) -> None:
    counts = Counter((split, label) for split, _, label in rows())
    for name in ("alphalib", "betalib"):
        assert [counts[split, name] for split in ("train", "validation", "test")] == [18, 6, 6]


def test_libraries_are_read_without_importing_them(library: Path) -> None:
    assert len(rows()) == 60
    assert "alphalib" not in sys.modules


def test_rows_are_the_first_sentences(library: Path) -> None:
    add(library, "Turn every row of a\n    table around. Then more.\n\n    And details.")
    assert "Turn every row of a table around." in {text for _, text, _ in rows()}


def test_abbreviations_do_not_end_a_sentence(library: Path) -> None:
    add(library, "Return what is left, e.g. a list of two items. Then more.")
    assert "Return what is left, e.g. a list of two items." in {text for _, text, _ in rows()}


@pytest.mark.parametrize(
    "docstring",
    ["Five words are not enough.", "word " * 41, "Return what AlphaLib finds in the given folder."],
    ids=["short", "long", "own name"],
)
def test_sentences_that_give_little_or_too_much_away_are_left_out(
    library: Path, docstring: str
) -> None:
    add(library, docstring)
    assert len(rows()) == 60


def test_the_name_of_another_library_is_no_reason_to_leave_a_sentence_out(library: Path) -> None:
    add(library, "Return what betalib finds in the given folder.")
    assert len(rows()) == 61


def test_sentences_that_two_libraries_share_are_left_out(library: Path) -> None:
    add(library, "Return what both of us find in here.")
    add(library, "Return what both of us find  in HERE.", name="betalib")
    assert len(rows()) == 60


@pytest.mark.parametrize(
    "file", ["tests/test_a.py", "_vendor/six.py", "externals/x.py", "conftest.py"]
)
def test_tests_and_code_of_others_are_left_out(library: Path, file: str) -> None:
    add(library, "Return what somebody else finds in here.", file=file)
    assert len(rows()) == 60


def test_files_that_do_not_parse_are_passed_over(library: Path) -> None:
    (library / "alphalib" / "template.py").write_text("def {{ name }}():")
    assert len(rows()) == 60


def test_no_file_dominates_its_library(library: Path) -> None:
    text = "\n".join(f'def g{n}():\n    """{SENTENCE.format(f"many {n}")}"""\n' for n in range(50))
    (library / "alphalib" / "huge.py").write_text(text)
    assert sum("many" in text for _, text, _ in rows()) == bundled._PER_FILE


def test_no_library_gives_more_than_its_share(
    library: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bundled, "_PER_LIBRARY", 10)
    assert Counter(label for _, _, label in rows()) == {"alphalib": 10, "betalib": 10}


def test_rows_come_from_the_cache_the_second_time(library: Path) -> None:
    first = rows()
    add(library, "Return something new that was not here before.")
    assert rows() == first


def test_rebuilding_gives_the_same_rows(library: Path, cache_folder: Path) -> None:
    first = rows()
    [path] = cache_folder.iterdir()
    path.unlink()
    assert rows() == first


def test_another_version_of_a_library_is_read_anew(
    library: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bundled.metadata, "version", lambda name: "1.0")
    rows()
    add(library, "Return something new that was not here before.")
    monkeypatch.setattr(bundled.metadata, "version", lambda name: "2.0")
    assert len(rows()) == 61


def test_a_torn_cache_is_built_anew(library: Path, cache_folder: Path) -> None:
    first = rows()
    [path] = cache_folder.iterdir()
    path.write_text(path.read_text()[:100])
    assert rows() == first


def test_a_cache_that_cannot_be_written_is_no_error(
    library: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("in the way")
    monkeypatch.setenv("AUTOML_FT_CACHE", str(tmp_path / "file" / "cache"))
    assert len(rows()) == 60


def test_too_few_libraries_are_refused(library: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bundled, "_LIBRARIES", bundled._LIBRARIES[:1])
    with pytest.raises(DataError, match=r"`docstrings` cannot be built.*alphalib"):
        rows()


def test_libraries_that_are_not_installed_are_left_out(
    library: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    missing = bundled._Library(package="nosuchlib", distribution="nosuchlib", names=())
    monkeypatch.setattr(bundled, "_LIBRARIES", (*bundled._LIBRARIES, missing))
    assert len(rows()) == 60


def test_cache_folder_follows_the_environment(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.delenv("AUTOML_FT_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert cache_folder() == tmp_path / "automl-ft"
    monkeypatch.delenv("XDG_CACHE_HOME")
    assert cache_folder() == Path.home() / ".cache" / "automl-ft"


def test_the_real_data_set_is_balanced_and_its_texts_are_distinct(cache_folder: Path) -> None:
    found = rows()
    assert set(Counter(label for _, _, label in found).values()) == {90}
    assert len({label for _, _, label in found}) == 10
    assert len({text_key((text,)) for _, text, _ in found}) == len(found)
    assert Counter(split for split, _, _ in found) == {"train": 540, "validation": 180, "test": 180}
    [path] = cache_folder.iterdir()
    assert len(json.loads(path.read_text(encoding="utf-8"))) == 900
