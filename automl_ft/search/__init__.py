"""The engine: ask, run, tell; samplers, pruning, budgets, ranking.

`automl_ft.search` is this package and, as `automl_ft.search(config)`, also the function that
searches: importing the package would hide a function of its name, so the package is callable.
"""

from __future__ import annotations

import sys
import types
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping

    from automl_ft.config.study import StudyConfig
    from automl_ft.search.events import SearchListener
    from automl_ft.search.run import SearchOutcome


class _CallablePackage(types.ModuleType):
    """A package that can be called like `search.run.run_search`."""

    def __call__(
        self,
        config: StudyConfig,
        *,
        origins: Mapping[str, str] | None = None,
        listener: SearchListener | None = None,
    ) -> SearchOutcome:
        """Create or resume a study and search until a budget or the user ends it.

        Silent unless a `listener` is given. The first SIGINT or SIGTERM pauses the running trials
        and ends the search; the second raises KeyboardInterrupt at once. A rerun goes on.

        Args:
            config: What is asked for; without a name it gets one of its model and data.
            origins: Where each setting came from, to be stored; None says that a program did.
            listener: Told of everything that happens (see `search.events`).

        Returns:
            How it ended.

        Raises:
            UsageError: Anything is wrong with the input; then nothing was created.
            SearchFailedError: The search could not go on.
            KeyboardInterrupt: The user interrupted twice.
        """
        from automl_ft.search.run import run_search

        return run_search(config, origins=origins, listener=listener)


sys.modules[__name__].__class__ = _CallablePackage
