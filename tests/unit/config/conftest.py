"""What the tests of the config layer share: study files written in one line."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest

from automl_ft.config.load import LoadedConfig, load_config
from automl_ft.errors import ConfigError


@pytest.fixture
def study_file(tmp_path: Path) -> Callable[..., str]:
    """Write a study file of the given lines; model and data are added unless they are given."""

    def write(text: str = "", *, bare: bool = False) -> str:
        needed = "" if bare else "model: minilm-l6\ndata: docstrings\n"
        (tmp_path / "study.yaml").write_text(needed + text, encoding="utf-8")
        return str(tmp_path / "study.yaml")

    return write


@pytest.fixture
def load(study_file: Callable[..., str]) -> Callable[..., LoadedConfig]:
    """Load a study file of the given lines with the given options."""

    def load_text(
        text: str = "", options: Mapping[str, Any] | None = None, *, bare: bool = False
    ) -> LoadedConfig:
        return load_config(study_file(text, bare=bare), options)

    return load_text


@pytest.fixture
def problems(load: Callable[..., LoadedConfig], tmp_path: Path) -> Callable[..., dict[str, str]]:
    """Return the problems of a study file: messages by key, options as `option KEY`."""

    def find(
        text: str = "", options: Mapping[str, Any] | None = None, *, bare: bool = False
    ) -> dict[str, str]:
        with pytest.raises(ConfigError) as caught:
            load(text, options, bare=bare)
        file = str(tmp_path / "study.yaml")
        found = {}
        for problem in caught.value.problems:
            place = problem.place.replace(f"{file}: ", "").replace("options: ", "option ")
            assert place not in found, "one place, one problem"
            found[place] = problem.message
        return found

    return find
