"""What crosses the pipe between the supervisor and a worker: one JSON object a line.

Supervisor to worker: prepare, keep, open, run, decide, pause. Worker to supervisor: prepared,
ready, progress, evaluation, result, note, error. Nothing is pickled.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any, TypeAlias

from automl_ft.config.study import StudyConfig
from automl_ft.specs.codec import from_plain, to_plain
from automl_ft.specs.decision import Decision, Evaluation, Progress
from automl_ft.specs.facts import StudyFacts
from automl_ft.specs.trial import TrialResult, TrialSpec

__all__ = [
    "CountWorkers",
    "Decide",
    "Keep",
    "Message",
    "Open",
    "Pause",
    "Prepare",
    "Prepared",
    "Ready",
    "Run",
    "TrialEvaluation",
    "TrialProgress",
    "TrialResulted",
    "WorkerError",
    "WorkerNote",
    "WorkersCounted",
    "decode",
    "encode",
]


@dataclass(frozen=True, kw_only=True, slots=True)
class Prepare:
    """Read, check and encode data, look at the models; write nothing."""

    config: StudyConfig
    """The study."""
    checkpoints: tuple[str, ...]
    """Checkpoints that trials may use."""
    kept_in: str | None
    """Folder of a study that keeps its own copy of the rows; None reads the source."""
    known: StudyFacts | None = None
    """Facts of a study that exists; None for a new one."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Prepared:
    """The answer to `Prepare`."""

    facts: StudyFacts
    """What was found out."""


@dataclass(frozen=True, kw_only=True, slots=True)
class CountWorkers:
    """Find out how many trials at once are fastest, with what was prepared."""

    most: int
    """No more than so many, 1 or more."""


@dataclass(frozen=True, kw_only=True, slots=True)
class WorkersCounted:
    """The answer to `CountWorkers`."""

    num_workers: int
    """Trials at once, 1 or more."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Keep:
    """Write what was prepared into the study's folder."""

    folder: str
    """The study's folder."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Open:
    """Open a study that was prepared and kept."""

    config: StudyConfig
    """The study."""
    facts: StudyFacts
    """Its facts."""
    folder: str
    """Its folder."""
    threads: int
    """CPU threads of this worker."""
    slot: int = 0
    """Its place among the workers, from 0 up to their number; one that takes another's place has
    the same. Which GPU it trains on follows from it."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Ready:
    """The answer to `Keep` and `Open`."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Run:
    """Run trials; their results come in any order."""

    specs: tuple[TrialSpec, ...]
    """The group."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Decide:
    """The answer to a `TrialEvaluation`."""

    number: int
    """The trial."""
    decision: Decision
    """What it does now."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Pause:
    """Write a checkpoint after the current step and stop."""


@dataclass(frozen=True, kw_only=True, slots=True)
class TrialProgress:
    """How far a trial is."""

    number: int
    """The trial."""
    progress: Progress
    """How far it is."""


@dataclass(frozen=True, kw_only=True, slots=True)
class TrialEvaluation:
    """A validation; the worker waits for `Decide`."""

    number: int
    """The trial."""
    evaluation: Evaluation
    """The validation."""


@dataclass(frozen=True, kw_only=True, slots=True)
class TrialResulted:
    """How a run of a trial ended."""

    result: TrialResult
    """The result."""
    is_last: bool = False
    """Whether the worker runs no trial after it: its device is lost. An error follows."""


@dataclass(frozen=True, kw_only=True, slots=True)
class WorkerError:
    """A request could not be carried out; not used for failures of a trial."""

    kind: str
    """Name of the exception's class, one of `automl_ft.errors` for bad input."""
    message: str
    """Its message."""
    traceback: str
    """Where it came from; empty for bad input."""


@dataclass(frozen=True, kw_only=True, slots=True)
class WorkerNote:
    """Something that the user should read once, though the search goes on."""

    text: str
    """Full sentences."""


Message: TypeAlias = (
    Prepare
    | Prepared
    | CountWorkers
    | WorkersCounted
    | Keep
    | Open
    | Ready
    | Run
    | Decide
    | Pause
    | TrialProgress
    | TrialEvaluation
    | TrialResulted
    | WorkerError
    | WorkerNote
)
_KINDS: dict[str, type[Message]] = {
    kind.__name__: kind
    for kind in (
        Prepare,
        Prepared,
        CountWorkers,
        WorkersCounted,
        Keep,
        Open,
        Ready,
        Run,
        Decide,
        Pause,
        TrialProgress,
        TrialEvaluation,
        TrialResulted,
        WorkerError,
        WorkerNote,
    )
}


def encode(message: Message) -> str:
    """Write a message as one line.

    Args:
        message: The message.

    Returns:
        One line of JSON with its end.
    """
    body: dict[str, Any] = {"type": type(message).__name__, "body": to_plain(message)}
    return json.dumps(body) + "\n"


def decode(line: str) -> Message:
    """Read a message.

    Args:
        line: From `encode`.

    Returns:
        The message.

    Raises:
        ValueError: The line is no message.
    """
    try:
        plain = json.loads(line)
        return from_plain(_KINDS[plain["type"]], plain["body"])
    except (KeyError, TypeError, json.JSONDecodeError) as error:
        raise ValueError(f"`{line[:200]!r}` is no message of a worker: {error}") from error
