"""What a worker process does: `python -m automl_ft.workers.main`.

It reads requests from standard input and writes messages to what was standard output; anything
else that is printed goes to standard error. One thread reads, so that a pause is seen while a
trial runs; when the input ends, the supervisor is gone and the process ends at once.
"""

from __future__ import annotations

import gc
import logging
import os
import queue
import sys
import threading
import time
import traceback
from pathlib import Path
from typing import IO

from automl_ft.errors import AutomlFtError, UsageError
from automl_ft.specs.decision import Decision, Evaluation, Progress, Reporter
from automl_ft.specs.trial import TrialResult
from automl_ft.workers.protocol import (
    CountWorkers,
    Decide,
    Keep,
    Message,
    Open,
    Pause,
    Prepare,
    Prepared,
    Ready,
    Run,
    TrialEvaluation,
    TrialProgress,
    TrialResulted,
    WorkerError,
    WorkerNote,
    WorkersCounted,
    decode,
    encode,
)

__all__ = ["NoteHandler", "PipeReporter", "WorkerLoop", "main"]

_PROGRESS_SECONDS = 0.2


class Channel:
    """The pipe to the supervisor: requests in, messages out."""

    def __init__(self, source: IO[str], target: IO[str]) -> None:
        """Start reading.

        Args:
            source: Where requests come from.
            target: Where messages go.
        """
        self._target = target
        self._source = source
        self.requests: queue.Queue[Message] = queue.Queue()
        self.is_paused = threading.Event()
        self._sending = threading.Lock()
        self._decisions: queue.Queue[Decide] = queue.Queue()
        self._early: dict[int, Decision] = {}
        threading.Thread(target=self._read, daemon=True).start()

    def send(self, message: Message) -> None:
        """Send a message; any thread may.

        Args:
            message: The message.
        """
        with self._sending:
            self._target.write(encode(message))
            self._target.flush()

    def decision(self, number: int) -> Decision:
        """Wait for the decision on a trial. Called from one thread.

        Args:
            number: The trial; one validation of it is undecided.

        Returns:
            The decision. Those on other trials that come meanwhile are kept for them.
        """
        while number not in self._early:
            message = self._decisions.get()
            self._early[message.number] = message.decision
        return self._early.pop(number)

    def _read(self) -> None:
        exit_code = 0
        try:
            for line in self._source:
                self._take(decode(line))
        except ValueError as error:  # a supervisor that was killed in the middle of a line
            exit_code = 1
            print(error, file=sys.stderr)
        finally:
            # The supervisor is gone; the last checkpoint is on disk, so nothing is lost.
            os._exit(exit_code)

    def _take(self, message: Message) -> None:
        if isinstance(message, Pause):
            self.is_paused.set()
        elif isinstance(message, Decide):
            self._decisions.put(message)
        else:
            if isinstance(message, Run):
                # Here and not where it is carried out: a pause may already follow.
                self.is_paused.clear()
            self.requests.put(message)


class PipeReporter:
    """The `Reporter` of one trial, over the pipe."""

    def __init__(self, channel: Channel, number: int) -> None:
        """Store the pipe and the trial.

        Args:
            channel: The pipe.
            number: The trial.
        """
        self._channel = channel
        self._number = number
        self._last = 0.0

    def progress(self, progress: Progress) -> Decision:
        """Send progress, a few times a second at most.

        Args:
            progress: How far the trial is.

        Returns:
            PAUSE once the supervisor asked for it.
        """
        now = time.monotonic()
        if now - self._last >= _PROGRESS_SECONDS:
            self._last = now
            self._channel.send(TrialProgress(number=self._number, progress=progress))
        return Decision.PAUSE if self._channel.is_paused.is_set() else Decision.CONTINUE

    def report(self, evaluation: Evaluation) -> Decision:
        """Send a validation and wait for the decision.

        Args:
            evaluation: The validation.

        Returns:
            The supervisor's decision; PAUSE where it would go on but a pause was asked for.
        """
        self._channel.send(TrialEvaluation(number=self._number, evaluation=evaluation))
        decision = self._channel.decision(self._number)
        is_paused = decision is Decision.CONTINUE and self._channel.is_paused.is_set()
        return Decision.PAUSE if is_paused else decision


class NoteHandler(logging.Handler):
    """Sends warnings of ours to the supervisor, which tells the user; the log has them too."""

    def __init__(self, channel: Channel) -> None:
        """Store the pipe.

        Args:
            channel: The pipe.
        """
        super().__init__(logging.WARNING)
        self._channel = channel

    def emit(self, record: logging.LogRecord) -> None:
        """Send the message of a warning; its traceback stays in the log.

        Args:
            record: The warning.
        """
        self._channel.send(WorkerNote(text=record.getMessage()))


class WorkerLoop:
    """Carries out requests, one after the other."""

    def __init__(self, channel: Channel) -> None:
        """Store the pipe.

        Args:
            channel: The pipe.
        """
        from automl_ft.trial.prepare import PreparedStudy

        self._channel = channel
        self._study: PreparedStudy | None = None

    def handle(self, request: Message) -> None:
        """Carry out one request.

        Args:
            request: Prepare, CountWorkers, Keep, Open or Run.

        Raises:
            ValueError: The request is none of these, or nothing was prepared.
        """
        from automl_ft.trial import prepare

        if isinstance(request, Prepare):
            kept = None if request.kept_in is None else Path(request.kept_in)
            self._study = prepare.prepare_study(
                request.config, request.checkpoints, kept, known=request.known
            )
            self._channel.send(Prepared(facts=self._study.facts))
        elif isinstance(request, Open):
            import torch

            torch.set_num_threads(request.threads)
            self._study = prepare.open_study(
                request.config,
                request.facts,
                Path(request.folder),
                prepared=self._study,
                slot=request.slot,
            )
            # Each trial ends with a garbage collection, which need not look at all imported
            # libraries again (0.4 s each time).
            gc.collect()
            gc.freeze()
            self._channel.send(Ready())
        elif self._study is None:
            raise ValueError(f"{type(request).__name__} came before Prepare or Open.")
        elif isinstance(request, CountWorkers):
            from automl_ft.trial.occupancy import choose_workers

            found = choose_workers(self._study, request.most)
            self._channel.send(WorkersCounted(num_workers=found))
        elif isinstance(request, Keep):
            prepare.keep_study(self._study, Path(request.folder))
            self._channel.send(Ready())
        elif isinstance(request, Run):
            self._run(request)
        else:
            raise ValueError(f"A worker cannot carry out {type(request).__name__}.")

    def _run(self, request: Run) -> None:
        from automl_ft.trial.group import run_group
        from automl_ft.trial.runner import run_trial

        assert self._study is not None
        if len(request.specs) > 1:
            run_group(
                request.specs,
                self._study,
                self._reporter,
                self._result,
                is_pausing=self._channel.is_paused.is_set,
            )
            return
        for spec in request.specs:
            self._result(run_trial(spec, self._study, self._reporter(spec.number)))

    def _reporter(self, number: int) -> Reporter:
        return PipeReporter(self._channel, number)

    def _result(self, result: TrialResult) -> None:
        """Send a result, and whether another trial can follow it in this process."""
        from automl_ft.trial.device import DeviceLostError, is_lost

        assert self._study is not None
        is_last = is_lost(self._study.device)
        self._channel.send(TrialResulted(result=result, is_last=is_last))
        if is_last:
            text = f"Trial {result.number} left its GPU unusable; a new worker takes over."
            self._channel.send(WorkerNote(text=text))
            raise DeviceLostError(text)  # as an error it has the supervisor replace this worker

    def serve(self) -> None:
        """Carry out requests until the input ends; an error is sent, not raised."""
        while True:
            if self._channel.requests.empty():
                _use_idle_time()
            request = self._channel.requests.get()
            try:
                self.handle(request)
            except AutomlFtError as error:
                is_usage = isinstance(error, UsageError)
                self._fail(error, "" if is_usage else traceback.format_exc())
            except Exception as error:
                self._fail(error, traceback.format_exc())

    def _fail(self, error: Exception, trace: str) -> None:
        message = str(error) or type(error).__name__
        self._channel.send(WorkerError(kind=type(error).__name__, message=message, traceback=trace))


def _use_idle_time() -> None:
    """Import what the first validation would import within its time."""
    import sklearn.metrics  # noqa: F401


def main() -> None:
    """Serve requests on standard input until it ends."""
    logging.basicConfig(format="%(levelname)s %(name)s: %(message)s", level=logging.WARNING)
    messages = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    source = os.fdopen(os.dup(0), "r", encoding="utf-8")
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    sys.stdout = sys.stderr
    channel = Channel(source, messages)
    logging.getLogger("automl_ft").addHandler(NoteHandler(channel))
    WorkerLoop(channel).serve()


if __name__ == "__main__":
    main()
