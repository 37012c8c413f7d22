"""How does a study file, with options over it, become a `StudyConfig`?

The command line wins over the file, the file over the defaults; where each setting came from is
kept. All problems are reported in one `ConfigError`.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from automl_ft.config.build import build
from automl_ft.config.checks import shown_value
from automl_ft.config.duration import parse_duration
from automl_ft.config.study import StudyConfig
from automl_ft.config.yaml_file import read_yaml
from automl_ft.errors import ConfigError, Problem, did_you_mean
from automl_ft.files.shipped import shipped_file, shipped_names

__all__ = ["LoadedConfig", "default_name", "find_study_file", "load_config", "settings_of"]

_SECTIONS = frozenset({"model", "data", "budget", "training"})
"""Keys that hold keys; one with nothing below it is as good as absent."""
_BOUND = {
    ("model", "checkpoint"): ("revision", "trust_remote_code"),
    ("data", "path"): ("config", "revision"),
}
"""Settings that belong to one model or data set, and go with it."""
_MERGED_KEYS = frozenset({"space"})
"""Mappings that a file gives as a whole; options below them replace single keys."""


@dataclass(frozen=True, kw_only=True, slots=True)
class LoadedConfig:
    """A study's config, and where each setting came from."""

    config: StudyConfig
    """The config, with a name."""
    origins: Mapping[str, str]
    """Origin of each setting by dotted key: `default`, `option` or the file's name."""


def find_study_file(source: str) -> Path:
    """Find a study file: a path, or the name of a shipped one.

    Args:
        source: What the user wrote, such as `studies/demo.yaml` or `demo`.

    Returns:
        The path of an existing file.

    Raises:
        ConfigError: There is no such file.
    """
    path = Path(source)
    if path.is_file():
        return path
    shipped = shipped_file("studies", source) if re.fullmatch(r"[\w-]+", source) else None
    if shipped is not None:
        return shipped
    kind = "is a folder, not a study file" if path.is_dir() else "there is no such study file"
    hint = did_you_mean(source, shipped_names("studies"))
    raise ConfigError(
        [
            Problem(
                place=source,
                message=f"{kind}. Give the path of a YAML file, the name of a shipped study, or"
                f" that of a study in the database. {hint}".rstrip(),
            )
        ]
    )


def load_config(
    source: str | StudyConfig | None, options: Mapping[str, Any] | None = None
) -> LoadedConfig:
    """Load a study file, or take a stored study's settings, and lay options over it.

    Args:
        source: Path of a study file or name of a shipped one; the config of a stored study; None
            where options say it all.
        options: Values by dotted key, such as `{"budget.trials": 5}`.

    Returns:
        The config, with a name, and the origins of its settings.

    Raises:
        ConfigError: Everything that is wrong with the file and the options.
    """
    problems: list[Problem] = []
    plain: dict[str, Any] = {}
    place = "options"
    if isinstance(source, StudyConfig):
        plain, place = settings_of(source), f"study {source.name}"
    elif source is not None:
        path = find_study_file(source)
        place = str(path)
        plain, problems = read_yaml(path)
        if problems and not plain:
            raise ConfigError(problems)  # nothing could be read, so nothing is missing
    merged = _normalise(plain)
    origins = dict.fromkeys(_leaves(merged), place)
    _timeout(merged, place, problems)
    _loosen(merged, options or {}, origins)
    for key, value in (options or {}).items():
        _set(merged, key, value, problems)
        origins.update(dict.fromkeys(_leaves({key: value}), "option"))
    _timeout(merged, "options", problems)
    found: list[Problem] = []
    config = build(StudyConfig, merged, place, found)
    problems.extend(_attributed(problem, place, origins) for problem in found)
    if problems or config is None:
        raise ConfigError(_unique(problems))
    if config.name is None:
        config = dataclasses.replace(config, name=default_name(config))
    keys = _leaves(settings_of(config))
    normal = {
        "budget.timeout_seconds" if k == "budget.timeout" else k: v for k, v in origins.items()
    }
    return LoadedConfig(config=config, origins={key: normal.get(key, "default") for key in keys})


def settings_of(config: StudyConfig) -> dict[str, Any]:
    """Return a config as plain nested dicts, in the order of the fields.

    Args:
        config: The config.

    Returns:
        What a study file would hold, every default spelled out.
    """
    plain = dataclasses.asdict(config)
    plain["space"] = dict(config.space) if isinstance(config.space, Mapping) else config.space
    return plain


def _normalise(plain: Mapping[str, Any]) -> dict[str, Any]:
    """Spell out the short forms `model: NAME` and `data: PATH`; leave empty sections out."""
    merged = {
        key: dict(value) if isinstance(value, Mapping) else value
        for key, value in plain.items()
        if value is not None or key not in _SECTIONS
    }
    for key, field in (("model", "checkpoint"), ("data", "path")):
        if isinstance(merged.get(key), (str, list)):
            merged[key] = {field: merged[key]}
    return merged


def _loosen(merged: dict[str, Any], options: Mapping[str, Any], origins: dict[str, str]) -> None:
    """Drop what a file says of another model or data set than the one the options name.

    Above all its trust: `--model X` must not run X's code because the file trusts its own model.
    """
    for (section, key), bound in _BOUND.items():
        value = options.get(f"{section}.{key}", options.get(section))
        below = merged.get(section)
        if value is None or not isinstance(below, dict) or below.get(key) == value:
            continue
        for name in bound:
            below.pop(name, None)
            origins.pop(f"{section}.{name}", None)


def _set(merged: dict[str, Any], dotted: str, value: Any, problems: list[Problem]) -> None:
    """Lay one option over the file."""
    keys = {"model": "model.checkpoint", "data": "data.path"}.get(dotted, dotted).split(".")
    below = merged
    for key in keys[:-1]:
        inner = below.get(key)
        if inner is not None and not isinstance(inner, Mapping):
            shown = shown_value(inner)
            message = f"`{key}` is `{shown}`, which has no keys below it. Give it as a mapping."
            problems.append(Problem(place=f"options: {dotted}", message=message))
            return
        below[key] = dict(inner) if isinstance(inner, Mapping) else {}
        below = below[key]
    below[keys[-1]] = value


def _timeout(merged: dict[str, Any], place: str, problems: list[Problem]) -> None:
    """Turn `budget.timeout: 30m` into seconds."""
    budget = merged.get("budget")
    if not isinstance(budget, dict) or "timeout" not in budget:
        return
    text = budget.pop("timeout")
    if text is None:
        budget["timeout_seconds"] = None
        return
    try:
        budget["timeout_seconds"] = parse_duration(text)
    except (ValueError, AttributeError):
        shown = shown_value(text)
        message = (
            f"`{shown}` is no duration; accepted are seconds or forms such as 90s, 30m, 1h30m."
        )
        problems.append(Problem(place=f"{place}: budget.timeout", message=message))


def _attributed(problem: Problem, place: str, origins: Mapping[str, str]) -> Problem:
    """Place a problem where the user wrote the value: in an option or in the file."""
    key = problem.place.removeprefix(f"{place}: ")
    if key == "budget.timeout_seconds" and "budget.timeout" in origins:
        key = "budget.timeout"
    return dataclasses.replace(
        problem, place=f"options: {key}" if origins.get(key) == "option" else f"{place}: {key}"
    )


def _leaves(plain: Mapping[str, Any], prefix: str = "") -> list[str]:
    keys: list[str] = []
    for key, value in plain.items():
        dotted = f"{prefix}{key}"
        if isinstance(value, Mapping) and dotted not in _MERGED_KEYS:
            keys.extend(_leaves(value, f"{dotted}."))
        else:
            keys.append({"model": "model.checkpoint", "data": "data.path"}.get(dotted, dotted))
    return keys


def _unique(problems: list[Problem]) -> list[Problem]:
    return list(dict.fromkeys(problems))


def default_name(config: StudyConfig) -> str:
    """Make a name of the model and the data, such as `distilbert-base-uncased-train`."""
    source = config.data.path or config.data.train or "data"
    first = source if isinstance(source, str) else source[0]
    parts = (Path(config.model.checkpoint).name, Path(first).stem)
    return re.sub(r"[^\w.+-]+", "-", "-".join(parts)).strip("-._+")[:120] or "study"
