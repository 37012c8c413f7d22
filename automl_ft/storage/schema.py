"""Under which keys a study and its trials lie in Optuna's attributes, and in which version.

Everything else that a study has (state, parameters, values, curve) lies where Optuna puts it, and
what Optuna's tables cannot hold lies in our own (`storage.tables`).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from automl_ft.errors import StorageError

__all__ = [
    "METRIC_PREFIXES",
    "SCHEMA_VERSION",
    "check_schema_version",
    "is_foreign",
    "json_safe",
    "number_of",
]

SCHEMA_VERSION = 1
"""Version of the keys below and of our own tables. It rises when an older automl-ft could no longer
read a study rightly."""

STUDY_SCHEMA_VERSION = "automl_ft:schema_version"
"""Study: the `SCHEMA_VERSION` it was written with; a study without it is not ours."""
STUDY_VERSION = "automl_ft:version"
"""Study: the version of automl-ft that last wrote its record."""
STUDY_CREATED_AT = "automl_ft:created_at"
"""Study: when it was created, ISO 8601 with offset."""
STUDY_CONFIG = "automl_ft:config"
"""Study: the `StudyConfig`, its `storage` always null."""
STUDY_FACTS = "automl_ft:facts"
"""Study: the `StudyFacts`."""
STUDY_SPACE = "automl_ft:space"
"""Study: the search space that it was last searched with."""
STUDY_STORED_SPACE = "automl_ft:stored_space"
"""Study: the union of all spaces that it was searched with."""
STUDY_OBJECTIVE = "automl_ft:objective"
"""Study: the metric that it maximises."""
STUDY_ORIGINS = "automl_ft:origins"
"""Study: by setting, whether it came from a default, a file or an option."""

METRIC_NAMES = "study:metric_names"
"""Study, system: Optuna's own key for the names of the objectives."""
FIXED_PARAMS = "fixed_params"
"""Trial, system: Optuna's own key for what `Study.enqueue_trial` fixes."""
PRUNED_AT = "automl_ft:pruned_at"
"""Trial, system: step at which the pruner gave it up."""

HYPERPARAMETERS = "hyperparameters"
"""Trial: every hyperparameter, sampled or default."""
SEED = "seed"
"""Trial: seed of everything random in it."""
ORIGIN = "origin"
"""Trial: `default` (the recipe), `sampler`, or `user` (put in line)."""
RERUN_OF = "rerun_of"
"""Trial: number of the trial whose configuration it repeats."""
BEST_STEP = "best_step"
"""Trial: step of the best validated checkpoint."""
SECONDS = "seconds"
"""Trial: seconds of training and validation, over all its runs."""
SECONDS_VALIDATING = "seconds_validating"
"""Trial: those in which validation rows were scored; may be missing."""
EXAMPLES = "examples"
"""Trial: training examples seen, over all its runs."""
PEAK_MEMORY_MIB = "peak_memory_mib"
"""Trial: peak memory in MiB."""
FORECAST_MIB = "forecast_mib"
"""Trial: what that peak was forecast to be; may be missing."""
MEMORY = "memory"
"""Trial: the `TrialMemory`, how it was made to fit; may be missing."""
FAILURE_KIND = "failure_kind"
"""Trial: a `FailureKind`."""
FAILURE_MESSAGE = "failure_message"
"""Trial: one line that says why it failed."""
FAILURE_TRACEBACK = "failure_traceback"
"""Trial: the end of the traceback; may be missing."""
METRIC_PREFIXES = ("train_", "validation_", "test_")
"""Trial: every numeric attribute that starts with one of these is a metric at its best
checkpoint, for instance `validation_f1_macro`."""


def is_foreign(attrs: Mapping[str, Any]) -> bool:
    """Tell whether a study was made by plain Optuna, not by automl-ft.

    Args:
        attrs: The study's user attributes.

    Returns:
        True where the study is not ours.
    """
    return STUDY_SCHEMA_VERSION not in attrs


def check_schema_version(study: str, attrs: Mapping[str, Any]) -> None:
    """Refuse a study that this version cannot read.

    Args:
        study: Its name, for the message.
        attrs: Its user attributes.

    Raises:
        StorageError: The study is not ours, or was written by a newer automl-ft.
    """
    if is_foreign(attrs):
        raise StorageError(
            f"Study `{study}` was not made by automl-ft but by plain Optuna."
            " Open it with `optuna` or Optuna Dashboard, or choose another study or database."
        )
    version = attrs[STUDY_SCHEMA_VERSION]
    if not isinstance(version, int) or version > SCHEMA_VERSION:
        raise StorageError(
            f"Study `{study}` has schema version {version}, written by automl-ft"
            f" {attrs.get(STUDY_VERSION, 'of a newer version')}; this one reads up to version"
            f" {SCHEMA_VERSION}. Upgrade with: pip install --upgrade automl-ft"
        )


def json_safe(value: Any) -> Any:
    """Replace NaN and infinities by the words `nan`, `inf` and `-inf`.

    JSON has no such numbers; a browser that shows Optuna Dashboard fails on them.

    Args:
        value: JSON's own types, nested.

    Returns:
        The same with words for numbers that are not finite.
    """
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    if isinstance(value, Mapping):
        return {str(key): json_safe(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [json_safe(item) for item in value]
    return value


def number_of(value: Any) -> float | None:
    """Read a number back, also one that `json_safe` wrote as a word.

    Args:
        value: What lies in the database.

    Returns:
        The number, or None if it is none.
    """
    if isinstance(value, str) and value in ("nan", "inf", "-inf"):
        return float(value)
    if isinstance(value, (int, float)) and not isinstance(value, bool):
        return float(value)
    return None
