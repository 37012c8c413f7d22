"""Which command was asked for, and with which exit code does it end?

Commands are imported when they are invoked, so that `automl-ft --help` is quick and pays for
neither torch nor Optuna.
"""

from __future__ import annotations

import contextlib
import difflib
import importlib
import os
import sys
from collections.abc import Mapping, Sequence
from typing import Any, cast

import click
from click.shell_completion import CompletionItem

from automl_ft.errors import AutomlFtError
from automl_ft.version import __version__

__all__ = ["COMMANDS", "EXIT_INTERRUPTED", "PROGRAM", "cli", "main"]

PROGRAM = "automl-ft"
"""Name of the command."""
EXIT_INTERRUPTED = 130
"""Exit code after Ctrl-C, as shells have it: 128 + SIGINT."""
COMMANDS: Mapping[str, str] = {
    "search": "Create a study, or go on with one.",
    "studies": "List the studies in a database.",
    "show": "Show the ranking of a study, or one trial.",
    "export": "Export the best model with its config, script and card.",
    "predict": "Predict labels and scores for new rows.",
    "dashboard": "Open the studies in Optuna Dashboard.",
    "enqueue": "Put a configuration of your own next in line.",
    "delete": "Delete a study with all its files.",
    "spaces": "List the search spaces, or show one in full.",
    "doctor": "Check packages, devices, database, studies and disk.",
    "completion": "Print the script for shell completion.",
}
"""One line of help for each command, in the order of a user's work."""

_EPILOG = """\b
Start here:
  automl-ft search demo         a search with bundled model and data
  automl-ft show demo           its ranking
  automl-ft export demo --to best/

\b
Exit codes: 0 done, 1 the search or a trial failed, 2 bad usage or bad
input, 130 interrupted."""


class _LazyGroup(click.Group):
    """A group whose commands are imported when they are invoked."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in COMMANDS:
            return None
        module = importlib.import_module(f"automl_ft.cli.{cmd_name}")
        return cast(click.Command, module.command)

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except BrokenPipeError:  # click itself would end with exit code 1
            return _reader_gone()

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        name = args[0]
        if name not in COMMANDS and not name.startswith("-") and not ctx.resilient_parsing:
            close = difflib.get_close_matches(name, COMMANDS, n=1)
            hint = f"Did you mean `{close[0]}`?" if close else f"Accepted: {', '.join(COMMANDS)}."
            ctx.fail(f"No such command `{name}`. {hint}")
        return super().resolve_command(ctx, args)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl(list(COMMANDS.items()))

    def shell_complete(self, ctx: click.Context, incomplete: str) -> list[CompletionItem]:
        # Not Group's own, which would import every command for its help.
        commands = [
            CompletionItem(name, help=text)
            for name, text in COMMANDS.items()
            if name.startswith(incomplete)
        ]
        return commands + click.Command.shell_complete(self, ctx, incomplete)


@click.group(
    name=PROGRAM,
    cls=_LazyGroup,
    help="Hyperparameter search for fine-tuning pretrained models.",
    epilog=_EPILOG,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
)
@click.version_option(__version__, prog_name=PROGRAM)
def cli() -> None:
    """Dispatch to a command."""


def main(args: Sequence[str] | None = None) -> int:
    """Run the command line.

    Args:
        args: Arguments after the program's name; None takes the process's own.

    Returns:
        The exit code: 0 done, 1 the search or a trial failed, 2 bad usage or bad input,
        130 interrupted.
    """
    _open_missing_streams()
    words = None if args is None else list(args)
    try:
        code = cli.main(args=words, prog_name=PROGRAM, standalone_mode=False)
        sys.stdout.flush()
    except click.ClickException as error:
        error.show()
        return error.exit_code
    except AutomlFtError as error:
        return _report(error)
    except (click.Abort, KeyboardInterrupt):
        click.echo("Interrupted.", err=True)
        return EXIT_INTERRUPTED
    except BrokenPipeError:
        return _reader_gone()
    except OSError as error:
        return _report_system(error)
    return code if isinstance(code, int) else 0


def _report(error: AutomlFtError) -> int:
    """Say what is wrong on stderr, one line for each problem."""
    lines = str(error).splitlines() or [type(error).__name__]
    if len(lines) == 1:
        click.echo(f"Error: {lines[0]}", err=True)
    else:
        click.echo("Error:\n" + "\n".join(f"  {line}" for line in lines), err=True)
    return error.exit_code


def _report_system(error: OSError) -> int:
    """Say what the operating system refused, such as to write on a full disk."""
    where = f" ({error.filename})" if error.filename else ""
    reason = " ".join((error.strerror or str(error) or type(error).__name__).split()).rstrip(".")
    with contextlib.suppress(OSError):  # stderr may be what cannot be written
        click.echo(f"Error: {reason}{where}. Mend this and run the same command again.", err=True)
    _drop_stdout()
    return AutomlFtError.exit_code


def _reader_gone() -> int:
    """End quietly after `automl-ft show demo | head -1`: whoever read had enough."""
    _drop_stdout()
    return 0


def _drop_stdout() -> None:
    """Lead stdout nowhere: the interpreter flushes it once more at exit."""
    with contextlib.suppress(OSError, ValueError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _open_missing_streams() -> None:
    """Lead streams that were closed before the start (`>&-`) to nowhere; Python leaves None."""
    # In the order of their descriptors, so that no file of ours gets one that children inherit.
    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
        if getattr(sys, name) is None:
            setattr(sys, name, open(os.devnull, mode, encoding="utf-8"))  # noqa: SIM115


if __name__ == "__main__":
    sys.exit(main())
