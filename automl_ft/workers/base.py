"""The seam between the engine and whatever runs trials.

A worker takes a group of specs and answers with a stream of events on one queue that all workers
share; the engine never waits for a single worker.
"""

from __future__ import annotations

import queue
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from automl_ft.specs.decision import Decision
from automl_ft.specs.trial import TrialSpec
from automl_ft.workers.protocol import Message

__all__ = ["EventQueue", "Worker", "WorkerDied", "WorkerEvent"]


@dataclass(frozen=True, kw_only=True, slots=True)
class WorkerDied:
    """The worker ended by itself."""

    exit_code: int | None
    """Its exit code, negative for a signal."""
    last_output: str
    """The last lines it wrote."""


@dataclass(frozen=True, kw_only=True, slots=True)
class WorkerEvent:
    """One message of one worker."""

    worker: int
    """Which worker."""
    message: Message | WorkerDied
    """What it says."""


EventQueue = queue.Queue[WorkerEvent]
"""Where all workers put their events."""


class Worker(Protocol):
    """Runs trials. All methods return at once; answers come as events."""

    index: int
    """Its number among the workers."""

    def send(self, message: Message) -> None:
        """Send a request other than those below.

        Args:
            message: The request.
        """
        ...

    def run(self, specs: Sequence[TrialSpec]) -> None:
        """Run a group of trials.

        Args:
            specs: The group.
        """
        ...

    def decide(self, number: int, decision: Decision) -> None:
        """Answer a validation.

        Args:
            number: The trial.
            decision: What it does now.
        """
        ...

    def pause(self) -> None:
        """Have running trials write a checkpoint and stop."""
        ...

    def log_to(self, path: Path) -> None:
        """Copy what the worker prints from now on to a file.

        Args:
            path: The log file; appended to.
        """
        ...

    def close(self, *, at_once: bool = False) -> None:
        """End the worker.

        Args:
            at_once: Kill it rather than let it end by itself.
        """
        ...
