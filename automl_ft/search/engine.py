"""The search: ask, run, tell.

The timeline of a study, from the first line of `search` to the last:

    open_study          space file; a worker reads data and model; create or check the study
    lock                one supervisor; trials that a killed one left RUNNING wait again, files
                        that it left behind are tidied up
    loop
      fill              every idle worker gets a trial: a waiting one (paused, the default
                        recipe, or put in line by the user), else a proposal of the sampler on
                        the shadow study; where that trains the head only, more of its kind
                        come along, to be trained together (`search/line.py`)
      handle            progress    -> live view
                        validation  -> report to the database, ask the pruner, answer the worker
                        result      -> COMPLETE, PRUNED, WAITING (paused) or FAIL; tidy up files;
                        the worker is idle after the last of its group
                        death       -> its trials wait again once, and run alone; a new worker
      check             interrupt, deadline, converged, grid exhausted, first three failed alike
    stop                running trials are paused with a checkpoint; workers end; ledger closed
"""

from __future__ import annotations

import contextlib
import dataclasses
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from optuna.exceptions import UpdateFinishedTrialError
from optuna.pruners import BasePruner
from optuna.trial import TrialState

from automl_ft.errors import DiskError, SearchFailedError
from automl_ft.search.checkpoints import Shelf
from automl_ft.search.events import SearchListener, SearchSnapshot, StopReason, trial_names
from automl_ft.search.interrupt import Interrupt
from automl_ft.search.line import Line
from automl_ft.search.live import LiveTrial
from automl_ft.search.opening import OpenedStudy
from automl_ft.search.ranking import best_trial
from automl_ft.search.shadow import ShadowStudy
from automl_ft.search.stopping import ActiveClock, num_configurations
from automl_ft.search.team import Team, death_message
from automl_ft.search.trials import Shadows, failed_result, trial_spec
from automl_ft.specs.decision import Decision, Evaluation
from automl_ft.specs.failure import FailureKind, TrialFailure
from automl_ft.specs.trial import Outcome, TrialCost, TrialResult
from automl_ft.storage.records import TrialRecord, result_attrs
from automl_ft.storage.schema import PRUNED_AT
from automl_ft.workers.base import Worker, WorkerDied, WorkerEvent
from automl_ft.workers.protocol import (
    Ready,
    TrialEvaluation,
    TrialProgress,
    TrialResulted,
    WorkerError,
    WorkerNote,
)

__all__ = ["Engine", "EngineParts"]

_TOUCH_SECONDS = 2.0
_LOOK_SECONDS = 2.0
"""An idle worker looks so often for what users put in line from another terminal."""
_COUNTED = {
    "complete": TrialState.COMPLETE,
    "pruned": TrialState.PRUNED,
    "failed": TrialState.FAIL,
    "running": TrialState.RUNNING,
    "waiting": TrialState.WAITING,
}
_MAX_DEATHS = 2
_ALIKE = 3


@dataclass(frozen=True, kw_only=True, slots=True)
class EngineParts:
    """What an engine works with."""

    opened: OpenedStudy
    """The study."""
    team: Team
    """Its workers."""
    shadow: ShadowStudy
    """Proposes and judges."""
    pruner: BasePruner
    """Optuna's pruner."""
    clock: ActiveClock
    """Active seconds."""
    listener: SearchListener
    """Told of everything."""
    interrupt: Interrupt
    """The user's wish to stop."""


class Engine:
    """Runs one search to its end; used once."""

    def __init__(self, parts: EngineParts) -> None:
        """Store the parts.

        Args:
            parts: What it works with.
        """
        self._parts = parts
        self._store = parts.opened.store
        self._idle: list[Worker] = []
        self._live: dict[int, LiveTrial] = {}
        self._reason: StopReason | None = None
        self._error: SearchFailedError | None = None
        self._is_pausing = False
        self._deaths: Counter[int] = Counter()
        self._worker_deaths = 0
        self._ended: list[TrialResult] = []
        self._touched = 0.0
        self._looked: float | None = None
        self._told: set[str] = set()
        self._trials: list[TrialRecord] = []
        self._overview: SearchSnapshot | None = None
        self._shadows = Shadows()
        self._line = Line(parts.opened, parts.shadow, self._shadows, parts.listener)
        self._shelf = Shelf(parts.opened.store, parts.opened.folder, parts.opened.config)

    def run(self, workers: Sequence[Worker]) -> StopReason:
        """Search until a budget or the user ends it.

        Args:
            workers: Ready to run trials.

        Returns:
            Why it ended.

        Raises:
            SearchFailedError: The first three trials failed alike, or workers keep dying.
            StorageError: The database fails.
        """
        self._idle = list(workers)
        self._refresh()
        while True:
            self._check()
            if not self._is_pausing:
                self._fill()
            if not self._live and (self._is_pausing or self._reason is not None):
                break
            event = self._parts.team.next_event()
            if event is not None:
                self._handle(event)
        self._store.touch_run(self._parts.clock.this_run())
        if self._error is not None:
            raise self._error
        assert self._reason is not None
        return self._reason

    def _fill(self) -> None:
        """Give every idle worker its trials, or find out why there are none."""
        while self._idle and self._is_worth_a_look():
            group = self._line.next_group(alone=self._deaths)
            if not group:
                self._reason = self._line.reason
                self._looked = self._parts.clock.this_run()
                self._refresh()
                return
            self._start(group, self._idle.pop(0))

    def _is_worth_a_look(self) -> bool:
        """Tell whether there may be a trial where there was none the last time."""
        now = self._parts.clock.this_run()
        return self._looked is None or now - self._looked >= _LOOK_SECONDS

    def _start(self, group: Sequence[TrialRecord], worker: Worker) -> None:
        opened = self._parts.opened
        self._reason = None  # why there was no trial for another worker is old news now
        for trial in group:
            values = [value for _, value in sorted(trial.intermediate_values.items())]
            self._live[trial.number] = LiveTrial(
                number=trial.number, worker=worker.index, params=trial.params, curve=values
            )
        worker.run([trial_spec(trial, opened.config, opened.folder) for trial in group])
        self._refresh()
        for trial in group:
            self._parts.listener.trial_started(
                self.snapshot(), trial.number, is_resumed=bool(trial.intermediate_values)
            )

    def _handle(self, event: WorkerEvent) -> None:
        message = event.message
        if not self._parts.team.has(event.worker):
            return  # the last words of a worker that was replaced
        if isinstance(message, TrialProgress):
            self._progress(message)
        elif isinstance(message, TrialEvaluation):
            self._evaluation(message, event.worker)
        elif isinstance(message, TrialResulted):
            self._result(message.result)
            if not message.is_last and not self._live_on(event.worker):
                self._is_idle(event.worker)
        elif isinstance(message, WorkerDied):
            self._death(event.worker, death_message(message))
        elif isinstance(message, WorkerError) and message.kind == DiskError.__name__:
            self._disk_is_full(event.worker, message.message)
        elif isinstance(message, WorkerError):
            self._death(event.worker, f"{message.kind}: {message.message}\n{message.traceback}")
        elif isinstance(message, WorkerNote):
            self._note(message.text)
        elif isinstance(message, Ready):
            self._is_idle(event.worker)

    def _note(self, text: str) -> None:
        """Tell a note once, whichever worker found it first."""
        if text not in self._told:
            self._told.add(text)
            self._parts.listener.message(text)

    def _is_idle(self, index: int) -> None:
        self._idle.append(self._parts.team.worker(index))
        self._looked = None

    def _live_on(self, index: int) -> list[LiveTrial]:
        return [live for live in self._live.values() if live.worker == index]

    def _progress(self, message: TrialProgress) -> None:
        live = self._live.get(message.number)
        if live is not None:
            live.advance(message.progress)
            self._parts.listener.changed(self.snapshot())

    def _evaluation(self, message: TrialEvaluation, worker: int) -> None:
        live = self._live[message.number]
        evaluation = message.evaluation
        value = self._value(evaluation)
        stored = self._trials[message.number].intermediate_values
        if evaluation.step not in stored:
            live.curve.append(value)
        decision = self._decide(live, evaluation.step, value)
        self._parts.team.worker(worker).decide(message.number, decision)
        self._parts.listener.changed(self.snapshot())

    def _decide(self, live: LiveTrial, step: int, value: float) -> Decision:
        """Report to the database and ask the pruner."""
        try:
            self._store.report(live.number, step, value)
        except UpdateFinishedTrialError:
            live.is_stopped_by_user = True
            return Decision.PRUNE
        self._refresh()
        trial = self._trials[live.number]
        if trial.system_attrs.get(PRUNED_AT) == step:
            # Decided before, but a kill came first. The pruner would no longer say so: it has
            # the trial down as past this rung.
            return Decision.PRUNE
        verdict = self._parts.shadow.should_prune(
            self._parts.pruner, self._shadows.of(self._trials), live.number
        )
        # The default recipe takes part in the pruner's rungs, since others are measured against
        # it, but runs its full length: it is what the best trial is compared with.
        is_pruned = verdict.is_pruned and trial.origin != "default"
        attrs = {**verdict.system_attrs, **({PRUNED_AT: step} if is_pruned else {})}
        if attrs:
            with contextlib.suppress(UpdateFinishedTrialError):
                self._store.set_system_attrs(live.number, attrs)
        return Decision.PRUNE if is_pruned else Decision.CONTINUE

    def _result(self, result: TrialResult) -> None:
        live = self._live.pop(result.number)
        attrs = result_attrs(result)
        if live.is_stopped_by_user or not self._tell(result, attrs):
            self._parts.listener.message(
                f"Trial {result.number} was ended by the user; it is left as it is."
            )
            self._shelf.drop(result.number)
        else:
            self._shelf.tidy(result)
        self._refresh()
        if result.outcome is not Outcome.PAUSED:
            self._ended.append(result)
            self._check_alike()
        self._parts.listener.trial_ended(self.snapshot(), result)

    def _tell(self, result: TrialResult, attrs: dict[str, object]) -> bool:
        """Write how a run ended; False if the user ended the trial meanwhile."""
        number = result.number
        try:
            self._report_missing(result)
            if result.outcome is Outcome.PAUSED:
                self._store.set_attrs(number, attrs)
        except UpdateFinishedTrialError:
            return False
        if result.outcome is Outcome.COMPLETE:
            return self._store.finish(number, TrialState.COMPLETE, result.value, attrs)
        if result.outcome is Outcome.PRUNED:
            last = self._trials[number].intermediate_values
            value = last[max(last)] if last else None
            return self._store.finish(number, TrialState.PRUNED, value, attrs)
        if result.outcome is Outcome.FAILED:
            return self._store.finish(number, TrialState.FAIL, None, attrs)
        return self._store.release(number)

    def _report_missing(self, result: TrialResult) -> None:
        """Make up for a report that was lost with a supervisor killed after the last checkpoint."""
        stored = self._trials[result.number].intermediate_values
        missing = [e for e in result.evaluations if e.step not in stored]
        for evaluation in missing:
            self._store.report(result.number, evaluation.step, self._value(evaluation))
        if missing:
            self._refresh()

    def _value(self, evaluation: Evaluation) -> float:
        return evaluation.metrics[f"validation_{self._parts.opened.config.objective}"]

    def _death(self, index: int, message: str) -> None:
        """Let the trials of a dead worker wait again, once; start another worker."""
        self._worker_deaths += 1
        if not self._is_pausing:
            self._reason = None  # its trials wait again
        self._looked = None
        self._idle = [worker for worker in self._idle if worker.index != index]
        victims = self._live_on(index)
        self._deaths.update(live.number for live in victims)
        self._spare([live for live in victims if self._deaths[live.number] < _MAX_DEATHS], message)
        for live in victims:
            if self._deaths[live.number] >= _MAX_DEATHS:
                failure = TrialFailure(
                    kind=FailureKind.WORKER_DIED, message=message.splitlines()[0], traceback=message
                )
                self._result(failed_result(live.number, failure, self._cost_so_far(live)))
        if self._worker_deaths > 2 * _ALIKE + len(self._ended):
            self._stop(error=SearchFailedError(f"Worker processes keep dying. {message}"))
        if not self._is_pausing:
            self._parts.team.replace(index)

    def _spare(self, victims: Sequence[LiveTrial], message: str) -> None:
        """Put trials back in line; from now on each runs alone, so that the culprit shows."""
        if not victims:
            return
        self._release(victims)
        names = trial_names([live.number for live in victims])
        verbs = "lost its worker and goes" if len(victims) == 1 else "lost their worker and go"
        self._parts.listener.message(
            f"{names.capitalize()} {verbs} on from the last checkpoint. {message}"
        )

    def _release(self, victims: Sequence[LiveTrial]) -> None:
        for live in victims:
            del self._live[live.number]
            self._store.release(live.number)

    def _disk_is_full(self, index: int, message: str) -> None:
        """Let the worker's trials wait until there is room, and stop."""
        self._release(self._live_on(index))
        self._stop(error=SearchFailedError(message))

    def _cost_so_far(self, live: LiveTrial) -> TrialCost:
        """Return what a trial has cost by the last that was heard of it."""
        known, last = self._trials[live.number], live.progress
        return TrialCost(
            seconds=max(known.seconds or 0.0, 0.0 if last is None else last.seconds),
            examples=max(known.examples or 0, 0 if last is None else last.examples_seen),
            peak_memory_mib=known.peak_memory_mib or 0.0,
        )

    def _check(self) -> None:
        """Look at the user's wish and the deadline; keep the ledger."""
        seconds = self._parts.clock.this_run()
        if seconds - self._touched >= _TOUCH_SECONDS:
            self._touched = seconds
            self._store.touch_run(seconds)
        if self._is_pausing:
            return
        timeout = self._parts.opened.config.budget.timeout_seconds
        if self._parts.interrupt:
            if self._live:
                self._parts.listener.message(
                    "Stopping: running trials write a checkpoint. Ctrl-C again leaves at once."
                )
            self._stop(StopReason.INTERRUPTED)
        elif timeout is not None and self._parts.clock.total() >= timeout:
            self._stop(StopReason.TIMEOUT)

    def _check_alike(self) -> None:
        """Stop where the first three trials of this run failed for one reason."""
        first = self._ended[:_ALIKE]
        reasons = {_reason(result) for result in first}
        if len(first) == _ALIKE and len(reasons) == 1 and None not in reasons:
            failure = first[-1].failure
            assert failure is not None
            self._stop(
                error=SearchFailedError(
                    f"The first {_ALIKE} trials failed for the same reason, so the search stopped."
                    f" {failure.kind.value}: {failure.message}\n{failure.traceback}".rstrip()
                )
            )

    def _stop(
        self, reason: StopReason | None = None, error: SearchFailedError | None = None
    ) -> None:
        if self._is_pausing:
            return
        self._is_pausing = True
        self._reason, self._error = reason, error
        for index in {live.worker for live in self._live.values()}:
            self._parts.team.worker(index).pause()

    def _refresh(self) -> None:
        self._trials = self._store.trials()
        self._overview = None

    def snapshot(self) -> SearchSnapshot:
        """Return the state of the search now.

        Returns:
            Everything that a live view shows.
        """
        if self._overview is None:  # progress comes more often than trials change
            self._overview = self._look_over()
        return dataclasses.replace(
            self._overview,
            running=tuple(live.view() for live in self._live.values()),
            active_seconds=self._parts.clock.total(),
        )

    def _look_over(self) -> SearchSnapshot:
        config = self._parts.opened.config
        best = best_trial(self._trials)
        default = next((t for t in self._trials if t.origin == "default"), None)
        return SearchSnapshot(
            study_name=self._store.name,
            objective=config.objective,
            counts=_counts(self._trials),
            num_configurations=num_configurations(self._trials),
            total_configurations=config.budget.trials,
            running=(),
            best_number=None if best is None else best.number,
            best_value=None if best is None else best.value,
            best_params={} if best is None else best.params,
            default_value=None if default is None else default.value,
            active_seconds=0.0,
            timeout_seconds=config.budget.timeout_seconds,
        )


def _counts(trials: Sequence[TrialRecord]) -> dict[str, int]:
    found = Counter(trial.state for trial in trials)
    return {name: found[state] for name, state in _COUNTED.items()}


def _reason(result: TrialResult) -> str | None:
    """Return what two failures must share to be alike: the kind, and for errors the exception."""
    if result.failure is None:
        return None
    if result.failure.kind is FailureKind.ERROR:
        return f"error {result.failure.message.split(':')[0]}"
    return result.failure.kind.value
