"""The exception tree: every error that automl-ft raises on purpose.

    AutomlFtError
      UsageError              bad usage or bad input: exit code 2, nothing was created
        ConfigError           problems of a study file, a search space or an option, all together
        DataError             the data cannot be used as it is
        ModelError            the pretrained model cannot be found, read or mapped
        StorageError          the study database cannot be reached or is not ours to open
          NoStudiesError      there is no database yet, or no study was ever created in it
        StudyNotFoundError    no study of that name
        StudyExistsError      an existing study differs from what was asked for
        StudyLockedError      another process supervises the study
        ExportError           nothing to export, or the target folder is in the way
      SearchFailedError       the search could not go on: exit code 1
        DiskError             the disk takes no more; trials wait until there is room

`DivergedError` (trial) and `InterruptedSetUpError` (search) are no part of it: they are caught
where they belong and no user ever sees them.

This file is a leaf: it imports nothing of automl-ft.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

__all__ = [
    "AutomlFtError",
    "ConfigError",
    "DataError",
    "DiskError",
    "ExportError",
    "ModelError",
    "NoStudiesError",
    "Problem",
    "SearchFailedError",
    "StorageError",
    "StudyExistsError",
    "StudyLockedError",
    "StudyNotFoundError",
    "UsageError",
    "did_you_mean",
]


class AutomlFtError(Exception):
    """Base of every error that automl-ft raises on purpose."""

    exit_code = 1


class UsageError(AutomlFtError):
    """Bad usage or bad input, met before anything was created."""

    exit_code = 2


@dataclass(frozen=True, kw_only=True, slots=True)
class Problem:
    """One problem of an input: where it is, what is wrong, what to do."""

    place: str
    """File and key, or option: `studies/demo.yaml: budget.trials`."""
    message: str
    """What is wrong with which value, what is accepted, and what to do; full sentences."""

    def __str__(self) -> str:
        return f"{self.place}: {self.message}"


class ConfigError(UsageError):
    """Every problem of a study file, a search space or the options, in one message."""

    def __init__(self, problems: Sequence[Problem]) -> None:
        """Store the problems.

        Args:
            problems: At least one problem.
        """
        self.problems = tuple(problems)
        super().__init__("\n".join(str(problem) for problem in self.problems))


class DataError(UsageError):
    """The data cannot be used as it is."""


class ModelError(UsageError):
    """The pretrained model cannot be found, read or mapped."""


class StorageError(UsageError):
    """The study database cannot be reached, or is not ours to open."""


class NoStudiesError(StorageError):
    """There is no database yet, or no study was ever created in it."""


class StudyNotFoundError(UsageError):
    """There is no study of that name in the database."""


class StudyExistsError(UsageError):
    """An existing study differs from what was asked for."""


class StudyLockedError(UsageError):
    """Another process supervises the study."""


class ExportError(UsageError):
    """There is nothing to export, or the target folder is in the way."""


class SearchFailedError(AutomlFtError):
    """The search could not go on, for instance because every trial fails for one reason."""


class DiskError(SearchFailedError):
    """The disk takes no more: not the fault of a trial, which waits until there is room."""


def did_you_mean(value: str, accepted: Iterable[str]) -> str:
    """Return a hint at the closest accepted value, or the whole list.

    Args:
        value: What the user wrote.
        accepted: What is accepted.

    Returns:
        A sentence that starts with a capital letter, such as ``Did you mean `label`?``; where
        nothing is close, ``Accepted: a, b.``; empty if nothing is accepted at all.
    """
    names = sorted({str(name) for name in accepted})
    close = difflib.get_close_matches(value, names, n=1, cutoff=0.6)
    if close:
        return f"Did you mean `{close[0]}`?"
    return f"Accepted: {', '.join(names)}." if names else ""
