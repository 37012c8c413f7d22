"""`automl-ft search`: create a study, or go on with one."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

import click

from automl_ft.cli.complete import complete_space, complete_study_file
from automl_ft.cli.options import parse_pair, parse_value, storage_option
from automl_ft.config.study import OBJECTIVES, PRUNERS, SAMPLERS
from automl_ft.errors import ConfigError, NoStudiesError, Problem, StudyNotFoundError

if TYPE_CHECKING:
    from automl_ft.cli.live import LiveListener
    from automl_ft.cli.plain import PlainListener
    from automl_ft.config.load import LoadedConfig
    from automl_ft.config.study import StudyConfig

__all__ = ["command"]

_KEYS: Mapping[str, str] = {
    "name": "name",
    "task": "task",
    "model": "model.checkpoint",
    "revision": "model.revision",
    "data": "data.path",
    "text": "data.text",
    "label": "data.label",
    "validation": "data.validation",
    "test": "data.test",
    "space": "space",
    "objective": "objective",
    "positive_label": "positive_label",
    "sampler": "sampler",
    "pruner": "pruner",
    "trials": "budget.trials",
    "timeout": "budget.timeout",
    "patience": "budget.patience",
    "seed": "seed",
    "device": "device",
    "workers": "workers",
    "storage": "storage",
    "output": "output",
}
"""Key in a study file by option."""
_SHORT_KEYS = {"model": "model.checkpoint", "data": "data.path"}

_HELP = """Create a study, or go on with one.

STUDY is a study file, the name of one that ships (`demo`), or the name of a study that exists,
which goes on with its settings. Every key of a study file is also an option (the rarer ones by
--set), and options win; without STUDY the options say it all. Interrupt with Ctrl-C and run the
same command again to go on; run it with a larger --trials to extend a finished study.

The ranking and the verdict go to stdout, everything else to stderr. Exit code 1 means that the
search or one of its trials failed."""

_EPILOG = """\b
Examples:
  automl-ft search demo
  automl-ft search studies/mine.yaml --trials 100 --timeout 8h
  automl-ft search --model distilbert/distilbert-base-uncased \\
      --data train.csv --text review --label stars
  automl-ft search demo --set training.precision=fp32"""


@click.command(name="search", help=_HELP, epilog=_EPILOG)
@click.argument("study", metavar="[STUDY]", required=False, shell_complete=complete_study_file)
@click.option("--name", help="Name of the study.  [default: made of model and data]")
@click.option("--task", help="The task: text-classification.")
@click.option("--model", help="Pretrained model: hub id, local folder or bundled name.")
@click.option("--revision", help="Branch, tag or commit of the model on the hub.")
@click.option(
    "--data",
    multiple=True,
    type=click.Path(),
    help="Data: hub id, file, folder or bundled name; repeat for several files.",
)
@click.option("--text", multiple=True, help="Column of the text; repeat, or a,b, for a pair.")
@click.option("--label", help="Column of the label.")
@click.option("--validation", help="Validation split: a fraction, a file or a split's name.")
@click.option("--test", help="Test split: a fraction, a file, a split's name, or none.")
@click.option("--space", shell_complete=complete_space, help="Search space: a name or a file.")
@click.option(
    "--objective",
    shell_complete=lambda *_: list(OBJECTIVES),
    help=f"What to maximise: {', '.join(OBJECTIVES)}.",
)
@click.option("--positive-label", help="The class that f1_binary is about.")
@click.option(
    "--sampler",
    shell_complete=lambda *_: list(SAMPLERS),
    help=f"Who proposes configurations: {', '.join(SAMPLERS)}.",
)
@click.option(
    "--pruner",
    shell_complete=lambda *_: list(PRUNERS),
    help=f"Who gives trials up: {', '.join(PRUNERS)}.",
)
@click.option("--trials", type=int, metavar="N", help="Configurations in total, over all runs.")
@click.option("--timeout", help="Active time in total, such as 90s, 30m or 1h30m.")
@click.option("--patience", type=int, metavar="N", help="Stop after N trials without a gain.")
@click.option("--seed", type=int, metavar="N", help="Seed of splits, sampler and trials.")
@click.option("--device", help="auto, cpu, mps, cuda or cuda:N.")
@click.option("--workers", metavar="N", help="Trials that run at once; auto measures.")
@storage_option
@click.option("--output", type=click.Path(), help="Folder of checkpoints.  [default: studies/NAME]")
@click.option(
    "--set",
    "settings",
    multiple=True,
    metavar="KEY.PATH=VALUE",
    help="Any key of a study file; the value is YAML. Repeatable.",
)
def command(study: str | None, settings: tuple[str, ...], **options: Any) -> int:
    """Run the command and return its exit code."""
    from automl_ft.cli.conclude import conclude
    from automl_ft.cli.main import EXIT_INTERRUPTED
    from automl_ft.cli.render import console
    from automl_ft.cli.settings import print_settings

    loaded = _load(study, options, settings)
    print_settings(loaded, console(sys.stderr))
    import automl_ft.api as api

    with _listener() as listener:
        outcome = api.search(loaded.config, origins=loaded.origins, listener=listener)
    if outcome.folder is None:
        click.echo("Interrupted while the study was prepared; nothing was changed.", err=True)
        return EXIT_INTERRUPTED
    found = api.load_study(outcome.study_name, storage=loaded.config.storage)
    return conclude(found, outcome, loaded.config, failures=listener.failures)


def _load(study: str | None, options: Mapping[str, Any], settings: tuple[str, ...]) -> LoadedConfig:
    """Load the study file with the options over it, and name options as the user knows them."""
    from automl_ft.config.load import load_config

    if study is None and not any(options.values()) and not settings:
        raise click.UsageError(
            "Nothing to search is named. Give a study, for example `automl-ft search demo`, or"
            " --model and --data.",
            click.get_current_context(),
        )
    dotted = {**dict(_dotted(options)), **_parse_settings(settings)}
    if isinstance(dotted.get("workers"), str):  # a number or a word, as in a study file
        dotted["workers"] = parse_value(dotted["workers"], "--workers")
    source = _stored(study, options.get("storage")) or study
    try:
        return load_config(source, dotted)
    except ConfigError as error:
        raise ConfigError([_name_option(p, dotted) for p in error.problems]) from error


def _stored(study: str | None, storage: str | None) -> StudyConfig | None:
    """Return the settings of a stored study, where STUDY is the name of one and no file."""
    from pathlib import Path

    from automl_ft.files.shipped import shipped_names

    if study is None or Path(study).exists() or study in shipped_names("studies"):
        return None
    if "/" in study or study.endswith((".yaml", ".yml")):
        return None  # a file that is missing
    import automl_ft.api as api

    try:
        with contextlib.closing(api.load_study(study, storage=storage)) as found:
            return found.record.config
    except (StudyNotFoundError, NoStudiesError):
        return None  # `load_config` says that there is no such file either


def _dotted(options: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    """Yield the options that were given, by their key in a study file."""
    for option, value in options.items():
        if value is None or value == ():
            continue
        if option == "data":
            value = value[0] if len(value) == 1 else list(value)
        elif option == "text":
            value = [column for text in value for column in text.split(",")]
        elif option in ("validation", "test"):
            value = _split(value)
        yield _KEYS[option], value


def _split(text: str) -> float | str | None:
    if text.lower() in ("none", "null"):
        return None
    try:
        return float(text)
    except ValueError:
        return text


def _parse_settings(settings: tuple[str, ...]) -> dict[str, Any]:
    problems: list[Problem] = []
    values: dict[str, Any] = {}
    for pair in settings:
        try:
            key, value = parse_pair(pair, "option --set")
        except ConfigError as error:
            problems.extend(error.problems)
        else:
            values[_SHORT_KEYS.get(key, key)] = value
    if problems:
        raise ConfigError(problems)
    return values


def _name_option(problem: Problem, given: Mapping[str, Any]) -> Problem:
    """Say `option --trials` where the loader knows only `budget.trials`."""
    file, _, key = problem.place.partition(": ")
    key = _SHORT_KEYS.get(key, key)
    flags = {dotted: f"--{option.replace('_', '-')}" for option, dotted in _KEYS.items()}
    if key not in given and (file != "options" or key not in flags):
        return problem
    flag = flags.get(key, f"--set {key}")
    return Problem(place=f"option {flag}", message=problem.message)


def _listener() -> LiveListener | PlainListener:
    """Choose the live view for a terminal, plain lines for everything else."""
    from automl_ft.cli.render import console

    target = console(sys.stderr)
    if sys.stdout.isatty() and target.is_terminal and not target.is_dumb_terminal:
        from automl_ft.cli.live import LiveListener

        return LiveListener(target)
    from automl_ft.cli.plain import PlainListener

    return PlainListener(sys.stderr)
