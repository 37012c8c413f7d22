"""The engine: ask, run, tell; samplers, pruning, budgets, ranking.

`automl_ft.search` is this package and, as `automl_ft.search(config)`, also the function that
searches: importing the package would hide a function of its name, so the package is callable.
"""

from __future__ import annotations

import sys
import types
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from automl_ft.search.run import SearchOutcome


class _CallablePackage(types.ModuleType):
    """A package that can be called like `search.run.run_search`."""

    def __call__(self, *args: Any, **kwargs: Any) -> SearchOutcome:
        from automl_ft.search.run import run_search

        return run_search(*args, **kwargs)


sys.modules[__name__].__class__ = _CallablePackage
