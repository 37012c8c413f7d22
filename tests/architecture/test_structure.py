"""The house keeps its shape: every file is on the map, public names agree, leaves are leaves."""

from __future__ import annotations

import ast
import importlib
import runpy
from pathlib import Path

import pytest

import automl_ft

PACKAGE = Path(automl_ft.__file__).parent
ROOT = PACKAGE.parent
FILES = sorted(PACKAGE.rglob("*.py"))
MODULES = [path for path in FILES if path.name != "__init__.py"]


def module_name(path: Path) -> str:
    return ".".join(path.relative_to(ROOT).with_suffix("").parts)


def test_there_are_files_to_look_at():
    assert len(MODULES) > 80


def test_every_file_has_its_line_in_the_architecture():
    text = (ROOT / "docs" / "ARCHITECTURE.md").read_text(encoding="utf-8")
    missing, folder = [], None
    lines = {}
    for line in text.split("## A line for each file")[1].splitlines():
        words = line.split()
        if len(words) == 1 and words[0].endswith("/"):
            folder = words[0].rstrip("/")
        elif words and words[0].endswith(".py"):
            lines[(folder, words[0])] = line
    for path in MODULES:
        home = "automl_ft" if path.parent == PACKAGE else path.parent.name
        if (home, path.name) not in lines:
            missing.append(f"{home}/{path.name}")
    known = {("automl_ft" if p.parent == PACKAGE else p.parent.name, p.name) for p in FILES}
    assert (missing, sorted(set(lines) - known)) == ([], [])


@pytest.mark.parametrize("path", MODULES, ids=module_name)
def test_all_lists_names_that_exist(path):
    tree = ast.parse(path.read_text(encoding="utf-8"))
    names = [
        node
        for node in tree.body
        if isinstance(node, ast.Assign) and getattr(node.targets[0], "id", None) == "__all__"
    ]
    assert len(names) == 1, "every module says what is public"
    public = ast.literal_eval(names[0].value)
    module = importlib.import_module(module_name(path))
    assert [name for name in public if not hasattr(module, name)] == []
    assert len(public) == len(set(public))


@pytest.mark.parametrize("path", MODULES, ids=module_name)
def test_a_file_that_calls_itself_a_leaf_imports_no_layer_above(path):
    doc = ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or ""
    first = doc.split("\n\n")[0]
    assert first, "every module says what it answers"
    if "A leaf" not in first:
        return
    layer = path.parent.name
    allowed = ("automl_ft.errors", "automl_ft.version", f"automl_ft.{layer}.")
    found = [
        node.module
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("automl_ft")
    ]
    assert [name for name in found if not name.startswith(allowed)] == []


@pytest.mark.parametrize("path", MODULES, ids=module_name)
def test_files_and_functions_stay_small(path):
    text = path.read_text(encoding="utf-8")
    assert len(text.splitlines()) <= 500
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
            body = node.body[1:] if ast.get_docstring(node) else node.body
            length = body[-1].end_lineno - body[0].lineno + 1 if body else 0
            assert length <= 60, f"{node.name} has {length} lines"


def test_public_names_of_the_package_can_be_imported():
    assert [name for name in automl_ft.__all__ if not hasattr(automl_ft, name)] == []
    assert callable(automl_ft.search)
    importlib.import_module("automl_ft.search.engine")
    assert callable(automl_ft.search), "importing the package does not hide the function"
    assert set(automl_ft.__all__) <= set(dir(automl_ft))
    with pytest.raises(AttributeError, match="nonsense"):
        _ = automl_ft.nonsense


def test_the_page_of_study_file_keys_is_up_to_date():
    found = runpy.run_path(str(ROOT / "docs" / "study_file_keys.py"))
    written = (ROOT / "docs" / "study-files.md").read_text(encoding="utf-8")
    assert written == found["page"](), "run `python docs/study_file_keys.py`"
