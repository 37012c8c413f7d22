"""What does the user read when a search has ended?"""

from __future__ import annotations

import shlex
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING

import click

from automl_ft.cli.main import EXIT_INTERRUPTED
from automl_ft.cli.ranking_table import ranking_table
from automl_ft.cli.render import console, print_table, write_dim
from automl_ft.cli.values import plural
from automl_ft.config.duration import format_duration
from automl_ft.search.events import StopReason

if TYPE_CHECKING:
    from automl_ft.api import Study
    from automl_ft.config.study import StudyConfig
    from automl_ft.search.run import SearchOutcome
    from automl_ft.specs.trial import TrialResult
    from automl_ft.storage.records import TrialRecord

__all__ = ["conclude", "next_steps", "stop_sentence"]

_TOP = 10


def conclude(
    study: Study, outcome: SearchOutcome, config: StudyConfig, *, failures: Sequence[TrialResult]
) -> int:
    """Print the ranking and the verdict on stdout, and what to do next on stderr.

    Args:
        study: The study.
        outcome: How the search ended.
        config: What was asked for.
        failures: Trials that failed in this run.

    Returns:
        The exit code: 130 if the user interrupted, 1 if a trial failed or all trials ended
        without one that is complete, else 0.
    """
    results, notes = console(), console(sys.stderr)
    ranking = study.ranking()
    click.echo(stop_sentence(outcome.stop_reason, config), err=True)
    if ranking:
        click.echo(err=True)
        print_table(ranking_table(ranking[:_TOP], study.record.objective), results)
    if len(ranking) > _TOP:
        click.echo(f"... and {plural(len(ranking) - _TOP, 'trial')} more", err=True)
    verdict = study.verdict()
    if verdict is not None:
        results.print(f"\n{verdict.text}")
    if failures:
        numbers = ", ".join(str(result.number) for result in failures)
        click.echo(
            f"\n{plural(len(failures), 'trial')} failed in this run ({numbers}); see why with"
            f" `automl-ft show {shlex.quote(study.name)} --trial {failures[0].number}`.",
            err=True,
        )
    is_fruitless = _is_fruitless(study.trials)
    if is_fruitless:
        click.echo("\nNo trial of this study is complete.", err=True)
    click.echo(err=True)
    for line in next_steps(study.name, config.storage, has_best=study.best_trial is not None):
        write_dim(line, notes)
    if outcome.stop_reason is StopReason.INTERRUPTED:
        return EXIT_INTERRUPTED
    return 1 if failures or is_fruitless else 0


def _is_fruitless(trials: Sequence[TrialRecord]) -> bool:
    """Say whether all trials have ended, none of them complete; false before the first one."""
    return bool(trials) and all(trial.state.name in ("PRUNED", "FAIL") for trial in trials)


def stop_sentence(reason: StopReason, config: StudyConfig) -> str:
    """Say why a search ended.

    Args:
        reason: The reason.
        config: What was asked for.

    Returns:
        A sentence.
    """
    budget = config.budget
    if reason is StopReason.TRIALS:
        configurations = plural(budget.trials, "configuration")
        return f"Done: the budget of {configurations} is used. A larger --trials goes on."
    if reason is StopReason.TIMEOUT and budget.timeout_seconds is not None:
        time = format_duration(budget.timeout_seconds)
        return f"Done: the budget of {time} is used. A larger --timeout goes on."
    if reason is StopReason.CONVERGED:
        return f"Done: {plural(budget.patience or 0, 'trial')} in a row brought nothing better."
    if reason is StopReason.EXHAUSTED:
        return "Done: the grid has no configuration left."
    return "Interrupted: nothing is lost. The same command goes on where this one stopped."


def next_steps(name: str, storage: str | None, *, has_best: bool) -> list[str]:
    """Say what can be done with a study, as commands to copy.

    Args:
        name: The study.
        storage: URL of its database where that is not the default; may hold a password.
        has_best: Whether there is a model to export.

    Returns:
        One line for each command.
    """
    from automl_ft.storage.urls import parse_url

    option = ""
    if storage is not None:
        shown = parse_url(storage).shown
        # A password must not be printed, and *** would not do as one.
        option = f" --storage {shlex.quote(shown)}" if shown == storage else " --storage URL"
    study = shlex.quote(name)
    steps = [(f"show {study}", "the whole ranking; --trial N for one trial")]
    if has_best:
        steps.append((f"export {study} --to best/", "the best model"))
    steps.append(("dashboard", "the study in Optuna Dashboard"))
    width = max(len(step) + len(option) for step, _ in steps)
    return [f"  automl-ft {step + option:<{width}}   {text}" for step, text in steps]
