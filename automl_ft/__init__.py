"""Hyperparameter search for fine-tuning pretrained models.

Names are imported when they are first used: `import automl_ft` costs nothing.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from automl_ft.version import __version__

if TYPE_CHECKING:
    from automl_ft.api import Study, list_studies, load_study, search
    from automl_ft.config.load import load_config
    from automl_ft.config.study import (
        BudgetConfig,
        DataConfig,
        ModelConfig,
        StudyConfig,
        TrainingConfig,
    )
    from automl_ft.errors import AutomlFtError, UsageError
    from automl_ft.search.events import SearchListener, StopReason

__all__ = [
    "AutomlFtError",
    "BudgetConfig",
    "DataConfig",
    "ModelConfig",
    "SearchListener",
    "StopReason",
    "Study",
    "StudyConfig",
    "TrainingConfig",
    "UsageError",
    "__version__",
    "list_studies",
    "load_config",
    "load_study",
    "search",
]

_HOMES = {
    "AutomlFtError": "automl_ft.errors",
    "BudgetConfig": "automl_ft.config.study",
    "DataConfig": "automl_ft.config.study",
    "ModelConfig": "automl_ft.config.study",
    "SearchListener": "automl_ft.search.events",
    "StopReason": "automl_ft.search.events",
    "Study": "automl_ft.api",
    "StudyConfig": "automl_ft.config.study",
    "TrainingConfig": "automl_ft.config.study",
    "UsageError": "automl_ft.errors",
    "list_studies": "automl_ft.api",
    "load_config": "automl_ft.config.load",
    "load_study": "automl_ft.api",
}


def __getattr__(name: str) -> Any:
    """Import a public name when it is first used."""
    if name == "search":
        return importlib.import_module("automl_ft.search")  # a package that is called
    if name in _HOMES:
        value = getattr(importlib.import_module(_HOMES[name]), name)
        globals()[name] = value
        return value
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
