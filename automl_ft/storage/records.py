"""What the database holds of a study and its trials, as plain frozen values."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from optuna.distributions import BaseDistribution
from optuna.trial import FrozenTrial, TrialState

from automl_ft.config.study import StudyConfig
from automl_ft.errors import StorageError
from automl_ft.specs.codec import from_plain, to_plain
from automl_ft.specs.facts import StudyFacts
from automl_ft.specs.failure import FailureKind, TrialFailure
from automl_ft.specs.trial import ParamValue, TrialMemory, TrialResult
from automl_ft.storage import schema
from automl_ft.version import __version__

__all__ = [
    "StudyRecord",
    "TrialRecord",
    "new_trial_attrs",
    "result_attrs",
    "study_attrs",
    "study_record",
    "trial_record",
]

_TRACEBACK_CHARACTERS = 8000
"""How much of a traceback's end is kept: MySQL's TEXT takes 64 KiB, of three bytes each."""


@dataclass(frozen=True, kw_only=True, slots=True)
class StudyRecord:
    """A study as it is stored."""

    name: str
    """Its name."""
    config: StudyConfig
    """What the user asked for; `storage` is None, since a URL may hold a password."""
    facts: StudyFacts
    """What preparing it found out."""
    space: Mapping[str, Any]
    """The search space that it was last searched with, as plain JSON."""
    objective: str
    """The metric that it maximises."""
    created_at: datetime
    """When it was created, with its offset."""
    origins: Mapping[str, str] = dataclasses.field(default_factory=dict)
    """By setting, whether it came from a default, a file or an option."""
    stored_space: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    """The union of all spaces that it was searched with; left out, it is `space`."""

    def __post_init__(self) -> None:
        """Take the space for the union where it is the first one."""
        if not self.stored_space:
            object.__setattr__(self, "stored_space", self.space)


@dataclass(frozen=True, kw_only=True, slots=True)
class TrialRecord:
    """A trial as it is stored. What is not known (yet) is None or empty."""

    number: int
    """Its number in the study."""
    state: TrialState
    """Its state."""
    params: Mapping[str, Any]
    """What was sampled."""
    distributions: Mapping[str, BaseDistribution] = dataclasses.field(repr=False)
    """What each parameter was sampled from."""
    hyperparameters: Mapping[str, ParamValue]
    """Every hyperparameter, sampled or default; empty if plain Optuna put the trial in line."""
    value: float | None
    """The objective at its best validated checkpoint."""
    intermediate_values: Mapping[int, float]
    """The objective by step, in their order."""
    metrics: Mapping[str, float]
    """Every metric at its best validated checkpoint."""
    seconds: float | None
    """Seconds of training and validation."""
    examples: int | None
    """Training examples seen."""
    peak_memory_mib: float | None
    """Peak memory in MiB."""
    failure: TrialFailure | None
    """Why it failed."""
    seed: int | None
    """Seed of everything random in it."""
    origin: str | None
    """`default`, `sampler` or `user`."""
    rerun_of: int | None
    """The trial whose configuration it repeats."""
    best_step: int | None
    """Step of the best validated checkpoint."""
    started: datetime | None
    """When it last began to run, with offset."""
    ended: datetime | None
    """When it was finished, with offset."""
    user_attrs: Mapping[str, Any] = dataclasses.field(repr=False)
    """All of Optuna's user attributes."""
    system_attrs: Mapping[str, Any] = dataclasses.field(repr=False)
    """All of Optuna's system attributes."""
    forecast_mib: float | None = None
    """What the peak memory was forecast to be, in MiB."""
    seconds_validating: float | None = None
    """Seconds in which validation rows were scored."""
    memory: TrialMemory | None = None
    """How it was made to fit into memory."""

    @property
    def is_paused(self) -> bool:
        """Whether it waits with a part of its way behind it."""
        has_begun = bool(self.intermediate_values) or self.started is not None
        return self.state is TrialState.WAITING and has_begun

    @property
    def is_finished(self) -> bool:
        """Whether it can no longer change."""
        return self.state.is_finished()

    @property
    def fixed_params(self) -> Mapping[str, Any]:
        """What plain Optuna or its dashboard fixed when it put the trial in line."""
        fixed = self.system_attrs.get(schema.FIXED_PARAMS, {})
        return fixed if isinstance(fixed, Mapping) else {}


def study_attrs(record: StudyRecord) -> dict[str, Any]:
    """Turn a study into Optuna's user attributes.

    Args:
        record: The study.

    Returns:
        JSON values by the keys of `storage.schema`; the storage URL is left out.
    """
    config = dataclasses.replace(record.config, storage=None)
    return {
        schema.STUDY_SCHEMA_VERSION: schema.SCHEMA_VERSION,
        schema.STUDY_VERSION: __version__,
        schema.STUDY_CREATED_AT: record.created_at.isoformat(),
        schema.STUDY_CONFIG: to_plain(config),
        schema.STUDY_FACTS: to_plain(record.facts),
        schema.STUDY_SPACE: to_plain(record.space),
        schema.STUDY_STORED_SPACE: to_plain(record.stored_space),
        schema.STUDY_OBJECTIVE: record.objective,
        schema.STUDY_ORIGINS: to_plain(record.origins),
    }


def study_record(name: str, attrs: Mapping[str, Any]) -> StudyRecord:
    """Read a study from Optuna's user attributes.

    Args:
        name: The study's name.
        attrs: Its user attributes.

    Returns:
        The study.

    Raises:
        StorageError: The study is not ours, of a newer version, or damaged.
    """
    schema.check_schema_version(name, attrs)
    try:
        return StudyRecord(
            name=name,
            config=from_plain(StudyConfig, attrs[schema.STUDY_CONFIG]),
            facts=from_plain(StudyFacts, attrs[schema.STUDY_FACTS]),
            space=attrs[schema.STUDY_SPACE],
            objective=attrs[schema.STUDY_OBJECTIVE],
            created_at=datetime.fromisoformat(attrs[schema.STUDY_CREATED_AT]),
            origins=attrs[schema.STUDY_ORIGINS],
            stored_space=attrs[schema.STUDY_STORED_SPACE],
        )
    except (KeyError, TypeError, ValueError) as error:
        raise StorageError(
            f"The record of study `{name}` cannot be read: {error!r}. Its attributes"
            " `automl_ft:...` were changed; restore the database, or delete the study."
        ) from error


def trial_record(trial: FrozenTrial) -> TrialRecord:
    """Read a trial from Optuna's.

    Args:
        trial: Of a study of ours; need not be a trial of ours.

    Returns:
        The trial.
    """
    attrs = trial.user_attrs
    hyperparameters = attrs.get(schema.HYPERPARAMETERS)
    return TrialRecord(
        number=trial.number,
        state=trial.state,
        params=trial.params,
        distributions=trial.distributions,
        hyperparameters=hyperparameters if isinstance(hyperparameters, dict) else {},
        value=trial.values[0] if trial.values else None,
        intermediate_values=dict(sorted(trial.intermediate_values.items())),
        metrics=_metrics(attrs),
        seconds=schema.number_of(attrs.get(schema.SECONDS)),
        examples=_whole(attrs, schema.EXAMPLES),
        peak_memory_mib=schema.number_of(attrs.get(schema.PEAK_MEMORY_MIB)),
        failure=_failure(attrs),
        seed=_whole(attrs, schema.SEED),
        origin=attrs.get(schema.ORIGIN),
        rerun_of=_whole(attrs, schema.RERUN_OF),
        best_step=_whole(attrs, schema.BEST_STEP),
        started=_with_offset(trial.datetime_start),
        ended=_with_offset(trial.datetime_complete),
        user_attrs=attrs,
        system_attrs=trial.system_attrs,
        forecast_mib=schema.number_of(attrs.get(schema.FORECAST_MIB)),
        seconds_validating=schema.number_of(attrs.get(schema.SECONDS_VALIDATING)),
        memory=_memory(attrs),
    )


def new_trial_attrs(
    hyperparameters: Mapping[str, ParamValue],
    *,
    seed: int,
    origin: str,
    rerun_of: int | None = None,
) -> dict[str, Any]:
    """Build the user attributes that a trial has from its beginning.

    Args:
        hyperparameters: Every hyperparameter, sampled or default.
        seed: Seed of everything random in it.
        origin: `default`, `sampler` or `user`.
        rerun_of: The trial whose configuration it repeats.

    Returns:
        JSON values by key.
    """
    attrs: dict[str, Any] = {
        schema.HYPERPARAMETERS: dict(hyperparameters),
        schema.SEED: seed,
        schema.ORIGIN: origin,
    }
    return attrs if rerun_of is None else {**attrs, schema.RERUN_OF: rerun_of}


def result_attrs(result: TrialResult) -> dict[str, Any]:
    """Build the user attributes that a run of a trial adds.

    Args:
        result: How the run ended.

    Returns:
        Its metrics, costs, best step and failure by key.
    """
    attrs: dict[str, Any] = {
        **result.metrics,
        schema.SECONDS: result.cost.seconds,
        schema.EXAMPLES: result.cost.examples,
        schema.PEAK_MEMORY_MIB: result.cost.peak_memory_mib,
    }
    if result.cost.forecast_mib is not None:
        attrs[schema.FORECAST_MIB] = result.cost.forecast_mib
    if result.cost.seconds_validating is not None:
        attrs[schema.SECONDS_VALIDATING] = result.cost.seconds_validating
    if result.memory is not None:
        attrs[schema.MEMORY] = to_plain(result.memory)
    if result.best_step is not None:
        attrs[schema.BEST_STEP] = result.best_step
    if result.failure is not None:
        attrs[schema.FAILURE_KIND] = result.failure.kind.value
        attrs[schema.FAILURE_MESSAGE] = result.failure.message[:_TRACEBACK_CHARACTERS]
        attrs[schema.FAILURE_TRACEBACK] = result.failure.traceback[-_TRACEBACK_CHARACTERS:]
    return attrs


def _metrics(attrs: Mapping[str, Any]) -> dict[str, float]:
    numbers = {
        key: schema.number_of(value)
        for key, value in attrs.items()
        if key.startswith(schema.METRIC_PREFIXES)
    }
    return {key: number for key, number in numbers.items() if number is not None}


def _failure(attrs: Mapping[str, Any]) -> TrialFailure | None:
    kind = attrs.get(schema.FAILURE_KIND)
    if kind is None:
        return None
    known = str(kind) in set(FailureKind)  # a newer version may know more kinds
    return TrialFailure(
        kind=FailureKind(str(kind)) if known else FailureKind.ERROR,
        message=str(attrs.get(schema.FAILURE_MESSAGE, "")),
        traceback=str(attrs.get(schema.FAILURE_TRACEBACK, "")),
    )


def _memory(attrs: Mapping[str, Any]) -> TrialMemory | None:
    plain = attrs.get(schema.MEMORY)
    try:
        return None if plain is None else from_plain(TrialMemory, plain)
    except (TypeError, ValueError):
        return None  # a user's own attribute of the same name


def _whole(attrs: Mapping[str, Any], key: str) -> int | None:
    value = attrs.get(key)
    return value if isinstance(value, int) and not isinstance(value, bool) else None


def _with_offset(local: datetime | None) -> datetime | None:
    """Optuna gives naive local times."""
    return None if local is None else local.astimezone()
