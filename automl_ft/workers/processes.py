"""How is a local worker process started, spoken to and ended?

A worker runs `automl_ft.workers.main`, started fresh rather than forked, so that the
supervisor never imports torch and scripts need no `__main__` guard. It is in a session of its own:
Ctrl-C reaches the supervisor only, which then pauses its workers. A worker whose supervisor is
gone reads the end of its input and ends.
"""

from __future__ import annotations

import collections
import contextlib
import subprocess
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import IO

from automl_ft.files.child import child_command, child_environment
from automl_ft.specs.decision import Decision
from automl_ft.specs.trial import TrialSpec
from automl_ft.workers.base import EventQueue, WorkerDied, WorkerEvent
from automl_ft.workers.protocol import Decide, Message, Pause, Run, decode, encode

__all__ = ["ProcessWorker"]

_CLOSE_SECONDS = 5.0
_KEPT_LINES = 40


class ProcessWorker:
    """A worker in a process of its own."""

    def __init__(
        self, index: int, events: EventQueue, env: Mapping[str, str] | None = None
    ) -> None:
        """Start the process.

        Args:
            index: Its number among the workers.
            events: Where its messages go.
            env: Environment variables on top of the supervisor's.
        """
        self.index = index
        self._events = events
        self._output: collections.deque[str] = collections.deque(maxlen=_KEPT_LINES)
        self._log: IO[str] | None = None
        self._is_closing = False
        self._process = subprocess.Popen(
            child_command("automl_ft.workers.main"),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            encoding="utf-8",
            errors="replace",
            start_new_session=True,
            env={**child_environment(), **(env or {})},
        )
        self._stderr = threading.Thread(target=self._read_output, daemon=True)
        self._stderr.start()
        self._stdout = threading.Thread(target=self._read_messages, daemon=True)
        self._stdout.start()

    def send(self, message: Message) -> None:
        """Send a request; a worker that is gone is reported as an event, not here.

        Args:
            message: The request.
        """
        assert self._process.stdin is not None
        with contextlib.suppress(BrokenPipeError, ValueError):
            self._process.stdin.write(encode(message))
            self._process.stdin.flush()

    def run(self, specs: Sequence[TrialSpec]) -> None:
        """Run a group of trials.

        Args:
            specs: The group.
        """
        self.send(Run(specs=tuple(specs)))

    def decide(self, number: int, decision: Decision) -> None:
        """Answer a validation.

        Args:
            number: The trial.
            decision: What it does now.
        """
        self.send(Decide(number=number, decision=decision))

    def pause(self) -> None:
        """Have running trials write a checkpoint and stop."""
        self.send(Pause())

    def log_to(self, path: Path) -> None:
        """Copy what the worker prints from now on to a file.

        Args:
            path: The log file; appended to.
        """
        path.parent.mkdir(parents=True, exist_ok=True)
        self._log = path.open("a", encoding="utf-8", buffering=1)

    def close(self, *, at_once: bool = False) -> None:
        """End the process and wait for it.

        Args:
            at_once: Kill it rather than let it end by itself.
        """
        self._is_closing = True
        if at_once:
            self._process.kill()
        with contextlib.suppress(BrokenPipeError, OSError):
            assert self._process.stdin is not None
            self._process.stdin.close()
        try:
            self._process.wait(_CLOSE_SECONDS)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._stdout.join(_CLOSE_SECONDS)
        self._stderr.join(_CLOSE_SECONDS)
        for stream in (self._process.stdout, self._process.stderr, self._log):
            if stream is not None:
                stream.close()

    def _read_messages(self) -> None:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            try:
                message = decode(line)
            except ValueError as error:
                # Torn by a kill, or not ours: what it should have said is lost, so it must go.
                self._output.append(f"{error}\n")
                self._process.kill()
                break
            self._events.put(WorkerEvent(worker=self.index, message=message))
        exit_code = self._process.wait()
        self._stderr.join(_CLOSE_SECONDS)
        if not self._is_closing:
            died = WorkerDied(exit_code=exit_code, last_output="".join(self._output))
            self._events.put(WorkerEvent(worker=self.index, message=died))

    def _read_output(self) -> None:
        assert self._process.stderr is not None
        for line in self._process.stderr:
            self._output.append(line)
            if self._log is not None:
                with contextlib.suppress(ValueError):
                    self._log.write(line)
