"""May a study go on with what is asked for now?

Data, models, objective, task and what defines a trial must be the same; budgets, sampler, pruner
and how many trials run at once may change; the search space may grow.
"""

from __future__ import annotations

from typing import Any

from automl_ft.config.load import settings_of
from automl_ft.config.study import StudyConfig
from automl_ft.errors import ConfigError, StudyExistsError
from automl_ft.space.growth import growth_problems
from automl_ft.space.spec import SearchSpace
from automl_ft.specs.facts import StudyFacts
from automl_ft.specs.validation import resolved_validations, stored_setting
from automl_ft.storage.records import StudyRecord

__all__ = ["check_resumable", "differences", "stored_precision"]

_MUST_AGREE = (
    "task",
    "model.checkpoint",
    "data.text",
    "data.label",
    "data.group",
    "data.validation",
    "data.test",
    "data.max_length",
    "data.class_weights",
    "objective",
    "positive_label",
    "seed",
    "training.early_stopping_patience",
    "training.seed",
)
"""Settings that define what a trial's value means. Where data lies may change; what it holds is
compared by its fingerprint, a model's revision by its weights. A smaller micro-batch gives the same
gradients but for rounding and is how a study goes on after running out of memory."""

_SPLITS = ("data.validation", "data.test")
"""Where these are files, what they hold is compared by its fingerprint."""


def differences(record: StudyRecord, config: StudyConfig, facts: StudyFacts) -> list[str]:
    """List what differs between a stored study and what is asked for now.

    Args:
        record: The stored study.
        config: What is asked for.
        facts: What preparing it found out.

    Returns:
        A line for each difference, with both values; empty if the study may go on.
    """
    before, now = settings_of(record.config), settings_of(config)
    lines = []
    for key in _MUST_AGREE:
        old, new = _at(before, key), _at(now, key)
        is_file = key in _SPLITS and isinstance(old, str) and isinstance(new, str)
        if old != new and not is_file:
            lines.append(f"{key}: stored `{_shown(old)}`, now `{_shown(new)}`")
    lines += _precision_differences(record, config) + _batching_differences(record, config)
    lines += _validation_differences(record, config)
    return lines + _data_differences(record.facts, facts) + _model_differences(record.facts, facts)


def check_resumable(
    record: StudyRecord, config: StudyConfig, facts: StudyFacts, space: SearchSpace
) -> None:
    """Refuse to resume a study that differs.

    Args:
        record: The stored study.
        config: What is asked for.
        facts: What preparing it found out.
        space: The search space asked for, resolved.

    Raises:
        StudyExistsError: With the list of what differs.
        ConfigError: The space changed in a way that is no growth.
    """
    lines = differences(record, config, facts)
    if lines:
        listed = "\n".join(f"  {line}" for line in lines)
        raise StudyExistsError(
            f"Study `{record.name}` exists and differs from what is asked for:\n{listed}\n"
            "Give the stored values to go on with it, or another --name for a new study."
        )
    problems = growth_problems(SearchSpace.from_plain(record.stored_space), space)
    if problems:
        raise ConfigError(problems)


def _precision_differences(record: StudyRecord, config: StudyConfig) -> list[str]:
    """Compare what the settings come to; `auto` goes on with what the study has."""
    now, old = config.training.precision, stored_precision(record)
    return [] if now in ("auto", old) else [f"training.precision: stored `{old}`, now `{now}`"]


def _batching_differences(record: StudyRecord, config: StudyConfig) -> list[str]:
    """Compare what the settings come to; `auto` goes on with what the study has.

    Of several models some may not allow what is asked for; such settings must stay as they are.
    """
    now, asked = config.training.batching, record.config.training.batching
    found = {model.batching for model in record.facts.checkpoints}
    if now in ("auto", asked) or found == {now}:
        return []
    old = " and ".join(sorted(found))
    return [f"training.batching: stored `{asked}`, which came to `{old}`, now `{now}`"]


def stored_precision(record: StudyRecord) -> str:
    """Return the precision in which a study's trials compute.

    Args:
        record: The stored study.

    Returns:
        What its setting came to when it was made.
    """
    setting = record.config.training.precision
    return record.facts.precision if setting == "auto" else setting


def _validation_differences(record: StudyRecord, config: StudyConfig) -> list[str]:
    """Compare what the settings come to; `auto` goes on with what the study has."""
    now = config.training.validations_per_epoch
    old = resolved_validations(record.config.training.validations_per_epoch, record.facts)
    if isinstance(now, str) or now == old:
        return []
    return [f"training.validations_per_epoch: stored `{stored_setting(old)}`, now `{now}`"]


def _data_differences(old: StudyFacts, new: StudyFacts) -> list[str]:
    lines = []
    if old.data.labels != new.data.labels:
        lines.append(f"labels: stored `{_shown(old.data.labels)}`, now `{_shown(new.data.labels)}`")
    for split, fingerprint in old.data.split_fingerprints.items():
        if fingerprint != new.data.split_fingerprints.get(split):
            lines.append(
                f"data, {split} split: stored {old.data.num_examples.get(split, 0)} rows with"
                f" fingerprint {fingerprint[:12]}, now {new.data.num_examples.get(split, 0)} rows"
                f" with {new.data.split_fingerprints.get(split, 'none')[:12]}"
            )
    return lines


def _model_differences(old: StudyFacts, new: StudyFacts) -> list[str]:
    lines = []
    current = {facts.checkpoint: facts for facts in new.checkpoints}
    for facts in old.checkpoints:
        other = current.get(facts.checkpoint)
        if other is not None and other.weights_hash != facts.weights_hash:
            lines.append(
                f"weights of {facts.checkpoint}: stored {facts.weights_hash[:12]},"
                f" now {other.weights_hash[:12]}"
            )
        if other is not None and facts.files_hash and other.files_hash != facts.files_hash:
            lines.append(f"config, tokenizer or code of {facts.checkpoint}: changed since")
        if other is not None and other.max_length != facts.max_length:
            lines.append(
                f"max_length of {facts.checkpoint}: stored {facts.max_length},"
                f" now {other.max_length}"
            )
    return lines


def _at(settings: dict[str, Any], dotted: str) -> Any:
    value: Any = settings
    for key in dotted.split("."):
        value = value[key]
    return list(value) if isinstance(value, (tuple, list)) else value


def _shown(value: object) -> str:
    if isinstance(value, (tuple, list)):
        listed = ", ".join(str(item) for item in value[:8])
        return f"{listed}, ... ({len(value)} in all)" if len(value) > 8 else listed
    return "none" if value is None else str(value)
