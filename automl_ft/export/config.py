"""How does one trial become a study file that repeats it exactly?

The file is a one-point space: every hyperparameter is fixed, and `training.seed` is the trial's
own seed. It is checked with the study file's own loader before anybody gets it.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import yaml

from automl_ft.config.load import load_config, settings_of
from automl_ft.config.study import StudyConfig
from automl_ft.config.yaml_file import parse_yaml
from automl_ft.export.job import ExportJob
from automl_ft.specs.validation import resolved_validations, stored_setting

__all__ = ["absolute_paths", "config_text", "trial_study_name", "write_config"]

_T = TypeVar("_T", bound=float | str | None)

_MAX_NAME = 120
_COPIED = ("task", "model", "data", "objective", "positive_label", "training", "seed", "device")
"""Keys that are taken from the study; storage, output, sampler and budget mean nothing here."""


def absolute_paths(config: StudyConfig) -> StudyConfig:
    """Make the local paths of a config absolute, so that it can be used from anywhere.

    What is no existing file or folder seen from the working directory is a hub id, a bundled
    name or a split's name, and stays as it is.

    Args:
        config: A study's config.

    Returns:
        The same with absolute paths.
    """
    from automl_ft.data.bundled import BUNDLED
    from automl_ft.models.bundled import BUNDLED_MODELS

    data, path = config.data, config.data.path
    paths = (path,) if isinstance(path, str) else path or ()
    absolute = tuple(item if item in BUNDLED else _absolute(item, Path.exists) for item in paths)
    data = dataclasses.replace(
        data,
        path=absolute[0] if isinstance(path, str) else absolute or None,
        train=_absolute(data.train, Path.is_file),
        validation=_absolute(data.validation, Path.is_file),
        test=_absolute(data.test, Path.is_file),
    )
    named = config.model.checkpoint
    checkpoint = named if named in BUNDLED_MODELS else _absolute(named, Path.is_dir)
    model = dataclasses.replace(config.model, checkpoint=checkpoint)
    return dataclasses.replace(config, data=data, model=model)


def trial_study_name(study: str, number: int) -> str:
    """Name the study that repeats one trial.

    Args:
        study: Name of the study.
        number: The trial.

    Returns:
        Such as `demo-trial-7`, cut to what a study's name may be.
    """
    ending = f"-trial-{number}"
    return study[: _MAX_NAME - len(ending)] + ending


def config_text(job: ExportJob) -> str:
    """Write the study file of a trial.

    Args:
        job: The export.

    Returns:
        YAML with a comment on where it comes from.
    """
    body = yaml.dump(_plain(job), Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=4096)
    return "".join(f"# {line}".rstrip() + "\n" for line in _header(job)) + body


def write_config(job: ExportJob, path: Path) -> None:
    """Write the study file of a trial, and check that it can be read back.

    Args:
        job: The export.
        path: The file.

    Raises:
        ConfigError: The loader refuses what was written.
    """
    path.write_text(config_text(job), encoding="utf-8")
    load_config(str(path))


def _plain(job: ExportJob) -> dict[str, Any]:
    """Return the study file's keys in their order, without those that hold nothing."""
    settings = settings_of(job.config)
    plain: dict[str, Any] = {"name": trial_study_name(job.study, job.number)}
    plain.update({key: settings[key] for key in _COPIED})
    plain["model"] |= _pinned_model(job)
    plain["data"]["max_length"] = job.checkpoint.max_length
    plain["training"]["seed"] = job.seed
    plain["training"]["precision"] = job.facts.precision_of(job.checkpoint)
    plain["training"]["batching"] = job.checkpoint.batching
    plain["training"]["validations_per_epoch"] = stored_setting(
        resolved_validations(job.config.training.validations_per_epoch, job.facts)
    )
    point = {name: value for name, value in job.hyperparameters.items() if name != "model"}
    plain |= {"space": point, "pruner": "none", "budget": {"trials": 1}}
    return _without_none(plain)


def _pinned_model(job: ExportJob) -> dict[str, Any]:
    checkpoint = job.checkpoint
    if job.hyperparameters.get("model") is None:
        named = job.config.model.checkpoint
    else:
        named = _absolute(checkpoint.checkpoint, Path.is_dir)
    return {"checkpoint": named, "revision": checkpoint.revision or job.config.model.revision}


def _header(job: ExportJob) -> list[str]:
    data, checkpoint = job.facts.data, job.checkpoint
    versions = ", ".join(f"{name} {version}" for name, version in job.facts.versions.items())
    return [
        "One trial of a study as a study file of its own: a space of a single point.",
        *_repeating(job),
        "",
        f"study:        {_line(job.study)}",
        f"trial:        {job.number}",
        f"value:        {job.config.objective} {job.value!r} on the validation split,",
        "              at its best validated checkpoint; the test split was not read",
        f"data:         {_line(_shown_source(job.config))}, sha256 of all rows {data.fingerprint}",
        f"model:        {_line(checkpoint.checkpoint)}, sha256 of its weights"
        f" {checkpoint.weights_hash}",
        f"trained on:   {_line(job.facts.device)}",
        f"versions:     {_line(versions)}",
        f"exported by:  automl-ft {job.version}",
        "",
    ]


def _repeating(job: ExportJob) -> list[str]:
    """Say how equal a repetition is: sums on a CPU are rounded by how they are shared out."""
    first = "`automl-ft search config.yaml` trains it again, the same on the same machine"
    if job.config.training.threads is not None:
        return [f"{first}."]
    return [first, "with the same number of CPU threads, which the study left to the machine."]


def _shown_source(config: StudyConfig) -> str:
    source = config.data.path or config.data.train or ""
    return source if isinstance(source, str) else ", ".join(source)


def _line(text: str) -> str:
    """Keep what comes from outside on the comment's own line."""
    return " ".join(text.split())


def _without_none(plain: dict[str, Any]) -> dict[str, Any]:
    """Drop what holds nothing, but for `data.test`: without a value there is no test split."""
    return {
        key: _without_none(value) if isinstance(value, dict) else value
        for key, value in plain.items()
        if value is not None or key == "test"
    }


def _absolute(value: _T, is_there: Callable[[Path], bool]) -> _T | str:
    """Make a path absolute if something is there; leave every other value alone."""
    if not isinstance(value, str):
        return value
    path = Path(value).expanduser()
    return str(path.resolve()) if is_there(path) else value


class _Dumper(yaml.SafeDumper):
    """PyYAML's safe dumper, with quotes by the rules of the reader of study files."""


def _represent_text(dumper: yaml.SafeDumper, text: str) -> yaml.ScalarNode:
    # The reader follows YAML 1.2, PyYAML's dumper 1.1: it would leave the text `1e5` unquoted.
    style = None if parse_yaml(text, "") == (text, []) else '"'
    return dumper.represent_scalar("tag:yaml.org,2002:str", text, style=style)


def _represent_sequence(dumper: yaml.SafeDumper, items: tuple[Any, ...]) -> yaml.SequenceNode:
    return dumper.represent_sequence("tag:yaml.org,2002:seq", items, flow_style=True)


_Dumper.add_representer(str, _represent_text)
_Dumper.add_representer(tuple, _represent_sequence)
