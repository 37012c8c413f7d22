"""`automl-ft studies`: the studies in a database."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from automl_ft.cli.options import format_option, storage_option
from automl_ft.cli.render import Column, Table, write_table
from automl_ft.cli.values import STATE_WORDS, score

if TYPE_CHECKING:
    from automl_ft.storage.studies import StudySummary

__all__ = ["command"]

_EPILOG = """\b
Examples:
  automl-ft studies
  automl-ft studies --storage sqlite:///studies/studies.db --format json"""


@click.command(name="studies", help="List the studies in a database.", epilog=_EPILOG)
@storage_option
@format_option
def command(storage: str | None, format_: str) -> None:
    """Run the command."""
    import automl_ft.api as api

    summaries = api.list_studies(storage)
    if not summaries and format_ == "table":
        click.echo("No study yet. Create one, for example with `automl-ft search demo`.", err=True)
        return
    write_table(_table(summaries), format_)


def _table(summaries: list[StudySummary]) -> Table:
    columns = (
        Column(key="study", title="study", style="bold"),
        Column(key="objective", title="objective"),
        Column(key="best", title="best", align="right", show=score),
        Column(key="trials", title="trials", align="right"),
        Column(key="complete", title="complete", align="right"),
        Column(key="model", title="model", is_wide_only=True),
        Column(key="data", title="data", is_wide_only=True),
        Column(key="created", title="created", show=_day),
    )
    return Table(columns=columns, rows=[_row(summary) for summary in summaries])


def _row(summary: StudySummary) -> dict[str, Any]:
    counts = {STATE_WORDS[state.name]: n for state, n in summary.num_trials.items()}
    config = summary.config
    path = None if config is None else config.data.path or config.data.train
    return {
        "study": summary.name,
        "objective": "(plain Optuna)" if summary.is_foreign else summary.objective,
        "best": summary.best_value,
        "trials": sum(counts.values()),
        **{word: counts.get(word, 0) for word in STATE_WORDS.values()},
        "model": None if config is None else config.model.checkpoint,
        "data": path if path is None or isinstance(path, str) else ", ".join(path),
        "created": None if summary.created_at is None else summary.created_at.isoformat(),
    }


def _day(created: str | None) -> str:
    return "-" if created is None else created[:16].replace("T", " ")
