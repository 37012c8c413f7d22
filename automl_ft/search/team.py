"""The workers of a search: started, opened, replaced when they die, ended.

Every wait looks at the interrupt, so that Ctrl-C works during set-up too.
"""

from __future__ import annotations

import dataclasses
import queue
from collections.abc import Callable
from pathlib import Path
from typing import Protocol

import automl_ft.errors as errors
from automl_ft.config.study import StudyConfig
from automl_ft.errors import AutomlFtError, SearchFailedError
from automl_ft.files.cores import usable_cores
from automl_ft.search.folder import StudyFolder
from automl_ft.search.interrupt import Interrupt
from automl_ft.specs.facts import StudyFacts
from automl_ft.workers.base import EventQueue, Worker, WorkerDied, WorkerEvent
from automl_ft.workers.processes import ProcessWorker
from automl_ft.workers.protocol import (
    CountWorkers,
    Keep,
    Message,
    Open,
    Prepare,
    Prepared,
    Ready,
    WorkerError,
    WorkersCounted,
)

__all__ = ["InterruptedSetUpError", "Team", "WorkerFactory", "start_process"]

_POLL_SECONDS = 0.2


class InterruptedSetUpError(Exception):
    """The user interrupted before the first trial."""


class WorkerFactory(Protocol):
    """Starts a worker."""

    def __call__(self, index: int, events: EventQueue, log: Path | None) -> Worker:
        """Start a worker.

        Args:
            index: Its number.
            events: Where its events go.
            log: Where its output goes; None before the study has a folder.

        Returns:
            The worker.
        """
        ...


def start_process(index: int, events: EventQueue, log: Path | None) -> Worker:
    """Start a worker in a local process.

    Args:
        index: Its number.
        events: Where its events go.
        log: Where its output goes.

    Returns:
        The worker.
    """
    worker = ProcessWorker(index, events)
    if log is not None:
        worker.log_to(log)
    return worker


class Team:
    """All workers of one search, on one queue of events."""

    def __init__(self, factory: WorkerFactory, interrupt: Interrupt) -> None:
        """Store the parts; no worker starts yet.

        Args:
            factory: Starts workers.
            interrupt: Ends every wait during set-up.
        """
        self.events: EventQueue = queue.Queue()
        self._factory = factory
        self.interrupt = interrupt
        self._workers: dict[int, Worker] = {}
        self._slots: dict[int, int] = {}
        self._opening: Callable[[int], Message] | None = None
        self._folder: StudyFolder | None = None
        self._next_index = 0

    def prepare(
        self,
        config: StudyConfig,
        checkpoints: tuple[str, ...],
        kept_in: Path | None,
        known: StudyFacts | None = None,
    ) -> StudyFacts:
        """Start the workers, and have the first one read data and models.

        Args:
            config: The study.
            checkpoints: Checkpoints that trials may use.
            kept_in: Folder of an existing study.
            known: Its facts.

        Returns:
            What it found out.

        Raises:
            UsageError: Data or models cannot be used.
            InterruptedSetUpError: The user interrupted.
            SearchFailedError: A worker died.
        """
        first = self._start(None, slot=0)
        # The libraries that a worker needs take seconds to import, in time with the reading.
        self._start_others(config.num_workers)
        kept = None if kept_in is None else str(kept_in)
        # The database is the supervisor's alone; its URL may hold a password.
        config = dataclasses.replace(config, storage=None)
        first.send(Prepare(config=config, checkpoints=checkpoints, kept_in=kept, known=known))
        answer = self._wait_for(Prepared)
        assert isinstance(answer, Prepared)
        return answer.facts

    def count(self, most: int) -> int:
        """Have the worker that prepared find out how many trials at once are fastest.

        Args:
            most: No more than so many.

        Returns:
            Workers, 1 or more; they have been started.

        Raises:
            InterruptedSetUpError: The user interrupted.
            SearchFailedError: A worker died.
        """
        next(iter(self._workers.values())).send(CountWorkers(most=most))
        answer = self._wait_for(WorkersCounted)
        assert isinstance(answer, WorkersCounted)
        self._start_others(answer.num_workers)
        return answer.num_workers

    def open(self, config: StudyConfig, facts: StudyFacts, folder: StudyFolder) -> list[Worker]:
        """Keep what was prepared, and open the study in all workers.

        Args:
            config: The study; its `workers` is a number.
            facts: Its facts.
            folder: Its folder.

        Returns:
            The workers, ready to run trials.

        Raises:
            UsageError: A worker cannot open the study.
            InterruptedSetUpError: The user interrupted.
            SearchFailedError: A worker died.
        """
        config = dataclasses.replace(config, storage=None)
        first = next(iter(self._workers.values()))
        first.send(Keep(folder=str(folder.path)))
        self._wait_for(Ready)
        threads = config.training.threads or max(1, usable_cores() // config.num_workers)
        self._folder = folder
        self._opening = lambda slot: Open(
            config=config, facts=facts, folder=str(folder.path), threads=threads, slot=slot
        )
        for worker in self._workers.values():
            worker.log_to(folder.log(worker.index))
            worker.send(self._opening(self._slots[worker.index]))
        for _ in self._workers:
            self._wait_for(Ready)
        return list(self._workers.values())

    def replace(self, index: int) -> None:
        """Start a worker in place of one that died, on its device; `Ready` comes as an event.

        Args:
            index: The one that died.
        """
        assert self._opening is not None
        assert self._folder is not None
        self._workers.pop(index).close(at_once=True)
        slot = self._slots.pop(index)
        self._start(self._folder.log(self._next_index), slot=slot).send(self._opening(slot))

    def has(self, index: int) -> bool:
        """Tell whether a worker is one of the team; one that was replaced no longer is.

        Args:
            index: Its number.

        Returns:
            Whether it is.
        """
        return index in self._workers

    def worker(self, index: int) -> Worker:
        """Return a worker by its number.

        Args:
            index: The number.

        Returns:
            The worker.
        """
        return self._workers[index]

    def close(self, *, at_once: bool = False) -> None:
        """End all workers.

        Args:
            at_once: Kill them.
        """
        while self._workers:
            index = next(iter(self._workers))
            self._workers[index].close(at_once=at_once)
            del self._workers[index]  # not before it is closed: an interrupt may come between

    def next_event(self, timeout: float = _POLL_SECONDS) -> WorkerEvent | None:
        """Wait for an event, for a short time.

        Args:
            timeout: Seconds at most.

        Returns:
            The event, or None.
        """
        try:
            return self.events.get(timeout=timeout)
        except queue.Empty:
            return None

    def _start_others(self, num_workers: int) -> None:
        for slot in range(len(self._slots), num_workers):
            self._start(None, slot=slot)

    def _start(self, log: Path | None, *, slot: int) -> Worker:
        worker = self._factory(self._next_index, self.events, log)
        self._slots[worker.index] = slot
        self._workers[worker.index] = worker
        self._next_index += 1
        return worker

    def _wait_for(self, kind: type[Message]) -> Message:
        while True:
            if self.interrupt:
                raise InterruptedSetUpError
            event = self.next_event()
            if event is None:
                continue
            if isinstance(event.message, WorkerDied):
                raise SearchFailedError(death_message(event.message))
            if isinstance(event.message, WorkerError):
                raise error_of(event.message)
            if isinstance(event.message, kind):
                return event.message


def error_of(message: WorkerError) -> AutomlFtError:
    """Turn what a worker reports back into an exception.

    Args:
        message: The report.

    Returns:
        An exception of the same class where it is one of ours; else a SearchFailedError with the
        traceback.
    """
    kind = getattr(errors, message.kind, None)
    is_ours = isinstance(kind, type) and issubclass(kind, AutomlFtError)
    if is_ours and kind is not None and not issubclass(kind, errors.ConfigError):
        return kind(message.message)  # type: ignore[no-any-return]
    return SearchFailedError(
        f"A worker failed: {message.kind}: {message.message}\n{message.traceback}".rstrip()
    )


def death_message(death: WorkerDied) -> str:
    """Say how a worker ended.

    Args:
        death: What is known.

    Returns:
        Full sentences, with the worker's last output.
    """
    code = death.exit_code
    how = f"was killed by signal {-code}" if code is not None and code < 0 else f"ended with {code}"
    hint = " Signal 9 often means that the machine ran out of memory." if code == -9 else ""
    tail = f" Its last output:\n{death.last_output.rstrip()}" if death.last_output.strip() else ""
    return f"A worker process {how}.{hint}{tail}"
