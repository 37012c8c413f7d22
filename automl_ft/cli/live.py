"""How does a search look in a terminal? A small panel that stays below a log of ended trials.

The panel is redrawn a few times a second and leaves no trace; what ended is printed once above it
and stays in the terminal's history. Everything goes to stderr.
"""

from __future__ import annotations

from collections.abc import Sequence

from rich.console import Console, ConsoleOptions, RenderableType, RenderResult
from rich.live import Live
from rich.padding import Padding
from rich.progress_bar import ProgressBar
from rich.spinner import Spinner
from rich.table import Table
from rich.text import Text

from automl_ft.cli.narrate import (
    best_line,
    budget_line,
    counts_line,
    ended_line,
    facts_lines,
    group_line,
    is_new_best,
    running_groups,
    seconds_left,
)
from automl_ft.cli.render import labelled
from automl_ft.cli.values import curve, params_line, score
from automl_ft.config.duration import format_duration
from automl_ft.search.events import RunningTrial, SearchSnapshot
from automl_ft.specs.facts import StudyFacts
from automl_ft.specs.trial import Outcome, TrialResult

__all__ = ["LiveListener", "panel"]

_REFRESHES_PER_SECOND = 4
_GROUPS_SHOWN = 6
"""Running trials, or groups of them, that are shown one by one; further trials are counted."""
_PARAMS_SHOWN = 2
"""With more of them than this their hyperparameters are left out."""
_LEFT_WIDTH = 13
_SYMBOLS = {
    Outcome.COMPLETE: ("\u2713", "+", "green"),
    Outcome.PRUNED: ("\u00b7", ".", "dim"),
    Outcome.PAUSED: ("\u2016", "=", "yellow"),
    Outcome.FAILED: ("\u2717", "x", "red"),
}
"""Symbol, the same in ASCII, and style of an outcome; the word always stands beside it."""


class LiveListener:
    """A `SearchListener` with a live panel. A context manager: the panel lives inside it."""

    def __init__(self, console: Console) -> None:
        """Prepare the panel; nothing is drawn yet.

        Args:
            console: The terminal, on stderr.
        """
        self.failures: list[TrialResult] = []
        """Results of the trials that failed in this run."""
        self._console = console
        self._live = Live(
            Text(""),
            console=console,
            refresh_per_second=_REFRESHES_PER_SECOND,
            transient=True,
        )

    def preparing(self, text: str) -> None:
        """Show what is prepared now, with a spinner.

        Args:
            text: A short phrase.
        """
        name = "line" if self._console.options.ascii_only else "dots"
        self._live.update(Spinner(name, Text(text), style="cyan"))

    def prepared(self, facts: StudyFacts, *, is_resumed: bool) -> None:
        """Print what was found out about data and models.

        Args:
            facts: The facts.
            is_resumed: Whether the study existed before.
        """
        grid = labelled()
        for line in facts_lines(facts, is_resumed=is_resumed):
            word, _, rest = line.partition(": ")
            grid.add_row(Text(word, style="yellow" if word == "note" else "bold"), rest)
        self._console.print(Padding(grid, (0, 0, 1, 0)))

    def trial_started(self, snapshot: SearchSnapshot, number: int, *, is_resumed: bool) -> None:
        """Show the trial in the panel.

        Args:
            snapshot: The state after it.
            number: The trial.
            is_resumed: Whether it goes on from a checkpoint.
        """
        self.changed(snapshot)

    def changed(self, snapshot: SearchSnapshot) -> None:
        """Redraw the panel at its next refresh.

        Args:
            snapshot: The state.
        """
        self._live.update(panel(snapshot))

    def trial_ended(self, snapshot: SearchSnapshot, result: TrialResult) -> None:
        """Print how a run of a trial ended, above the panel.

        Args:
            snapshot: The state after it.
            result: The result.
        """
        if result.outcome is Outcome.FAILED:
            self.failures.append(result)
        symbol, plain, style = _SYMBOLS[result.outcome]
        shown = plain if self._console.options.ascii_only else symbol
        emphasis = "bold" if is_new_best(snapshot, result) else ""
        line = ended_line(snapshot, result)
        # Drawn at once, or for one frame the trial would be ended above and running below.
        self._live.update(panel(snapshot), refresh=True)
        self._console.print(Text.assemble((shown, style), " ", (line, emphasis)))

    def message(self, text: str) -> None:
        """Print a message above the panel.

        Args:
            text: A full sentence.
        """
        self._console.print(Text(text, style="yellow"))

    def __enter__(self) -> LiveListener:
        self._live.start()
        return self

    def __exit__(self, *exception: object) -> None:
        # Without this a last empty frame would leave a blank line behind.
        self._live.update(Text(""))
        self._live.stop()


def panel(snapshot: SearchSnapshot) -> RenderableType:
    """Draw the state of a search.

    Args:
        snapshot: The state.

    Returns:
        The panel: the budget and the counts, the running trials, the best so far.
    """
    grid = labelled()
    grid.add_row(Text("search", style="bold"), _progress(_share(snapshot), seconds_left(snapshot)))
    grid.add_row("", budget_line(snapshot))
    grid.add_row("", Text(counts_line(snapshot), style="dim"))
    groups = running_groups(snapshot)
    for group in groups[:_GROUPS_SHOWN]:
        if len(group) > 1:
            _add_group(grid, group, snapshot.objective)
        else:
            with_params = len(groups) <= _PARAMS_SHOWN
            _add_trial(grid, group[0], snapshot.objective, with_params=with_params)
    if more := sum(map(len, groups[_GROUPS_SHOWN:])):
        grid.add_row("", f"and {more} more running")
    grid.add_row(Text("best", style="bold"), best_line(snapshot))
    if snapshot.best_params:
        grid.add_row("", Text(params_line(snapshot.best_params), style="dim"))
    return Padding(grid, (1, 0, 0, 0))


def _add_trial(grid: Table, trial: RunningTrial, objective: str, *, with_params: bool) -> None:
    label = Text(f"trial {trial.number}", style="bold")
    grid.add_row(label, _progress(trial.fraction, trial.seconds_left))
    grid.add_row("", _Curve(trial, objective))
    if with_params and trial.params:
        grid.add_row("", Text(params_line(trial.params), style="dim"))


def _add_group(grid: Table, group: Sequence[RunningTrial], objective: str) -> None:
    """Show trials of one worker as one: it trains them at the same pace."""
    known = [trial.seconds_left for trial in group if trial.seconds_left is not None]
    fraction = sum(trial.fraction for trial in group) / len(group)
    label = Text(f"{len(group)} trials", style="bold")
    grid.add_row(label, _progress(fraction, max(known, default=None)))
    grid.add_row("", Text(group_line(group, objective)))


def _progress(share: float, left: float | None) -> Table:
    """Draw a bar with its percentage and the time left."""
    share = min(1.0, max(0.0, share))
    row = Table.grid(padding=(0, 1, 0, 0), expand=True)
    row.add_column(ratio=1)
    row.add_column(justify="right", width=4, no_wrap=True)
    row.add_column(width=_LEFT_WIDTH, no_wrap=True)
    bar = ProgressBar(total=1.0, completed=share, finished_style="bar.complete")
    row.add_row(bar, f"{share:.0%}", "" if left is None else f"{format_duration(left)} left")
    return row


def _share(snapshot: SearchSnapshot) -> float:
    """Return how much of the budget is used: of the configurations or of the time."""
    finished = sum(snapshot.counts.get(state, 0) for state in ("complete", "pruned", "failed"))
    done = finished + sum(trial.fraction for trial in snapshot.running)
    shares = [done / snapshot.total_configurations if snapshot.total_configurations else 1.0]
    if snapshot.timeout_seconds:
        shares.append(snapshot.active_seconds / snapshot.timeout_seconds)
    return max(shares)


class _Curve:
    """The curve of a running trial; in ASCII where the terminal knows no more."""

    def __init__(self, trial: RunningTrial, objective: str) -> None:
        self._trial = trial
        self._objective = objective

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        trial = self._trial
        parts: list[str | tuple[str, str]] = []
        if trial.curve:
            bars = curve(trial.curve, is_ascii=options.ascii_only)
            parts += [f"{self._objective} ", (bars, "cyan"), f" {score(trial.curve[-1])}"]
        else:
            parts.append("not validated yet")
        if trial.train_loss is not None:
            parts.append((f", training loss {trial.train_loss:.3f}", "dim"))
        yield Text.assemble(*parts)
