"""`automl-ft show`: the ranking of a study, or one trial."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING

import click

from automl_ft.cli.narrate import written_training
from automl_ft.cli.options import format_option, storage_option, study_argument, study_of
from automl_ft.cli.ranking_table import ranking_table
from automl_ft.cli.render import console, labelled, print_lines, write_table
from automl_ft.cli.values import plural, state_word
from automl_ft.errors import UsageError

if TYPE_CHECKING:
    from automl_ft.api import Study

__all__ = ["command"]

_TOP = 20

_HELP = f"""Show the ranking of a study, or one trial.

Complete trials are ranked by the objective; the others follow by how far they came. A table shows
the first {_TOP} trials unless --top says otherwise, JSON and CSV show all."""

_EPILOG = """\b
Examples:
  automl-ft show demo
  automl-ft show demo --top 5
  automl-ft show demo --trial 3
  automl-ft show demo --format csv > trials.csv"""


@click.command(name="show", help=_HELP, epilog=_EPILOG)
@study_argument
@click.option("--top", type=click.IntRange(min=1), metavar="K", help="Show so many trials at most.")
@click.option(
    "--trial",
    type=click.IntRange(min=0),
    metavar="N",
    help="Show one trial: parameters, curve, metrics, cost, failure.",
)
@storage_option
@format_option
def command(
    study: str, top: int | None, trial: int | None, storage: str | None, format_: str
) -> None:
    """Run the command."""
    import automl_ft.api as api

    name, url = study_of(study, storage)
    found = api.load_study(name, storage=url)
    if trial is not None:
        _show_trial(found, trial, format_)
    else:
        _show_ranking(found, top, format_)


def _show_trial(study: Study, number: int, format_: str) -> None:
    from automl_ft.cli.trial_view import write_trial

    ranking = study.ranking()
    found = next((ranked for ranked in ranking if ranked.trial.number == number), None)
    if found is None:
        last = max((ranked.trial.number for ranked in ranking), default=None)
        accepted = "it has no trial yet" if last is None else f"accepted is 0 to {last}"
        raise UsageError(f"Study `{study.name}` has no trial {number}; {accepted}.")
    write_trial(found, study.record, format_)


def _show_ranking(study: Study, top: int | None, format_: str) -> None:
    ranking = study.ranking()
    shown = ranking[: top or (_TOP if format_ == "table" else None)]
    if format_ != "table":
        write_table(ranking_table(shown, study.record.objective), format_)
        return
    target = console()
    print_lines(labelled(_facts(study)), target)
    if not shown:
        return
    click.echo()
    write_table(ranking_table(shown, study.record.objective), format_)
    if len(ranking) > len(shown):
        click.echo(
            f"\n... and {plural(len(ranking) - len(shown), 'trial')} more: --top K", err=True
        )
    verdict = study.verdict()
    if verdict is not None:
        target.print(f"\n{verdict.text}")


def _facts(study: Study) -> list[tuple[str, str]]:
    record = study.record
    counts = Counter(state_word(trial) for trial in study.trials)
    states = ", ".join(f"{count} {word}" for word, count in counts.items()) or "no trial yet"
    rows = record.facts.data.num_examples
    models = ", ".join(facts.checkpoint for facts in record.facts.checkpoints)
    return [
        ("study", f"{study.name}, by {record.objective} on the validation split"),
        ("model", models),
        ("data", ", ".join(f"{count:,} {split}" for split, count in rows.items() if count)),
        ("training", written_training(record.facts)),
        ("trials", states),
    ]
