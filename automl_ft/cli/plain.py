"""How does a search report where no terminal is: one plain line for each event."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TextIO

from automl_ft.cli.narrate import (
    best_line,
    ended_line,
    facts_lines,
    is_new_best,
    running_trial,
)
from automl_ft.cli.values import duration, params_line, score
from automl_ft.search.events import RunningTrial, SearchSnapshot, trial_names
from automl_ft.specs.facts import StudyFacts
from automl_ft.specs.trial import Outcome, ParamValue, TrialResult

__all__ = ["PlainListener"]

_QUIET_SECONDS = 60.0
"""A validation is told only after so many active seconds without a line: a sign of life in long
trials, no noise in short ones."""


class PlainListener:
    """A `SearchListener` that writes lines without control characters."""

    def __init__(self, stream: TextIO) -> None:
        """Store the stream.

        Args:
            stream: Where the lines go.
        """
        self.failures: list[TrialResult] = []
        """Results of the trials that failed in this run."""
        self._stream = stream
        self._params: dict[int, Mapping[str, ParamValue]] = {}
        self._validations: dict[int, int] = {}
        self._last_seconds = 0.0

    def preparing(self, text: str) -> None:
        """Say what is prepared now.

        Args:
            text: A short phrase.
        """
        self._write(f"preparing: {text}")

    def prepared(self, facts: StudyFacts, *, is_resumed: bool) -> None:
        """Tell what was found out about data and models.

        Args:
            facts: The facts.
            is_resumed: Whether the study existed before.
        """
        for line in facts_lines(facts, is_resumed=is_resumed):
            self._write(line)

    def trial_started(self, snapshot: SearchSnapshot, number: int, *, is_resumed: bool) -> None:
        """Tell that a trial starts or goes on.

        Args:
            snapshot: The state after it.
            number: The trial.
            is_resumed: Whether it goes on from a checkpoint.
        """
        trial = running_trial(snapshot, number)
        if trial is not None:
            self._params[number] = trial.params
            self._validations[number] = len(trial.curve)
        verb = "goes on" if is_resumed else "started"
        if trial is not None and (others := _others(snapshot, trial)):
            verb += f" together with {others}"
        params = params_line(self._params.get(number, {}))
        self._event(snapshot, f"trial {number} {verb}" + (f": {params}" if params else ""))

    def changed(self, snapshot: SearchSnapshot) -> None:
        """Give a sign of life when a trial is validated after a long silence.

        Args:
            snapshot: The state.
        """
        for trial in snapshot.running:
            is_new = len(trial.curve) > self._validations.get(trial.number, 0)
            if is_new and snapshot.active_seconds - self._last_seconds >= _QUIET_SECONDS:
                left = (
                    "" if trial.seconds_left is None else f", {duration(trial.seconds_left)} left"
                )
                self._event(
                    snapshot,
                    f"trial {trial.number} at {trial.fraction:.0%}:"
                    f" {snapshot.objective} {score(trial.curve[-1])}{left}",
                )
            self._validations[trial.number] = len(trial.curve)

    def trial_ended(self, snapshot: SearchSnapshot, result: TrialResult) -> None:
        """Tell how a run of a trial ended.

        Args:
            snapshot: The state after it.
            result: The result.
        """
        if result.outcome is Outcome.FAILED:
            self.failures.append(result)
        params = self._params.pop(result.number, {})
        self._event(snapshot, ended_line(snapshot, result, params))
        if is_new_best(snapshot, result):
            self._event(snapshot, f"best: {best_line(snapshot)}")

    def message(self, text: str) -> None:
        """Pass on something that the user should read once.

        Args:
            text: A full sentence.
        """
        self._write(text)

    def __enter__(self) -> PlainListener:
        return self

    def __exit__(self, *exception: object) -> None:
        self._stream.flush()

    def _event(self, snapshot: SearchSnapshot, text: str) -> None:
        self._last_seconds = snapshot.active_seconds
        configurations = f"{snapshot.num_configurations}/{snapshot.total_configurations}"
        self._write(f"[{configurations}, {duration(snapshot.active_seconds)}] {text}")

    def _write(self, text: str) -> None:
        printable = "".join(c if c.isprintable() else " " for c in text)
        self._stream.write(printable + "\n")
        self._stream.flush()


def _others(snapshot: SearchSnapshot, trial: RunningTrial) -> str:
    """Name the trials that one worker trains together with a trial."""
    others = [t.number for t in snapshot.running if t.worker == trial.worker and t is not trial]
    return trial_names(sorted(others)) if others else ""
