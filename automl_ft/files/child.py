"""How is a child process of ours started? A leaf, and the program that such a process runs first.

`python -m` would import whatever bears a module's name in the working directory, such as a
`json.py` or a folder `datasets` beside the user's data, and would not find an automl-ft that runs
from a checkout. So a child starts here, in a file: it takes exactly the package that runs in its
parent and puts nothing on the path, where it could hide the standard library.
"""

from __future__ import annotations

import importlib.util
import os
import runpy
import sys
from pathlib import Path

__all__ = ["child_command", "child_environment"]

_PACKAGE = "automl_ft"


def child_command(module: str) -> list[str]:
    """Return the command that runs a module of ours in a process of its own.

    Args:
        module: Its full name; run as `__main__`.

    Returns:
        The command without arguments; they may follow.
    """
    # -P: neither this file's folder nor the working directory is searched for modules.
    return [sys.executable, "-P", str(Path(__file__).resolve()), module]


def child_environment() -> dict[str, str]:
    """Return the environment of a child process.

    Returns:
        That of this process, in UTF-8 mode: what is piped reads the same on every system.
    """
    return {**os.environ, "PYTHONUTF8": "1"}


def _take_package() -> None:
    """Import the automl-ft that this file belongs to, installed or not."""
    folder = Path(__file__).resolve().parent.parent
    spec = importlib.util.spec_from_file_location(
        _PACKAGE, folder / "__init__.py", submodule_search_locations=[str(folder)]
    )
    assert spec is not None
    assert spec.loader is not None
    package = importlib.util.module_from_spec(spec)
    sys.modules[_PACKAGE] = package
    spec.loader.exec_module(package)


if __name__ == "__main__":
    _take_package()
    # `run_module` puts the module's file in the place of our own name, as `python -m` does.
    runpy.run_module(sys.argv.pop(1), run_name="__main__", alter_sys=True)
